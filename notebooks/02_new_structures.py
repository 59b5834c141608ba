# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # New structures
#
# Shampoo *multiplies* the two covariances of a gradient, $\mathbb{E}[G^T G]^{1/2} \otimes
# \mathbb{E}[GG^T]^{1/2}$, up to a factor. What if they were *added*? Here a family that fimlens does not have goes the
# whole way: an idea, its closed form, the laws that refuse the first attempt, the numeric optimum, the optimizer,
# and a training curve. Then we look for others, among the combinations that nobody named.

# %%
import os
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fimlens as fl
from fimlens import plotting
from fimlens.experiments import trial
from fimlens.language_model import llama, text
from fimlens.pretrain.schedule import warmup_cosine
from fimlens.structures.named import STRUCTURES

# %matplotlib inline

# %% [markdown]
# On two cores this takes some minutes. With `FIMLENS_QUICK=1` in the environment, as in the project's own tests,
# trainings are shorter, fewer and at one learning rate, and fewer laws and combinations are tried.

# %%
QUICK = os.environ.get("FIMLENS_QUICK") == "1"
LAWS = {"shapes": [(3, 4)]} | ({"laws": ["chart", "application", "cone", "claim"]} if QUICK else {})

# %% [markdown]
# ## The idea
#
# A *Kronecker sum* of two PSD matrices,
#
# $$\tilde F = I_n \otimes M + R \otimes I_m ,$$
#
# adds what the rows share to what the columns share. In the eigenbases of $M$ and $R$ it is diagonal, with
# eigenvalues
#
# $$L_{ij} = q_i + s_j .$$
#
# So it is enough to say which eigenvalues are allowed, a `Spectrum`; `Rotated` adds the bases. Of the second
# moments $V$ we keep row means and column means, $m + n$ numbers, just as Shampoo does.


# %%
class Terms(NamedTuple):
    """Of the eigenvalues q_i + s_j."""

    q: jax.Array
    s: jax.Array


class KroneckerSum(fl.Spectrum):
    claim = fl.Claim.EXACT

    def moments(self, V):
        return Terms(*fl.Marginals().moments(V))

    def project(self, moments):
        raise NotImplementedError

    def expand(self, coords, shape):
        return coords.q + coords.s


# %% [markdown]
# ## Its closed form
#
# There is no `project` yet. `fl.derive` forms the distance from the definition, and solves where it is stationary:

# %%
derived = fl.derive(KroneckerSum(), 2, 2, coordinates=Terms((2, 1), (1, 2)))
print(derived)

# %% [markdown]
# Two things to take from it. A number can move from all $q_i$ to all $s_j$ without a change: the coordinates are
# redundant. And the solution is, whichever way it is shared out, $q_i + s_j = r_i + c_j - \bar v$, with $r$ and $c$
# the means of rows and columns and $\bar v$ the mean of all. Share it evenly:


# %%
class FreeSum(KroneckerSum):
    def project(self, moments):
        rows, columns = moments
        return Terms(rows - rows.mean() / 2, columns - columns.mean() / 2)


print(fl.derive(FreeSum(), 2, 2).fit)

# %% [markdown]
# The equations are solved, and yet the answer is no: an eigenvalue can be negative.
#
# ## The laws refuse it
#
# So do the laws, with numbers. `fl.check` holds a structure against nineteen of them on random Fishers, here of a 3 x 4
# matrix.

# %%
try:
    fl.check(FreeSum(), **LAWS)
except fl.LawBroken as broken:
    print(broken)

# %% [markdown]
# Where a row and a column are both weak, $r_i + c_j < \bar v$, the stationary point has a *negative* eigenvalue, and no
# Fisher has one; its root is not a number.
#
# So take the nearest with $q, s \geq 0$. Nothing is lost by asking it of each apart: if every $q_i + s_j \geq 0$, a
# number can be moved across so that both are. The problem is convex, and with one term given the other is plain:
#
# $$q_i = \max(0,\; r_i - \bar s), \qquad s_j = \max(0,\; c_j - \bar q).$$
#
# Each needs only the *mean* of the other, so the whole search is for two numbers.


# %%
class NearestSum(KroneckerSum):
    claim = rotated_claim = fl.Claim.LIMIT

    def project(self, moments):
        rows, columns = moments

        def alternate(state):
            terms, _ = state
            q = jnp.maximum(0, rows - terms.s.mean())
            s = jnp.maximum(0, columns - q.mean())
            return Terms(q, s), jnp.abs(s.mean() - terms.s.mean())

        def moves(state):
            _, change = state
            return change > 4 * jnp.finfo(rows.dtype).eps * rows.mean()

        start = Terms(rows, jnp.zeros_like(columns))
        return jax.lax.while_loop(moves, alternate, (start, jnp.full([], jnp.inf, rows.dtype)))[0]


print(fl.check(NearestSum(), **LAWS))

# %% [markdown]
# `rotated_claim` says more than that: that the eigenvectors of $\mathbb{E}[GG^T]$ and $\mathbb{E}[G^T G]$ are
# the *best* bases for it, which is not so of SOAP. The reason: given $R$, the nearest $M \succeq 0$ is
# $\frac{1}{n}\mathbb{E}[GG^T] - \frac{1}{n}\mathrm{tr}(R)\,I$ with its negative eigenvalues cut off, and that has the
# eigenvectors of $\mathbb{E}[GG^T]$, whatever $R$ may be. The law of claims tries to refute it, by gradients
# over bases and eigenvalues and with the solver:

# %%
print(fl.check(fl.Rotated(NearestSum()), **LAWS))

# %% [markdown]
# The nearest Kronecker sum is thus known exactly, in Shampoo's bases and with Shampoo's memory.
#
# ## On real gradients
#
# The Fishers of the attention matrices of a small language model, as in *One lens*.

# %%
config, steps = llama.Config(), 60 if QUICK else 400
params, _ = trial.train(optax.adam(optax.cosine_decay_schedule(1e-2, steps)), steps=steps, config=config)
windows = text.batches(text.read(text.standard_library()), size=16, length=trial.WINDOW, seed=1)
batches = [jnp.asarray(next(windows), jnp.int32) for _ in range(4)]
fishers = fl.empirical_fisher(partial(llama.loss, config), params, batches, matrices=["layers/*/attention/*"])
short_names = [path.removeprefix("layers/").replace("/attention/", "\n") for path in fishers]


def error(structure, fisher):
    """||F~ - F||^2 / ||F||^2 at the structure's own fit."""
    return float(fl.gap(structure, fl.fit(structure, fisher), fisher).relative)


# %%
contest = {
    "Shampoo": fl.Rotated(fl.GeometricMarginals()),
    "nearest sum": fl.Rotated(NearestSum()),
    "Shampoo squared": fl.Rotated(fl.Marginals()),
    "SOAP": fl.Rotated(fl.Diagonal()),
}
errors = {name: [error(structure, fisher) for fisher in fishers.values()] for name, structure in contest.items()}
nearer = sum(a < b for a, b in zip(errors["nearest sum"], errors["Shampoo"], strict=True))
print(f"the sum is nearer than Shampoo on {nearer} of {len(fishers)} matrices")
plotting.numbers(np.array(list(errors.values())), list(errors), short_names, label=r"$\|\tilde F - F\|^2 / \|F\|^2$")

# %% [markdown]
# The solver agrees that nothing nearer is in the family:

# %%
query = fishers["layers/0/attention/query"]
certificate = fl.solve(contest["nearest sum"], query, starts=1).certificate
print(f"beaten: {certificate.beaten}; the least value is that of {certificate.reached} of {len(certificate.values)} starts")

# %% [markdown]
# ## It is an optimizer
#
# `fl.scale_by_structure` makes an Optax transform of any structure. With each a small model is trained at a few learning
# rates; the best rate is the one of the least loss on files that were left out, in nats a byte.

# %%
small = llama.Config(hidden=32, mlp=86, heads=4, layers=2)
contestants = ["Shampoo", "nearest sum"] if QUICK else list(contest)
rates, length = ([0.03], 30) if QUICK else ([0.01, 0.03, 0.1], 100)


def optimizer(structure, rate, **options):
    direction = fl.scale_by_structure(structure, b2=0.99, update_interval=10, **options)
    return optax.chain(fl.matrices(direction), optax.scale_by_learning_rate(warmup_cosine(rate, length)))


def trained(name, structure, **options):
    """The losses of a training at its best rate."""
    runs = {}
    for rate in rates:
        params, losses = trial.train(optimizer(structure, rate, **options), steps=length, config=small)
        runs[rate] = trial.evaluate(params, small), losses
    print(f"{name:28}" + "  ".join(f"{held_out:.3f} at {rate}" for rate, (held_out, _) in runs.items()))
    return min(runs.values(), key=lambda run: run[0])[1]


# %%
trainings = {"Adam": trained("Adam", fl.Diagonal())} | {name: trained(name, contest[name]) for name in contestants}

# %% [markdown]
# Smoothed over ten steps:


# %%
def smooth(losses):
    return np.convolve(losses, np.ones(10) / 10, mode="valid")


plotting.curves({name: smooth(losses) for name, losses in trainings.items()}, x="step", y="loss (nats per byte)")

# %% [markdown]
# ## Nearest is not best
#
# The nearest sum is nearer to $F$ than Shampoo is, and look how it trains. The eigenvalues tell why. An optimizer
# *divides* by their roots, and $\|\tilde F - F\|_F^2$ hardly sees the small ones: to be nearest, the sum sets all
# of them to zero where $q_i = s_j = 0$.

# %%
drawn = plotting.sheet()
axes = drawn.axes[0]
for (name, structure), style, colour in zip(contest.items(), plotting.STYLES, plotting.COLOURS, strict=False):
    member = fl.fit(structure, query)
    L = jnp.broadcast_to(structure.eigenvalues(member), query.shape)
    axes.semilogy(
        np.sort(L.ravel())[::-1], linestyle=style, color=colour, label=f"{name}: {int(jnp.sum(L == 0))} of {L.size} are zero"
    )
axes.set(xlabel="eigenvalue, largest first", ylabel="its size")
axes.legend(frameon=False)
drawn

# %% [markdown]
# A direction that the family calls impossible gets a step of $1/\epsilon$ as soon as a gradient points there. If that is
# the cause, a larger $\epsilon$ is the cure; the default is $10^{-8}$.

# %%
trainings["nearest sum, eps 0.001"] = trained("nearest sum, eps 0.001", contest["nearest sum"], eps=1e-3)

# %% [markdown]
# It is, for the most part. The Frobenius norm, by which Gong et al. (2025, arXiv 2502.07752) derive optimizers, says little
# about training where eigenvalues may be zero.
#
# ## Nearest in another sense
#
# The zeros are the norm's choice, and not the family's. Two other divergences, von Neumann's and LogDet, are infinite where
# $\tilde F$ has an eigenvalue of zero along a gradient; LogDet weighs ratios of eigenvalues, and not differences. The lens
# measures in all three: 1 share is that of the nearest multiple of the identity, and LogDet's nats are a gradient's negative
# log-likelihood, less that under this multiple.

# %%
for row in fl.compare(contest, query, solve_up_to=0).rows:
    seen = "   ".join(f"{sense} {near.error:.3f} ({near.unit})" for sense, near in row.divergences.items())
    print(f"{row.name:18}{seen}")

# %% [markdown]
# There is no closed form yet for the sum in other divergences, but `fl.solve` takes any that has a minimum. LogDet has none
# here, because F is singular. The smaller the degree, the more a small eigenvalue counts, and the fewer are zero:

# %%
for sense in (fl.Frobenius(), fl.VonNeumann(), fl.Beta(0.5)):
    best = fl.solve(contest["nearest sum"], query, divergence=sense, starts=1).params
    L = np.asarray(contest["nearest sum"].eigenvalues(best))
    ratio = L / L.max()
    print(f"{sense!s:14}{np.sum(ratio < 1e-9):3} of {L.size} eigenvalues are zero; least / largest is {ratio.min():.0e}")

# %% [markdown]
# ## The repair
#
# Give up nearness for a bound, just as Shampoo does. The mean of the two whitening families, $L_{ij} = (r_i +
# c_j)/2$, is never zero where a row or a column has been seen, and by convexity
#
# $$\|\frac{1}{2}(\mathcal{R} + \mathcal{C}) - V\|^2 \;\leq\;
# \frac{1}{2}\|\mathcal{R} - V\|^2 + \frac{1}{2}\|\mathcal{C} - V\|^2 ,$$
#
# where $\mathcal{R}$ is constant along rows and $\mathcal{C}$ along columns; each term is least at the means. So its
# claim is a `BOUND`, and `objective` says of what. It is the arithmetic mean of the numbers of which Shampoo takes
# the geometric mean.


# %%
class MeanSum(KroneckerSum):
    claim = fl.Claim.BOUND

    def project(self, moments):
        rows, columns = moments
        return Terms(rows / 2, columns / 2)

    def objective(self, params, fisher):
        rows, columns = (fl.Params(params.frame, 2 * term) for term in params.coords)
        return fl.Rows().objective(rows, fisher) + fl.Columns().objective(columns, fisher)


print(fl.check(MeanSum(), **LAWS))

# %%
trainings["mean sum"] = trained("mean sum", fl.Rotated(MeanSum()))
sound = {name: smooth(losses) for name, losses in trainings.items() if name != "nearest sum"}
plotting.curves(sound, x="step", y="loss (nats per byte)")

# %% [markdown]
# ## The cells that nobody named
#
# An inner spectrum times a basis is an optimizer, and many of them have names: `Diagonal` with no basis is Adam,
# with both SOAP; `Rows` in the left basis is Muon. Here is the whole table: the median error over all the attention
# matrices, and the name where there is one. `Blocks(Scalar(), 3, 3)` has one number for each of 3 x 3 tiles.

# %%
inner = [fl.Diagonal(), fl.RowColumn(), fl.GeometricMarginals(), NearestSum()]
if not QUICK:
    inner += [fl.Marginals(), MeanSum(), fl.Rows(), fl.Columns(), fl.Scalar(), fl.Blocks(fl.Scalar(), 3, 3)]
bases = {"none": lambda s: s} | {sides: partial(fl.Rotated, sides=sides) for sides in ("L", "R", "LR")}
cells = {(spectrum, sides): rotated(spectrum) for spectrum in inner for sides, rotated in bases.items()}
named = {structure: name for name, structure in STRUCTURES.items()}
named |= {fl.Rotated(fl.Marginals(), "L"): "adafacdiag", fl.Rotated(fl.RowColumn(), "L"): "s x m, one step"}
# A basis that the eigenvalues do not know makes no difference.
named |= {fl.Rotated(fl.Scalar(), sides): "sgd" for sides in ("L", "R", "LR")}
named |= {fl.Rotated(fl.Rows(), "R"): "rows", fl.Rotated(fl.Rows()): "muon"}
named |= {fl.Rotated(fl.Columns(), "L"): "columns", fl.Rotated(fl.Columns()): "right whitening"}


# %%
def typical(structure):
    return np.median([error(structure, fisher) for fisher in fishers.values()])


median = {cell: typical(structure) for cell, structure in cells.items()}
table = np.array([[median[spectrum, sides] for sides in bases] for spectrum in inner])
names = [[named.get(cells[spectrum, sides], "") for sides in bases] for spectrum in inner]
plotting.numbers(table, [str(spectrum) for spectrum in inner], list(bases), label="median relative error", notes=names)

# %% [markdown]
# Which of the unnamed are worth a name? Those that are nearer than every named one of no more memory, those of low rank
# and the Kronecker products included. Memory is what `fl.state_size` counts: bases, covariances and averaged statistics.


# %%
def memory(structure):
    return fl.state_size(structure, query.shape)


known = [(typical(structure), memory(structure), name) for name, structure in STRUCTURES.items()]
unnamed = [(structure, median[cell]) for cell, structure in cells.items() if structure not in named]
for structure, found in sorted(unnamed, key=lambda each: memory(each[0])):
    nearest, _, name = min(rival for rival in known if rival[1] <= memory(structure))
    verdict = "NEARER" if found < nearest else "no"
    print(f"{structure!s:36}{memory(structure):4} numbers: {found:.3f}, and {name} {nearest:.3f}: {verdict}")

# %% [markdown]
# Hardly any: of those that the whole run tries, only the 3 x 3 tiles are nearer than gradient descent, the one rival so small.
# One more thing to read from the table: how little is lost from the first row to the second. In a basis where $V$ is
# nearly of rank one, $m + n$ eigenvalues do for $mn$. An optimizer that averages fits, and not statistics, keeps only
# those of them:

# %%
for spectrum in (fl.Diagonal(), fl.RowColumn()):
    structure = cells[spectrum, "LR"]
    kept = fl.state_size(structure, query.shape, average="fits")
    print(f"{structure!s:24} error {median[spectrum, 'LR']:.3f}, bases and eigenvalues {kept} numbers")

# %% [markdown]
# Before one of them is used, it should be trained, as above: nearness alone has misled us once.

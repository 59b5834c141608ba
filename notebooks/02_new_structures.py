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
# Shampoo *multiplies* the two covariances of a gradient, $\mathbb{E}[G^T G]^{1/2} \otimes \mathbb{E}[GG^T]^{1/2}$, up
# to a factor. What if they were *added*? This notebook builds that family, which fimlens does not have. It goes from
# the idea to a closed form, to the laws that refuse the first attempt, to the numeric optimum, and to a training.
# Then we look at other combinations that have no name.

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
# So we only write down which eigenvalues are allowed, as a `Spectrum`; `Rotated` adds the bases. Of the second
# moments $V$ we keep the means of rows and columns, $m + n$ numbers, as Shampoo does.


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
# This shows two things. First, the coordinates are redundant: a number can move from all $q_i$ to all $s_j$ without
# changing $\tilde F$. Second, every solution has $q_i + s_j = r_i + c_j - \bar v$. Here $r$ and $c$ are the means of
# rows and columns, and $\bar v$ is the mean of all. We share $\bar v$ evenly between $q$ and $s$:


# %%
class FreeSum(KroneckerSum):
    def project(self, moments):
        rows, columns = moments
        return Terms(rows - rows.mean() / 2, columns - columns.mean() / 2)


print(fl.derive(FreeSum(), 2, 2).fit)

# %% [markdown]
# This solves the equations, and still is not a valid fit: an eigenvalue can be negative.
#
# ## The laws refuse it
#
# The laws find the same fault numerically. `fl.check` tests nineteen laws of a structure on random Fishers, here of a
# 3 x 4 matrix.

# %%
try:
    fl.check(FreeSum(), **LAWS)
except fl.LawBroken as broken:
    print(broken)

# %% [markdown]
# If a row and a column are both weak, $r_i + c_j < \bar v$, then the stationary point has a *negative* eigenvalue.
# No Fisher has one, and its root is not a number.
#
# So we look for the nearest member with $q, s \geq 0$. This loses nothing: if every $q_i + s_j \geq 0$, a number can
# be moved from one to the other so that both are nonnegative. The problem is convex. Given one of the two, the best
# other one is
#
# $$q_i = \max(0,\; r_i - \bar s), \qquad s_j = \max(0,\; c_j - \bar q).$$
#
# Each needs only the *mean* of the other, so we search for two numbers only.


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
# `rotated_claim` claims more: the eigenvectors of $\mathbb{E}[GG^T]$ and $\mathbb{E}[G^T G]$ are the *best* bases
# for this spectrum. For SOAP's they are not. The reason: given $R$, the nearest $M \succeq 0$ is
# $\frac{1}{n}\mathbb{E}[GG^T] - \frac{1}{n}\mathrm{tr}(R)\,I$ with its negative eigenvalues set to zero. Its
# eigenvectors are those of $\mathbb{E}[GG^T]$ for every $R$. The law of claims tries to refute this, by gradients over
# bases and eigenvalues and by the solver:

# %%
print(fl.check(fl.Rotated(NearestSum()), **LAWS))

# %% [markdown]
# So we know the nearest Kronecker sum exactly. It has Shampoo's bases and takes Shampoo's memory.
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
# `fl.scale_by_structure` makes an Optax transform of any structure. We train a small model with each of them, at a
# few learning rates. The best rate has the least loss on files that were held out, in nats a byte.

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
# The training losses, smoothed over ten steps:


# %%
def smooth(losses):
    return np.convolve(losses, np.ones(10) / 10, mode="valid")


plotting.curves({name: smooth(losses) for name, losses in trainings.items()}, x="step", y="loss (nats per byte)")

# %% [markdown]
# ## Nearest is not best
#
# The nearest sum is nearer to $F$ than Shampoo is, and it trains worse. The eigenvalues show why. An optimizer
# *divides* by their roots, while $\|\tilde F - F\|_F^2$ hardly depends on the small ones. The nearest sum therefore
# has eigenvalues of zero, wherever $q_i = s_j = 0$.

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
# If a gradient has a part in such a direction, the step is that part divided by $\epsilon$. If this is the cause, a
# larger $\epsilon$ should help; the default is $10^{-8}$.

# %%
trainings["nearest sum, eps 0.001"] = trained("nearest sum, eps 0.001", contest["nearest sum"], eps=1e-3)

# %% [markdown]
# It does, for the most part. Gong et al. (2025, arXiv 2502.07752) derive optimizers by the Frobenius norm. It says
# little about training if eigenvalues may be zero.
#
# ## Nearest in another sense
#
# The zeros come from the norm, not from the family. Two other divergences, von Neumann's and LogDet, do not allow
# them: LogDet is infinite if $\tilde F$ has an eigenvalue of zero along a gradient. It weighs ratios of eigenvalues
# instead of differences. The lens measures in all three. An error in shares is 1 for the nearest multiple of the
# identity. LogDet's nats are a gradient's negative log-likelihood, less that under this multiple.

# %%
for row in fl.compare(contest, query, solve_up_to=0).rows:
    seen = "   ".join(f"{sense} {near.error:.3f} ({near.unit})" for sense, near in row.divergences.items())
    print(f"{row.name:18}{seen}")

# %% [markdown]
# We have no closed form of the sum in other divergences. `fl.solve` takes every divergence that has a minimum; LogDet
# has none here, because F is singular. The smaller the degree, the more a small eigenvalue counts, and the fewer are
# zero:

# %%
for sense in (fl.Frobenius(), fl.VonNeumann(), fl.Beta(0.5)):
    best = fl.solve(contest["nearest sum"], query, divergence=sense, starts=1).params
    L = np.asarray(contest["nearest sum"].eigenvalues(best))
    ratio = L / L.max()
    print(f"{sense!s:14}{np.sum(ratio < 1e-9):3} of {L.size} eigenvalues are zero; least / largest is {ratio.min():.0e}")

# %% [markdown]
# ## The repair
#
# We minimise a bound instead of the distance, as Shampoo does. The mean of the two whitening families,
# $L_{ij} = (r_i + c_j)/2$, is zero only if both the row and the column are zero. By convexity
#
# $$\|\frac{1}{2}(\mathcal{R} + \mathcal{C}) - V\|^2 \;\leq\;
# \frac{1}{2}\|\mathcal{R} - V\|^2 + \frac{1}{2}\|\mathcal{C} - V\|^2 ,$$
#
# where $\mathcal{R}$ is constant along rows and $\mathcal{C}$ along columns. Each term is least at the means. So the
# claim is `BOUND`, and `objective` is the bound. This fit is the arithmetic mean of two numbers; Shampoo takes their
# geometric mean.


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
# A spectrum and a basis make an optimizer, and many of these have names. `Diagonal` without a basis is Adam, and in
# both bases it is SOAP. `Rows` in the left basis is Muon. The table has all combinations: the median error over all
# attention matrices, and the name if there is one. `Blocks(Scalar(), 3, 3)` has one number for each of 3 x 3 tiles.

# %%
inner = [fl.Diagonal(), fl.RowColumn(), fl.GeometricMarginals(), NearestSum()]
if not QUICK:
    inner += [fl.Marginals(), MeanSum(), fl.Rows(), fl.Columns(), fl.Scalar(), fl.Blocks(fl.Scalar(), 3, 3)]
bases = {"none": lambda s: s} | {sides: partial(fl.Rotated, sides=sides) for sides in ("L", "R", "LR")}
cells = {(spectrum, sides): rotated(spectrum) for spectrum in inner for sides, rotated in bases.items()}
named = {structure: name for name, structure in STRUCTURES.items()}
named |= {fl.Rotated(fl.Marginals(), "L"): "adafacdiag", fl.Rotated(fl.RowColumn(), "L"): "s x m, one step"}
# A basis makes no difference to eigenvalues that are constant along it.
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
# Which of the others deserve a name? Those that are nearer than every named one that takes no more memory. These
# include the low-rank ones and the Kronecker products. Memory is what `fl.state_size` counts: bases, covariances and
# averaged statistics.


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
# Hardly any. In the whole run only the 3 x 3 tiles do: they are nearer than gradient descent, their only rival of
# that size. The table also shows how little is lost from the first row to the second. In a basis where $V$ is nearly
# of rank one, $m + n$ eigenvalues are nearly as good as $mn$. An optimizer that averages fits instead of statistics
# keeps only these:

# %%
for spectrum in (fl.Diagonal(), fl.RowColumn()):
    structure = cells[spectrum, "LR"]
    kept = fl.state_size(structure, query.shape, average="fits")
    print(f"{structure!s:24} error {median[spectrum, 'LR']:.3f}, bases and eigenvalues {kept} numbers")

# %% [markdown]
# Before you use one of them, train with it, as above: the nearest structure was not the best one here.

# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Verify the papers
#
# Gong et al. (2025, arXiv 2502.07752), [G], derive optimizers as structured approximations of the Fisher. This
# notebook verifies their statements about these approximations: Propositions 1 to 3 and Theorems 3.1 to 3.3, 5.1 and
# D.1. It does so in two ways. It does not verify what they say about convergence in training.
#
# *Proved*: SymPy decides each step of an argument. Its expressions are what the shipped JAX functions return if they
# are evaluated on symbols. A proved step holds for all entries, at the sizes named; the text argues for every size.
#
# *Seen*: beside each proof is a picture or a number, from the empirical Fisher of a small layer. The last part lists
# the places where the published algorithms cannot run as written, and what each slip would cause.

# %%
import os
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from IPython.display import Markdown, display
from jax.flatten_util import ravel_pytree

import fimlens as fl
from fimlens import derivations, plotting
from fimlens.costs import memory
from fimlens.experiments import trial
from fimlens.language_model import llama, text
from fimlens.proofs.evaluate import objective, squared_error
from fimlens.proofs.theorem import load_derivations
from fimlens.proofs.verdicts import Proof, try_to_prove
from fimlens.structures.trackers import Side

# %matplotlib inline
jax.config.update("jax_enable_x64", True)

# %% [markdown]
# On two cores this takes some minutes. With `FIMLENS_QUICK=1` in the environment, as in the project's own tests, each
# statement is proved at one size, and fewer random members, Fishers and ranks are tried.

# %%
QUICK = os.environ.get("FIMLENS_QUICK") == "1"
RIVALS = 100 if QUICK else 400


def sized(size):
    return "{} x {}".format(*size)


# %% [markdown]
# ## How a statement is verified
#
# A *derivation* is a file of the package. Its docstring states a theorem and gives the argument, and its steps are what
# SymPy decides. `verify` runs some derivations and shows the argument, each step, and the sizes at which it holds.

# %%
proofs = {}


def verify(*names):
    for name in names:
        derivation = load_derivations(derivations)[name]
        verdicts = [try_to_prove(derivation, size) for size in (derivation.SIZES[:1] if QUICK else derivation.SIZES)]
        proofs[name] = proved = Proof(derivation, verdicts)
        title, *argument = (paragraph.replace(" (x) ", " ⊗ ") for paragraph in proved.paragraphs)
        display(Markdown("\n\n".join([f"**{title}**", *argument])))
        everywhere = [sized(verdict.size) for verdict in verdicts]
        holds = {}
        for verdict in verdicts:
            for step in verdict.steps:
                holds.setdefault(step.description, []).append(sized(verdict.size) if step.holds else "FAILS")
        for description, where in list(holds.items())[:12]:
            print(f"  {description}" + ("" if where == everywhere else f"  ({', '.join(where)})"))
        if len(holds) > 12:
            print(f"  and {len(holds) - 12} steps more, for other structures")
        verdict = "EVERY STEP HOLDS" if proved.proved else "NOT PROVED"
        print(f"{verdict}: {len(holds)} steps, all entries at {', '.join(everywhere)}; {proved.seconds:.1f} s")


# %% [markdown]
# We begin with three facts that all others need: how a Kronecker product acts, how the error splits, and that an
# optimizer with a member $\tilde F$ multiplies by $\tilde F^{-1/2}$.

# %%
verify("kronecker_vec", "error_split", "square_root_ngd")

# %% [markdown]
# ## A Fisher to look at
#
# We train a language model of bytes for a moment, and compute the empirical Fisher of one of its matrices over 96
# windows of text. It is small enough to be written out. We scale it to $\|F\| = 1$, so that every error below is
# relative.

# %%
config = llama.Config(hidden=6, mlp=8, heads=1, layers=1)
params, _ = trial.train(optax.adam(1e-2), steps=60, config=config)
windows = next(text.batches(text.read(text.standard_library()), size=96, length=trial.WINDOW, seed=1))
batches = [jnp.asarray(windows, jnp.int32)]
fisher = fl.empirical_fisher(partial(llama.loss, config), params, batches, matrices=["layers/0/mlp/gate"])["layers/0/mlp/gate"]
fisher = fisher.scaled(1 / jnp.sqrt(fisher.norm_squared))
m, n = fisher.shape
F = fisher.dense()
print(f"{fisher!r}\nF is {len(F)} x {len(F)}, of norm {jnp.linalg.norm(F):.3f} and rank {jnp.linalg.matrix_rank(F)}")

# %% [markdown]
# A closed form $\tilde F$ claims that no member of its family is nearer. We test that: we go from $\tilde F$ to random
# members $H$ at all distances, and compare. `structure.chart` makes a member of any numbers. In the pictures a blue
# point is a member that is farther from $F$ than $\tilde F$ is, and an orange cross is one that is nearer. The height
# is the difference.


# %%
def everything(z):
    return z


@cache
def rivals(structure, moving=everything, measure=squared_error):
    """How far random members are from the closed form, and how much worse they are by a measure, the squared error."""
    member = fl.fit(structure, fisher)

    def compared(key, member, fisher):
        flat, unravel = ravel_pytree(member)
        direction, size = jax.random.split(key)
        z = jax.random.normal(direction, flat.shape) * 10 ** jax.random.uniform(size, minval=-4, maxval=-0.5)
        rival = structure.chart(moving(unravel(z)), member)
        distance = jnp.linalg.norm(structure.dense(rival) - structure.dense(member))
        return distance, measure(structure, rival, fisher) - measure(structure, member, fisher)

    keys = jax.random.split(jax.random.key(0), RIVALS)
    return jax.jit(jax.vmap(compared, (0, None, None)))(keys, member, fisher)


def walks(panels, farther=r"farther from $F$ by", nearer="nearer"):
    """A panel for each title with the arguments of `rivals`; a line at the square of the distance."""
    drawn = plotting.sheet(1, len(panels), width=3, height=2.9)
    for axes, (title, arguments) in zip(drawn.axes, panels.items(), strict=True):
        distance, excess = rivals(*arguments)
        wins = excess < 0
        axes.loglog(distance[~wins], excess[~wins], ".", color=plotting.BASIS, markersize=3)
        axes.loglog(distance[wins], -excess[wins], "x", color=plotting.SPECTRUM, markersize=4)
        ends = np.array([distance.min(), distance.max()])
        axes.loglog(ends, ends**2, color="0.6", linewidth=1, zorder=0)
        axes.set(title=f"{title}:\n{int(wins.sum())} of {len(wins)} are {nearer}", xlabel=r"$\|H - \tilde F\|$")
    drawn.axes[0].set_ylabel(farther)
    return drawn


# %% [markdown]
# ## Proposition 1: Adam

# %%
verify("adam", "projections")

# %% [markdown]
# ## Proposition 2: whitening and normalisation

# %%
verify("whitening", "normalisation", "muon", "lars_lamb")

# %% [markdown]
# All of these families are the positive part of a *linear space*, and $\tilde F$ is the projection of $F$ on it. So we
# can see more than that no member is nearer: by Pythagoras
#
# $$\|H - F\|^2 - \|\tilde F - F\|^2 = \|H - \tilde F\|^2$$
#
# for each of them, however whitening's bases are turned. The grey line is this equation.

# %%
linear = {"Adam": fl.Diagonal(), "columns": fl.Columns(), "whitening": fl.Rotated(fl.Rows(), "L")}
walks({name: (structure,) for name, structure in linear.items()})

# %%
for name, structure in linear.items():
    distance, excess = rivals(structure)
    print(f"{name:10}the largest deviation from the line is {jnp.abs(excess / distance**2 - 1).max():.0e} of it")

# %% [markdown]
# Muon whitens its momentum by that formula, with one gradient as the whole Fisher. It computes the root by five steps
# of a Newton-Schulz iteration, whose coefficients do not converge. How near is it? The exact root makes every
# singular value 1.

# %%
gradient = jax.random.normal(jax.random.key(1), (64, 96)) * jnp.logspace(0, -2, 64)[:, None]
drawn = plotting.sheet(height=3)
axes = drawn.axes[0]
for k, root in enumerate(("exact", "newton-schulz")):
    muon = fl.scale_by_muon(beta=0.0, nesterov=False, root=root, scale="fisher")
    update, _ = muon.update(gradient, muon.init(gradient))
    values = jnp.linalg.svd(update, compute_uv=False) / 96**0.5
    axes.plot(values, plotting.STYLES[k], color=plotting.COLOURS[k], label=root)
    print(f"{root:14}singular values over the root of n, from {values.min():.3f} to {values.max():.3f}")
axes.set(xlabel="singular values of the update, largest first", ylabel=r"size over $\sqrt{n}$", ylim=(0, 1.4))
axes.legend(frameon=False)
drawn

# %% [markdown]
# ## Theorem 3.1: Shampoo minimises a bound

# %%
verify("shampoo_bound")

# %% [markdown]
# A loose bound says little. The picture has its two sides. It also has the error of the bound's minimiser, beside that
# of the nearest Kronecker product.

# %%
families = {
    "Shampoo": fl.Rotated(fl.GeometricMarginals()),
    "Shampoo squared": fl.Rotated(fl.Marginals()),
    "the nearest": fl.Kronecker(),
}


def error(structure, fisher):
    """||F~ - F||^2 / ||F||^2 of the closed form."""
    return float(fl.gap(structure, fl.fit(structure, fisher), fisher).relative)


a, b = (error(fl.Rotated(*side), fisher) ** 0.5 for side in ((fl.Columns(), "R"), (fl.Rows(), "L")))
print(f"||F~ - F||^2 <= {(m * n) ** 0.5 * (a * b + a + b):.1f} by the theorem")
for name, family in families.items():
    print(f"||F~ - F||^2  = {error(family, fisher):.4f} for {name}")

# %% [markdown]
# So random Kronecker products around Shampoo's are often nearer to $F$. By Shampoo's own objective, $a^2 + b^2$ with
# the bound's two distances, none is better.

# %%
shampoo = families["Shampoo"]
walks({"Shampoo": (shampoo,), "the nearest": (families["the nearest"],), "Shampoo squared": (families["Shampoo squared"],)})

# %%
walks({"Shampoo, by the bound": (shampoo, everything, objective)}, r"worse by, of $a^2 + b^2$", "better")

# %% [markdown]
# The next derivations show what the nearest Kronecker product is, and in which divergence Shampoo squared is nearest:

# %%
verify("van_loan_pitsianis", "shampoo_squared")

# %% [markdown]
# The pictures above are of one $F$. The next one has random Fishers, of correlated gradients of a 4 x 5 matrix. Some
# are near a Kronecker product and some are far from one. Each point is one Fisher.


# %%
def random_fisher(seed):
    """Gradients A Z B, of which the first few weigh most where the spread is large."""
    keys = jax.random.split(jax.random.key(seed), 4)
    A, B = jax.random.normal(keys[0], (4, 4)), jax.random.normal(keys[1], (5, 5))
    spread = jax.random.normal(keys[3], (24, 1, 1)) * (seed % 4)
    return fl.Fisher.from_gradients(jnp.exp(spread) * (A @ jax.random.normal(keys[2], (24, 4, 5)) @ B))


fishers = [random_fisher(seed) for seed in range(12 if QUICK else 60)]
errors = {name: np.array([error(family, each) for each in fishers]) for name, family in families.items()}
drawn = plotting.sheet(width=4.2, height=4)
axes = drawn.axes[0]
axes.loglog(errors["the nearest"], errors["Shampoo"], ".", color=plotting.BASIS, label="Shampoo")
axes.loglog(errors["the nearest"], errors["Shampoo squared"], "x", color=plotting.SPECTRUM, label="Shampoo squared")
ends = [errors["the nearest"].min(), 1]
axes.loglog(ends, ends, color="0.6", linewidth=1, label="the nearest itself")
axes.set(xlabel=r"error of the nearest Kronecker product, $\|\tilde F - F\|^2/\|F\|^2$", ylabel="error of the other")
axes.legend(frameon=False)
drawn

# %%
for name in ("Shampoo", "Shampoo squared"):
    ratio = errors[name] / errors["the nearest"]
    print(f"{name:16}{ratio.min():.2f} to {ratio.max():.1f} times the nearest's error, median {np.median(ratio):.2f}")

# %% [markdown]
# An independent computation confirms the nearest one. Rearrange $F$ so that entry $F_{ij,kl}$ is in row $(j, l)$ and
# column $(i, k)$. With its leading singular value $\sigma_1$, the error is $\|F\|^2 - \sigma_1^2$.

# %%
rearranged = np.asarray(F).reshape(n, m, n, m).transpose(0, 2, 1, 3).reshape(n * n, m * m)
by_svd = 1 - np.linalg.svd(rearranged, compute_uv=False)[0] ** 2
print(f"error {by_svd:.12f} by NumPy's SVD, {error(fl.Kronecker(), fisher):.12f} by fl.Kronecker")

# %% [markdown]
# ## Theorems 3.2 and 3.3: one-sided SOAP and SOAP
#
# Both first find a basis from an easier problem, and then take the best eigenvalues in it.

# %%
verify("osoap", "soap", "block_diagonal")

# %% [markdown]
# If *the bases are given*, Pythagoras holds again. If *the bases turn*, some members close by are nearer: the bases
# are not even stationary. *One lens* measures how much nearer the joint optimum is.


# %%
def bases_given(z):
    return fl.Params(jax.tree.map(jnp.zeros_like, z.frame), z.coords)


one_sided, two_sided = fl.Rotated(fl.Diagonal(), "L"), fl.Rotated(fl.Diagonal())
walks(
    {
        "one-sided, basis given": (one_sided, bases_given),
        "one-sided": (one_sided,),
        "SOAP, bases given": (two_sided, bases_given),
        "SOAP": (two_sided,),
    }
)

# %% [markdown]
# ## Proposition 3: RACS, and Theorem D.1

# %%
verify("racs", "diagonal_kronecker", "adafactor")

# %% [markdown]
# A sweep is a step of power iteration. So the distance to the limit should shrink by $(\sigma_2/\sigma_1)^2$ each time.
# Here $\sigma$ are the singular values of $V = \mathbb{E}[G^2]$. [G] takes five sweeps.

# %%
V = fisher.second_moment()
sigma = jnp.linalg.svd(V, compute_uv=False)


def unit(s):
    return (s / jnp.linalg.norm(s)).ravel()


limit = unit(fl.fit(fl.RowColumn(), fisher).coords[1])
sweeps = np.arange(1, 11)
angles = [jnp.linalg.norm(unit(fl.fit(fl.RowColumn(sweeps=int(k)), fisher).coords[1]) - limit) for k in sweeps]
drawn = plotting.sheet(height=3.2)
axes = drawn.axes[0]
axes.semilogy(sweeps, angles, "o", color=plotting.BASIS, label="to where the shipped iteration ends")
rate = (sigma[1] / sigma[0]) ** 2
axes.semilogy(sweeps, angles[0] * rate ** (sweeps - 1), color=plotting.SPECTRUM, label=r"falling as $(\sigma_2/\sigma_1)^{2k}$")
axes.set(xlabel="sweeps", ylabel="distance of unit vectors $s$")
axes.legend(frameon=False)
drawn

# %%
singular = unit(jnp.linalg.svd(V)[2][0])
print(f"the limit is V's leading singular vector to {jnp.linalg.norm(limit - singular * jnp.sign(singular.sum())):.0e}")
print(f"after [G]'s five sweeps the distance is {angles[4]:.0e}, the rate being {rate:.4f} a sweep")

# %% [markdown]
# This family is not a linear space, so Pythagoras need not hold. Still no member is nearer. Adafactor takes another
# member of the same family. It is *not* the nearest in the Frobenius norm, and it is the best in its own divergence.

# %%
walks({"RACS": (fl.RowColumn(),), "S ⊗ M": (fl.DiagonalKronecker(),), "Adafactor": (fl.Marginals(),)})

# %%
walks({"Adafactor, by its divergence": (fl.Marginals(), everything, objective)}, "divergence above Adafactor's", "better")

# %% [markdown]
# ## Theorem 5.1: Alice's compensation

# %%
verify("compensation", "alice", "galore")

# %% [markdown]
# If $U$ is given, the compensation is the nearest, and so are all eigenvalues together. $U$ itself has the leading
# eigenvectors of $\mathbb{E}[GG^T]$, and again solves an easier problem.


# %%
def tail_alone(z):
    kept = bases_given(z)
    return fl.Params(kept.frame, kept.coords._replace(lead=jnp.zeros_like(z.coords.lead)))


alice = fl.LowRank(fl.Diagonal(), 2)
walks(
    {
        "the compensation, U given": (alice, tail_alone),
        "all eigenvalues, U given": (alice, bases_given),
        "U as well": (alice,),
    }
)

# %% [markdown]
# What is the complement worth? GaLore drops it. One number a matrix keeps a little of it, and Alice keeps one number a
# column.

# %%
complements = {"dropped (GaLore)": fl.Drop(), "one number": fl.Scalar(), "one a column (Alice)": fl.Columns()}
ranks = range(1, 3 if QUICK else m + 1)
by_rank = {name: [error(fl.LowRank(fl.Diagonal(), r, rest), fisher) for r in ranks] for name, rest in complements.items()}
dropped, *_, kept = by_rank.values()
print(f"at r = 2 the complement is worth {dropped[1] - kept[1]:.4f}, of an error of {dropped[1]:.4f}")
plotting.curves(by_rank, x="rank $r$ of the subspace", y=r"$\|\tilde F - F\|^2 \,/\, \|F\|^2$")

# %% [markdown]
# This is its worth in the Frobenius norm. An optimizer divides by the roots of eigenvalues, so small ones weigh more.
# The ablation of Alice in `benchmarks/README.md` measures the worth of the compensation in training.
#
# ## Slips in the print
#
# Here we run Alice's algorithms as they are printed. The gradients have a mean and noise in four directions of sixteen,
# and a little noise in all of them.

# %%
keys = iter(jax.random.split(jax.random.key(7), 20))
rows, columns, rank, count = 16, 24, 4, 40
directions, _ = jnp.linalg.qr(jax.random.normal(next(keys), (rows, rank)))
lead = jax.random.normal(next(keys), (rank, columns)) + jax.random.normal(next(keys), (count, rank, columns))
gradients = 2 * directions @ lead + 0.5 * jax.random.normal(next(keys), (count, rows, columns))


def captured(U):
    """The share of the gradients' energy that lies along U."""
    return float(jnp.sum((U.T @ gradients) ** 2) / jnp.sum(gradients**2))


# %% [markdown]
# ### $U_0 = 0$ makes the first iteration void
#
# $Q \cdot 0 = 0$, and the QR decomposition of a zero matrix does not depend on $Q$. fimlens starts from the leading
# singular vectors of the first gradient.

# %%
void, _ = jnp.linalg.qr(jnp.zeros((rows, rank)))
tracker = fl.SubspaceIteration(leading=rank, switch="none")
first = fl.BasisStep(jax.random.key(0), first=True)
started = tracker.update(None, tracker.init(rows, rank), Side(fl.Fisher.of_one(gradients[0])), first)
print(f"captured: {captured(void):.2f} from zero, {captured(started):.2f} from the first gradient")

# %% [markdown]
# ### The switch returns $V$ instead of $UV$
#
# Algorithm 10 takes one subspace iteration, $U \leftarrow \mathrm{QR}(Q\,U)$, solves the small eigenproblem
# $U^T Q\,U = V \Lambda V^T$, and returns $V$, which is $r \times r$. It is not a basis in $\mathbb{R}^m$; the product
# $UV$ is. If $V$ were filled up with zeros, it would select the first $r$ rows, whatever the gradients are.

# %%
Q = jnp.mean(gradients @ gradients.mT, 0)
U, _ = jnp.linalg.qr(Q @ started)
_, V = jnp.linalg.eigh(U.T @ Q @ U)
print(f"V is {sized(V.shape)}, a basis for these gradients is {rows} x {rank}")
print(f"captured: {captured(jnp.pad(V, ((0, rows - rank), (0, 0)))):.2f} by V and zeros, {captured(U @ V):.2f} by U V")

# %% [markdown]
# ### Moments are kept while the basis moves
#
# Momentum and second moments are numbers *along* the columns of $U$. When $U$ is refreshed they stay as they are,
# although the directions have changed. Even the sign of an eigenvector, which is arbitrary, then changes the update.
# The two runs here differ only in one sign: at the refresh after twenty steps, one of four columns has the other
# sign.


# %%
class Flipped(fl.SubspaceIteration):
    """The same subspace, its first vector with the other sign."""

    def update(self, average, kept, side, step):
        return fl.SubspaceIteration.update(self, average, kept, side, step).at[:, 0].multiply(jnp.where(step.first, 1, -1))


def updates(kind, moments):
    tx = fl.scale_by_low_rank(
        fl.LowRank(fl.Diagonal(), rank, tracker=kind(leading=rank, switch="none")),
        b2=0.9,
        alpha_c=0.4,
        update_interval=20,
        moments=moments,
        bias_correction=False,
    )
    return jax.lax.scan(lambda state, G: tx.update(G, state)[::-1], tx.init(gradients[0]), gradients)[1]


# %%
def size(updates):
    return jnp.linalg.norm(updates, axis=(1, 2))


apart = {}
for moments in ("keep", "rotate", "reset"):
    mine, other = (updates(kind, moments) for kind in (fl.SubspaceIteration, Flipped))
    apart[moments] = size(mine - other) / size(mine)
    print(f"{moments:8}updates differ by up to {apart[moments].max():.2g} of themselves")
plotting.curves(apart, x="step", y="how far updates are apart, of their norm")

# %% [markdown]
# fimlens fixes the signs: the largest entry of a column is positive. The option `moments` says what a refresh does with
# the moments. `"keep"` leaves them as they are, `"rotate"` turns them into the new basis, and `"reset"` sets them to zero.
# `"reset"` is the default of `fl.alice`, whose docstring says why.
#
# ### RACS' first step is ten times too large
#
# Its factors are averages that start at zero and are not corrected. So at the first step each is $1 - \beta$ of what
# it should be, and the update is $1/(1 - \beta)$ times too large. The limiter bounds the *growth* of a norm, so it
# does not limit the first one.

# %%
norms = {}
for name, corrected in (("as printed", False), ("bias-corrected", True)):
    tx = fl.scale_by_racs(alpha=1.0, bias_correction=corrected)
    _, moved = jax.lax.scan(lambda state, G, tx=tx: tx.update(G, state)[::-1], tx.init(gradients[0]), gradients)
    norms[name] = size(moved) / (rows * columns) ** 0.5
print(f"the first update is {norms['as printed'][0] / norms['bias-corrected'][0]:.2f} times the corrected one")
plotting.curves(norms, x="step", y="root mean square of an update")

# %% [markdown]
# Only a warm-up of the rate protects from this. fimlens offers `bias_correction=True`, which is off by default, as in
# the paper. `benchmarks/README.md`, *Defaults of RACS*, measures which of the two trains better.
#
# ### One zero update freezes a matrix
#
# The limiter scales by $\eta = \gamma / \max(\|U\|/\phi, \gamma)$ and keeps $\phi = \eta \|U\|$. After one update of
# zero, $\phi = 0$. Then $\eta = 0$, and all later updates are zero. One batch without a gradient for a matrix is
# enough.

# %%
untouched = gradients.at[10].set(0)


def printed_limiter(phi, U, gamma=1.01):
    norm = jnp.linalg.norm(U)
    eta = gamma / jnp.maximum(norm / phi, gamma)
    return eta * norm, eta * norm


def repaired_limiter(state, U):
    update, state = limiter.update(U, state)
    return state, jnp.linalg.norm(update)


limiter = fl.limit_norm_growth(1.01)
literal = jax.lax.scan(printed_limiter, jnp.array(jnp.inf), untouched)[1]
repaired = jax.lax.scan(repaired_limiter, limiter.init(gradients[0]), untouched)[1]
print(f"of the {count - 11} updates after the zero one, {int((literal[11:] == 0).sum())} are zero as printed,", end=" ")
print(f"{int((repaired[11:] == 0).sum())} with fimlens, where it leaves the limiter as it was")

# %% [markdown]
# ### In float32 the residual cancels
#
# The compensation divides by the root of $p_j = \|g_j\|^2 - \|U^T g_j\|^2$. If a gradient lies in the subspace, both
# terms are equal up to rounding, and their difference has either sign.

# %%
tall, wide, inside = 64, 256, 16
frame = jnp.linalg.qr(jax.random.normal(next(keys), (tall, inside)))[0]
G = (frame @ jax.random.normal(next(keys), (inside, wide))).astype(jnp.float32)
U = jnp.linalg.svd(G, full_matrices=False)[0][:, :inside]
p = jnp.sum(G**2, 0) - jnp.sum((U.T @ G) ** 2, 0)
compensation = (tall - inside) ** 0.5 * (G - U @ (U.T @ G)) / jnp.sqrt(p)
negative, lost = int((p < 0).sum()), int(jnp.isnan(compensation).sum())
print(f"as printed: {negative} of {wide} columns have p < 0, {lost} entries are not numbers")
tx = fl.scale_by_low_rank(fl.LowRank(fl.Diagonal(), inside, tracker=fl.Singular()), gamma=None)
single, double = (jax.jit(tx.update)(G, tx.init(G))[0] for G in (G, G.astype(jnp.float64)))
off = jnp.linalg.norm(single - double) / jnp.linalg.norm(double)
print(f"fimlens: {int(jnp.isnan(single).sum())} are not numbers, and the update is that of float64 to {off:.0e}")

# %% [markdown]
# fimlens gives no compensation to a column with less than $10^{-5}$ of its square outside the subspace.
#
# ### In float32 RACS knows few scales
#
# Its sweeps take sums of fourth powers of a gradient, which float32 holds only in a narrow range. An update should not
# depend on the gradient's scale at all.


# %%
def printed_racs(G, sweeps=5):
    V, q = G**2, jnp.ones(len(G), G.dtype)
    for _ in range(sweeps):
        s = V.T @ q / (q @ q)
        q = V @ s / (s @ s)
    return G / jnp.sqrt(q)[:, None] / jnp.sqrt(s)


racs = fl.scale_by_structure(fl.RowColumn(sweeps=5), b1=None, b2=None, eps=0.0)
G = gradients[0].astype(jnp.float32)
at_one = printed_racs(G)
for scale in (1e-15, 1e-10, 1e-5, 1, 1e5, 1e10, 1e15):
    found = {"as printed": printed_racs(scale * G), "fimlens": racs.update(scale * G, racs.init(G))[0]}
    off = {name: float(jnp.linalg.norm(update - at_one) / jnp.linalg.norm(at_one)) for name, update in found.items()}
    print(f"scale {scale:.0e}:", ", ".join(f"{name} off by {error:.0e}" for name, error in off.items()))

# %% [markdown]
# ### Where nothing is left, and where nothing is seen
#
# The published algorithm has no $\epsilon$: a gradient of zero gives $0/0$. If $r = m$ the compensation is $0/0$ too.
# And $r - l$ new directions cannot be drawn from $m - r$ if these are fewer.

# %%
cases = {
    "a first gradient of zero": (rank, 2, 0 * gradients[0]),
    "r = m": (rows, 2, gradients[0]),
    "r - l > m - r": (rows - 2, 2, gradients[0]),
    "m > n": (rank, 2, gradients[0].T),
}
for name, (r, leading, G) in cases.items():
    tx = fl.scale_by_alice(rank=r, leading=leading, update_interval=1)
    step, state = jax.jit(tx.update), tx.init(G)
    for _ in range(3):
        update, state = step(G, state)
    print(f"{name:26}{'finite' if bool(jnp.isfinite(update).all()) else 'NOT FINITE'}, of norm {jnp.linalg.norm(update):.2f}")

# %% [markdown]
# ## Memory
#
# [G] states how much memory weights and states of its 1.3B run take, in GiB and bfloat16. "Counted" is the state that
# `init` makes, at two bytes a number, from shapes alone. "Formula" counts [G]'s numbers. It counts Alice's $\tilde Q$
# and $p$ at four bytes, as [G]'s figure needs.

# %%
shapes = jax.eval_shape(partial(llama.init, llama.CONFIGS["llama-1b"]), jax.random.key(0))
names = ["adam", "muon", "racs", "galore", "fira", "apollo", "alice0", "alice"]
stated = [row for row in memory.account(shapes, names, model="llama-1b") if row.paper is not None]
print(f"{'':10}{'head on':>8}{'counted':>9}{'formula':>9}{'[G]':>7}")
for row in stated:
    print(f"{row.optimizer:10}{row.head:>8}{row.total:9.2f}{row.formula / memory.GIB:9.2f}{row.paper:7.2f}")
print(f"formula and [G] differ by {max(abs(row.formula / memory.GIB - row.paper) for row in stated):.3f} GiB at most")

# %% [markdown]
# ## What has been verified

# %%
verify(*(name for name in load_derivations(derivations) if name not in proofs))

# %%
lines = ["| | statement | all entries at | its steps |", "|---|---|---|---|"]
for name, proved in proofs.items():
    title = proved.paragraphs[0].replace(" (x) ", " ⊗ ").rstrip(".")
    sizes = ", ".join(sized(verdict.size) for verdict in proved.verdicts)
    lines.append(f"| `{name}` | {title} | {sizes} | {'all decided' if proved.proved else '**not proved**'} |")
display(Markdown("\n".join(lines)))
assert all(proved.proved for proved in proofs.values())

# %% [markdown]
# A step is an identity that SymPy decides. Theorems that an argument cites are not decided here. For example, some
# stationary points are *global* minima by theorems of Eckart, Young and Mirsky (`van_loan_pitsianis`, `racs`,
# `diagonal_kronecker`) and by Klein's inequality (`shampoo_squared`). The page *Proofs* of the documentation lists
# them.
#
# This notebook does not verify that the optimizers converge, nor what [G] reports of training. For the latter use
# `fimlens ablate`, `fimlens compare`, and the next notebook, *Train with Flax*. `fimlens prove --html proofs.html`
# writes the proofs above as a page.

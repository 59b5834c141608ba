# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # One lens
#
# Adam, Shampoo, SOAP, Muon and many others are answers to one question. A weight matrix $W$ of size $m \times n$
# has a gradient $G$; stacked column by column it is a vector $g = \mathrm{Vec}(G)$, and
#
# $$F = \mathbb{E}\,[\,g\,g^T]$$
#
# is its *Fisher*, $mn \times mn$: too large to keep, let alone to invert. So each optimizer chooses a family
# $\mathcal{H}$ of matrices that it can afford, takes from it an
#
# $$\tilde F \approx \arg\min_{H \in \mathcal{H}} \|H - F\|_F^2,$$
#
# and moves $W$ along $\mathrm{Mat}(\tilde F^{-1/2} g)$ (Gong et al., 2025, arXiv 2502.07752, called [G] below).
# Here we look at one $F$ as a picture, at what each family makes of it, and at what each gives up.

# %%
import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fimlens as fl
from fimlens import plotting
from fimlens.experiments import trial
from fimlens.language_model import llama, text
from fimlens.lens import figure
from fimlens.structures.named import STRUCTURES

# %matplotlib inline

# %% [markdown]
# On two cores this takes some minutes. With `FIMLENS_QUICK=1` in the environment, as in the project's own tests,
# the model is trained for fewer steps, fewer structures are judged, and `fl.solve` is asked of one matrix alone.

# %%
QUICK = os.environ.get("FIMLENS_QUICK") == "1"
STEPS = 60 if QUICK else 400
JUDGED = ["adam", "shampoo", "kronecker", "soap"] if QUICK else list(STRUCTURES)

# %% [markdown]
# ## A layer and its Fisher
#
# A language model small enough for exact answers, trained for a moment on text that every machine has: the sources
# of Python's standard library, byte by byte.

# %%
config = llama.Config()
schedule = optax.cosine_decay_schedule(1e-2, STEPS)
params, losses = trial.train(optax.adam(schedule), steps=STEPS, config=config)
print(f"{losses[-20:].mean():.2f} nats per byte after {STEPS} steps; {np.log(256):.2f} before it knew anything")

# %% [markdown]
# The Fishers of its attention matrices, one gradient for each of 64 windows of text, and one of them to look at
# closely. A Fisher says what it is made of, as two of different kinds do not compare.

# %%
windows = text.batches(text.read(text.standard_library()), size=16, length=trial.WINDOW, seed=1)
batches = [jnp.asarray(next(windows), jnp.int32) for _ in range(4)]
fishers = fl.empirical_fisher(partial(llama.loss, config), params, batches, matrices=["layers/*/attention/*"])
fisher = fishers["layers/0/attention/query"]
m, n = fisher.shape


def short(path):
    """Layer and name, one above the other."""
    _, layer, _, name = path.split("/")
    return f"{layer}\n{name}"


fisher

# %% [markdown]
# This is $F$. It has $n \times n$ blocks of size $m \times m$; block $(j, l)$ is $\mathbb{E}[g_j g_l^T]$, the
# covariance of two columns of the gradient. A block diagonal family sees only the blocks on the diagonal, Adam only
# the diagonal itself; $I \otimes M$ puts one and the same block everywhere along it, and a Kronecker product $A
# \otimes B$ repeats one block $B$, times a number $A_{jl}$.

# %%
F = fisher.dense()
plotting.portraits([{"F": F}], block=m, side=4.5)

# %% [markdown]
# ## What five families make of it
#
# `fl.fit` gives the member that an optimizer's closed form names, `dense` writes it out. Above, the members; below,
# what is left, $\tilde F - F$, with its relative size $\|\tilde F - F\|^2 / \|F\|^2$, on the same scale.

# %%
families = {
    "Adam": fl.Diagonal(),
    "Muon": fl.Rotated(fl.Rows(), "L"),
    "Shampoo": fl.Rotated(fl.GeometricMarginals(), "LR"),
    "nearest Kronecker": fl.Kronecker(),
    "SOAP": fl.Rotated(fl.Diagonal(), "LR"),
}
members = {name: fl.fit(family, fisher) for name, family in families.items()}
gaps = {name: fl.gap(family, members[name], fisher) for name, family in families.items()}

# %%
written = {name: family.dense(members[name]) for name, family in families.items()}
left_over = {f"{name}: error {gaps[name].relative:.2f}": written[name] - F for name in families}
plotting.portraits([written, left_over], block=m)

# %% [markdown]
# ## Two errors
#
# All five are of one form (of what is judged below, only `Dense()` is not): an orthonormal basis $B$, and in it an array
# $L$ of $m \times n$ eigenvalues,
#
# $$\tilde F = B\,\mathrm{Diag}(\mathrm{vec}\,L)\,B^T, \qquad B = U_R \otimes U_L,$$
#
# where either factor may be the identity. With the second moments in that basis, $V = \mathbb{E}[(U_L^T
# G\,U_R)^2]$, the error falls into two parts, of the basis and of the spectrum:
#
# $$\|\tilde F - F\|^2 \;=\; \|\mathrm{offdiag}(B^T F B)\|^2 \;+\; \|L - V\|^2 .$$
#
# The first is $F$ itself, seen in the basis: whatever is not on the diagonal is lost. Here it is in Adam's basis,
# that of the entries; in the eigenbasis of $\mathbb{E}[GG^T]$; and in both eigenbases, SOAP's.

# %%
free = {"no basis": fl.Diagonal(), "the left one": fl.Rotated(fl.Diagonal(), "L"), "both": fl.Rotated(fl.Diagonal(), "LR")}
frames = {name: fl.fit(structure, fisher).frame for name, structure in free.items()}
seen = {name: fisher.map(partial(free[name].to_eigenbasis, frames[name])).dense() for name in free}
plotting.portraits([{f"F, seen in {name}": matrix for name, matrix in seen.items()}], block=m, side=3.2)

# %% [markdown]
# Summed up by hand, and as `fl.gap` has it from the samples, without ever writing $F$ out:

# %%
for name, structure in free.items():
    off_diagonal = seen[name] - jnp.diag(jnp.diag(seen[name]))
    by_hand = jnp.sum(off_diagonal**2) / jnp.sum(F**2)
    gap = fl.gap(structure, fl.fit(structure, fisher), fisher)
    print(f"{name:14}basis error {by_hand:.4f} by hand, {gap.basis / fisher.norm_squared:.4f} by fl.gap")

# %% [markdown]
# The second part asks how well the allowed eigenvalues follow $V$: any array for Adam and SOAP, so that nothing is
# lost; one number a row for Muon; a product $s_j q_i$ for a Kronecker product.
#
# ## Every structure, beside its memory
#
# `fl.compare` puts structures before a Fisher: the error in its two parts, the memory, and, as a black stroke, the lowest
# error that `fl.solve` finds in the family, over bases and eigenvalues, from several starts. Where the stroke lies inside a
# bar, the closed form is not the nearest.

# %%
comparison = fl.compare({name: STRUCTURES[name] for name in JUDGED}, fisher, matrix="layers/0/attention/query")
figure.error_against_memory([comparison])

# %% [markdown]
# Each closed form has a *claim*, and the comparison holds it against the numbers: an `EXACT` or `LIMIT` one that
# the solver beats would fail.

# %%
for row in sorted(comparison.rows, key=lambda row: row.relative):
    verdict = "holds" if row.claim_holds else "FAILS"
    print(f"{row.name:16}{row.relative:7.3f}, {row.ratio or 1:6.3f} times its optimum   {row.claim:9}{verdict}")

# %% [markdown]
# ## What Shampoo's bound costs
#
# Shampoo is $R^{1/2} \otimes L^{1/2}$ with $R = \mathbb{E}[G^T G]/m$ and $L = \mathbb{E}[GG^T]/n$. [G],
# Theorem 3.1, derives it from an *upper bound* of the distance to $F$, and only the bound is minimised. Three
# structures share its bases and differ in their eigenvalues alone, so that their spectra can be laid over each
# other, against what they should be, $V$.

# %%
spectra = {"Shampoo": fl.GeometricMarginals(), "Shampoo squared": fl.Marginals(), "rank one": fl.RowColumn()}
V = fl.fit(free["both"], fisher).coords
ends = [V.min() / 10, V.max() * 3]
drawn = plotting.sheet(1, 3, width=2.6, height=2.8)
for axes, (name, spectrum) in zip(drawn.axes, spectra.items(), strict=True):
    fitted = fl.fit(fl.Rotated(spectrum, "LR"), fisher)
    L = jnp.broadcast_to(spectrum.expand(fitted.coords, fisher.shape), V.shape)
    axes.loglog(V.ravel(), L.ravel(), ".", color=plotting.BASIS, markersize=3)
    axes.loglog(ends, ends, color=plotting.SPECTRUM, linewidth=1)
    axes.set(title=name, xlabel="second moment $V_{ij}$", xlim=ends, ylim=ends)
drawn.axes[0].set_ylabel("eigenvalue $L_{ij}$")
drawn

# %% [markdown]
# On the line an eigenvalue is right. Shampoo's cloud is half as steep, and not by accident: if $V = q\,s^T$
# exactly, its eigenvalues are $\sqrt{V_{ij} \cdot \mathrm{mean}\,V}$, halfway, on the logarithmic scale, between the
# right one and the mean. The nearest rank one, on the right, is the nearest for the *large* eigenvalues; the small
# ones hardly count.
#
# So with Shampoo not even a Fisher that *is* a Kronecker product is found again; the product of the marginals, Shampoo
# squared, finds it. (In float32 all below 1e-5 is rounding, of either sign.)

# %%
kronecker_families = {f"{name}, rotated": fl.Rotated(spectrum, "LR") for name, spectrum in spectra.items()}
kronecker_families["nearest Kronecker"] = fl.Kronecker()
factors = jax.random.normal(jax.random.key(0), (2, 6, 6))
A, B = factors @ factors.mT
product = fl.Fisher.from_dense(jnp.kron(A, B), (6, 6))
for name, family in kronecker_families.items():
    print(f"{name:26}{fl.gap(family, fl.fit(family, product), product).relative:9.1e}")

# %% [markdown]
# Part of the distance is a mere factor, and a factor is the learning rate's business. With the best one, $c =
# \langle F, \tilde F\rangle / \|\tilde F\|^2$, the error is $1 - \langle F, \tilde F\rangle^2 / (\|F\|\,\|\tilde
# F\|)^2$: what is left is wrong in *shape*.


# %%
def error_of_shape(family, fisher):
    """The relative error of c F~ at the best factor c."""
    member = fl.fit(family, fisher)
    overlap = fisher.inner(lambda G: family.apply(member, G))
    return 1 - overlap**2 / (fisher.norm_squared * jnp.sum(family.dense(member) ** 2))


for name, family in kronecker_families.items():
    error = fl.gap(family, fl.fit(family, fisher), fisher).relative
    print(f"{name:26}error {error:.3f}, of which {error_of_shape(family, fisher):.3f} is shape")

# %% [markdown]
# ## How close SOAP's one step comes
#
# SOAP's eigenvalues are exact in its basis; its basis, the eigenvectors of $\mathbb{E}[GG^T]$ and
# $\mathbb{E}[G^T G]$, solves an easier problem (`ONE_STEP`). `fl.solve` moves bases and eigenvalues together,
# from the closed form, from Jacobi sweeps and from random members, and certifies where each start ended.

# %%
looked_at = {"layers/0/attention/query": fisher} if QUICK else fishers
one_step = {"SOAP": fl.Rotated(fl.Diagonal(), "LR"), "one-sided SOAP": fl.Rotated(fl.Diagonal(), "L")}
solved = {
    name: {matrix: fl.solve(structure, F, starts=1).certificate for matrix, F in looked_at.items()}
    for name, structure in one_step.items()
}
for name, certificates in solved.items():
    ratios = [c.closed_form / min(c.values) for c in certificates.values()]
    print(f"{name}: the one step's error is {min(ratios):.4f} to {max(ratios):.4f} times the lowest found")

# %%
drawn = plotting.sheet(1, 2, width=4.2, height=3.6)
for axes, (name, certificates) in zip(drawn.axes, solved.items(), strict=True):
    for place, certificate in enumerate(certificates.values()):
        ends = np.array(certificate.values) / certificate.closed_form
        axes.plot(np.full(len(ends), place), ends, "o", color=plotting.SPECTRUM, markerfacecolor="none")
    axes.axhline(1, color=plotting.BASIS)
    axes.set_xticks(range(len(certificates)), [short(path) for path in certificates])
    axes.set(title=name, xlim=(-0.5, len(certificates) - 0.5), ylim=(0, None))
drawn.axes[0].set_ylabel("error where a start ended,\nover that of the one step (the line)")
drawn

# %% [markdown]
# ## Is it this matrix alone?
#
# Fits and gaps never write $F$ out, so all matrices can be asked. Rows from the largest median error to the
# smallest.

# %%
errors = {
    name: [fl.gap(s, fl.fit(s, F), F).relative for F in fishers.values()] for name, s in STRUCTURES.items() if name in JUDGED
}
order = sorted(errors, key=lambda name: -np.median(errors[name]))
table = np.array([errors[name] for name in order])
plotting.numbers(table, order, [short(path) for path in fishers], label=r"$\|\tilde F - F\|^2 / \|F\|^2$")

# %% [markdown]
# Every Kronecker product is a member of SOAP's family. So where the nearest one is nearer than SOAP, with fewer
# numbers, it is SOAP's basis that is to blame.

# %%
nearer = sum(k < s for k, s in zip(errors["kronecker"], errors["soap"], strict=True))
print(f"the nearest Kronecker product is nearer than SOAP on {nearer} of {len(fishers)} matrices")

# %% [markdown]
# Nearness is not the whole story: how an optimizer trains also hangs on the small eigenvalues, which hardly count
# in $\|\tilde F - F\|$. The next notebook, *New structures*, runs into that.

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
# is its *Fisher*. It is $mn \times mn$: too large to store, and far too large to invert. So each optimizer chooses a
# family $\mathcal{H}$ of matrices that it can afford, takes from it an
#
# $$\tilde F \approx \arg\min_{H \in \mathcal{H}} \|H - F\|_F^2,$$
#
# and moves $W$ along $\mathrm{Mat}(\tilde F^{-1/2} g)$ (Gong et al., 2025, arXiv 2502.07752, called [G] below).
# Here we look at one $F$ as a picture, at the member $\tilde F$ of each family, and at what it loses.

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
# The model is a language model of bytes, small enough for exact answers. It is trained for a moment on the sources
# of Python's standard library, which every machine has.

# %%
config = llama.Config()
schedule = optax.cosine_decay_schedule(1e-2, STEPS)
params, losses = trial.train(optax.adam(schedule), steps=STEPS, config=config)
print(f"{losses[-20:].mean():.2f} nats per byte after {STEPS} steps; {np.log(256):.2f} before it knew anything")

# %% [markdown]
# We compute the Fishers of its attention matrices, from one gradient for each of 64 windows of text. We look at
# one of them closely. A Fisher prints what it is made of, because Fishers of different kinds cannot be compared.

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
# covariance of two columns of the gradient. A block diagonal family keeps only the blocks on the diagonal, and Adam
# only the diagonal itself. $I \otimes M$ repeats one block along the diagonal. A Kronecker product $A \otimes B$
# repeats one block $B$ everywhere, times a number $A_{jl}$.

# %%
F = fisher.dense()
plotting.portraits([{"F": F}], block=m, side=4.5)

# %% [markdown]
# ## What five families make of it
#
# `fl.fit` computes the member that an optimizer's closed form gives, and `dense` writes it out. The upper row has
# the members. The lower row has the errors $\tilde F - F$ on the same scale, with their relative sizes
# $\|\tilde F - F\|^2 / \|F\|^2$.

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
# All five have one form: an orthonormal basis $B$, and in it an array $L$ of $m \times n$ eigenvalues,
#
# $$\tilde F = B\,\mathrm{Diag}(\mathrm{vec}\,L)\,B^T, \qquad B = U_R \otimes U_L,$$
#
# where either factor may be the identity. (Of the structures judged below, only `Dense()` has another form.) With the
# second moments in that basis, $V = \mathbb{E}[(U_L^T G\,U_R)^2]$, the error falls into two parts, of the basis and
# of the spectrum:
#
# $$\|\tilde F - F\|^2 \;=\; \|\mathrm{offdiag}(B^T F B)\|^2 \;+\; \|L - V\|^2 .$$
#
# The first part is the size of $F$ outside the diagonal, in that basis. The pictures show $F$ in three bases:
# Adam's, which is that of the entries; the eigenbasis of $\mathbb{E}[GG^T]$ on the left; and SOAP's, which has an
# eigenbasis on both sides.

# %%
free = {"no basis": fl.Diagonal(), "the left one": fl.Rotated(fl.Diagonal(), "L"), "both": fl.Rotated(fl.Diagonal(), "LR")}
frames = {name: fl.fit(structure, fisher).frame for name, structure in free.items()}
seen = {name: fisher.map(partial(free[name].to_eigenbasis, frames[name])).dense() for name in free}
plotting.portraits([{f"F, seen in {name}": matrix for name, matrix in seen.items()}], block=m, side=3.2)

# %% [markdown]
# The same number, summed by hand from the picture, and by `fl.gap` from the samples, which never writes $F$ out:

# %%
for name, structure in free.items():
    off_diagonal = seen[name] - jnp.diag(jnp.diag(seen[name]))
    by_hand = jnp.sum(off_diagonal**2) / jnp.sum(F**2)
    gap = fl.gap(structure, fl.fit(structure, fisher), fisher)
    print(f"{name:14}basis error {by_hand:.4f} by hand, {gap.basis / fisher.norm_squared:.4f} by fl.gap")

# %% [markdown]
# The second part says how well the allowed eigenvalues follow $V$. Adam and SOAP allow any array, and lose nothing
# here. Muon allows one number a row, and a Kronecker product allows a product $s_j q_i$.
#
# ## Every structure, beside its memory
#
# `fl.compare` judges structures on one Fisher: it measures the error in its two parts, and the memory. A black
# stroke is the lowest error that `fl.solve` finds in the family, over bases and eigenvalues, from several starts.
# If the stroke lies inside a bar, the closed form is not the nearest.

# %%
comparison = fl.compare({name: STRUCTURES[name] for name in JUDGED}, fisher, matrix="layers/0/attention/query")
figure.error_against_memory([comparison])

# %% [markdown]
# Each closed form has a *claim*, which the comparison tests. A claim `EXACT` or `LIMIT` fails if the solver finds
# a nearer member.

# %%
for row in sorted(comparison.rows, key=lambda row: row.relative):
    verdict = "holds" if row.claim_holds else "FAILS"
    print(f"{row.name:16}{row.relative:7.3f}, {row.ratio or 1:6.3f} times its optimum   {row.claim:9}{verdict}")

# %% [markdown]
# ## What Shampoo's bound costs
#
# Shampoo is $R^{1/2} \otimes L^{1/2}$ with $R = \mathbb{E}[G^T G]/m$ and $L = \mathbb{E}[GG^T]/n$. [G], Theorem 3.1,
# derives it from an *upper bound* of the distance to $F$. Shampoo minimises that bound, not the distance. Three
# structures share its bases and differ only in their eigenvalues. We plot these eigenvalues against $V$, the best
# ones.

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
# An eigenvalue on the line is right. Shampoo's cloud is half as steep, for a reason: if $V = q\,s^T$ exactly, its
# eigenvalues are $\sqrt{V_{ij} \cdot \mathrm{mean}\,V}$. On the logarithmic scale that is halfway between the right
# one and the mean. The nearest rank one, on the right, follows the *large* eigenvalues; the small ones hardly count.
#
# So Shampoo does not recover a Fisher that *is* a Kronecker product. The product of the marginals, Shampoo squared,
# does. In float32, numbers below 1e-5 are rounding, of either sign.

# %%
kronecker_families = {f"{name}, rotated": fl.Rotated(spectrum, "LR") for name, spectrum in spectra.items()}
kronecker_families["nearest Kronecker"] = fl.Kronecker()
factors = jax.random.normal(jax.random.key(0), (2, 6, 6))
A, B = factors @ factors.mT
product = fl.Fisher.from_dense(jnp.kron(A, B), (6, 6))
for name, family in kronecker_families.items():
    print(f"{name:26}{fl.gap(family, fl.fit(family, product), product).relative:9.1e}")

# %% [markdown]
# Part of the distance is a constant factor, which a learning rate corrects. With the best factor
# $c = \langle F, \tilde F\rangle / \|\tilde F\|^2$ the error is
# $1 - \langle F, \tilde F\rangle^2 / (\|F\|\,\|\tilde F\|)^2$. This is the error of the *shape*.


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
# SOAP's eigenvalues are the best ones in its basis. Its basis, the eigenvectors of $\mathbb{E}[GG^T]$ and
# $\mathbb{E}[G^T G]$, solves an easier problem (the claim `ONE_STEP`). `fl.solve` moves bases and eigenvalues
# together. It starts from the closed form, from Jacobi sweeps and from random members, and reports where each ended.

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
# Fits and gaps never write $F$ out, so we can compute them for all matrices. The rows are ordered by their median
# error, the largest first.

# %%
errors = {
    name: [fl.gap(s, fl.fit(s, F), F).relative for F in fishers.values()] for name, s in STRUCTURES.items() if name in JUDGED
}
order = sorted(errors, key=lambda name: -np.median(errors[name]))
table = np.array([errors[name] for name in order])
plotting.numbers(table, order, [short(path) for path in fishers], label=r"$\|\tilde F - F\|^2 / \|F\|^2$")

# %% [markdown]
# Every Kronecker product is a member of SOAP's family. If the nearest one is nearer than SOAP, then SOAP's basis is
# not the best one of its family.

# %%
nearer = sum(k < s for k, s in zip(errors["kronecker"], errors["soap"], strict=True))
print(f"the nearest Kronecker product is nearer than SOAP on {nearer} of {len(fishers)} matrices")

# %% [markdown]
# A near $\tilde F$ does not guarantee fast training. Training also depends on the small eigenvalues, which hardly
# count in $\|\tilde F - F\|$. The next notebook, *New structures*, meets this problem.

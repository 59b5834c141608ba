# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The lens on a real model
#
# The first notebook looked at a layer so small that its Fisher could be written out. A layer of a real language
# model has a Fisher with billions of entries, and we have a hundred gradients to estimate it from. This notebook
# shows what the lens can still say, with error bars, and how to choose an optimizer from it.
#
# The first half reads estimates that are stored in the repository, of SmolLM2-135M. The second half makes
# estimates of its own on a small model, so that nothing is downloaded.

# %%
import json
import os
import warnings
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax

import fimlens as fl
from fimlens import plotting
from fimlens.experiments import trial
from fimlens.language_model import llama, text
from fimlens.lens.conclusions import conclude
from fimlens.lens.estimate_figure import error_map, errors_with_bars
from fimlens.structures.named import STRUCTURES, read_structure

# %matplotlib inline

# %% [markdown]
# On two cores this takes about two minutes. With `FIMLENS_QUICK=1` in the environment the small model is trained
# for fewer steps, and fewer structures are judged.

# %%
QUICK = os.environ.get("FIMLENS_QUICK") == "1"
STEPS = 40 if QUICK else 400
COUNTS = (16, 64) if QUICK else (16, 64, 256)  # numbers of gradients
JUDGED = ["sgd", "adam", "shampoo squared", "soap"]
JUDGED += [] if QUICK else ["racs", "muon", "osoap", "shampoo", "alice"]

# %% [markdown]
# ## Why held-out gradients
#
# The weight matrix `query` of SmolLM2 has $576 \times 576$ entries, so its Fisher $F$ has $110$ billion. From $N$
# gradients $g_k$ we know only the sample Fisher $\hat F = \frac{1}{N} \sum_k g_k g_k^T$, whose rank is at most $N$. Two
# errors of a structure's fit $\tilde F$ can be computed:
#
# - The *plug-in error* compares $\tilde F$ with the $\hat F$ that it was fitted to. A family with many numbers
#   fits the noise of these gradients, and the same noise then judges it.
# - The *held-out error* compares $\tilde F$ with gradients that it has not seen. The gradients are divided into
#   folds. Each fold judges the fit to all others.
#
# Nobody can write down the error $\|\tilde F - F\|^2 = \|\tilde F\|^2 - 2\langle \tilde F, F\rangle + \|F\|^2$, since
# $F$ is unknown. It can be estimated without bias, for two reasons. The middle term is linear in $F$, so it is
# $2 g^T \tilde F g$ in the mean over new gradients $g$. The last term is the mean of $(g_j^T g_k)^2$ over pairs of
# different gradients.
#
# ## The estimates of SmolLM2-135M
#
# These estimates are of 96 windows of 128 tokens, from as many documents, in four folds. Each fit has seen 72
# gradients. The command that made them is in *The lens on your model* in the documentation.

# %%
stored = next(
    json.loads(path.read_text()) for at in ("..", ".") if (path := Path(at, "benchmarks/smollm2/estimates.json")).exists()
)


def read_estimates(divergence):
    """The estimates of all matrices in one divergence."""
    parts = {name.removeprefix("layers."): each[divergence] for name, each in stored["matrices"].items()}
    structures = next(iter(parts.values()))["structures"]
    known = {name: read_structure("notebook", written) for name, written in structures.items()}
    return {name: fl.Estimates.from_json(part, known) for name, part in parts.items()}


real = {divergence: read_estimates(divergence) for divergence in ("Frobenius", "von Neumann", "LogDet")}
print(f"{stored['kind']}: {len(real['Frobenius'])} matrices, {stored['samples']} gradients of each")

# %% [markdown]
# The map has a row for each matrix and a column for each structure. A number is the held-out error
# $\|\tilde F - F\|^2 / \|F\|^2$: it is 0 for $F$ itself, and about 1 for a multiple of the identity, as `sgd` has. The
# nearest structure of each row is in bold.

# %%
error_map(real["Frobenius"])

# %% [markdown]
# In words:

# %%
print(*conclude(real["Frobenius"]), sep="\n")

# %% [markdown]
# ## Error bars
#
# The next figure has the matrices of layer 15. Each dot is a held-out error, with the interval that covers it with
# a probability of about 95 %. Each cross is the plug-in error of the same structure. The further right a dot is, the
# more numbers the optimizer keeps.

# %%
errors_with_bars({name: found for name, found in real["Frobenius"].items() if name.startswith("15.")})

# %% [markdown]
# The plug-in error flatters the large families. It names SOAP as the nearest on every matrix:

# %%
for name, found in real["Frobenius"].items():
    flattered = min(found.rows, key=lambda structure: found.rows[structure].plug_in)
    print(f"{name:22}plug-in: {flattered:8}held out: {found.ranked()[0]}")

# %% [markdown]
# Errors of two structures on the same gradients rise and fall together, so their difference is known better than
# either. `difference` gives it with a standard error of its own, and `clearly_nearer` says whether its interval
# excludes zero.

# %%
for name, found in real["Frobenius"].items():
    value, se = found.difference("soap", "shampoo squared")
    if found.clearly_nearer("shampoo squared", "soap"):
        verdict = "SOAP is clearly farther"
    else:
        verdict = "SOAP is clearly nearer" if found.clearly_nearer("soap", "shampoo squared") else "not told apart"
    print(f"{name:22}{value:+.3f} +- {se:.3f}   {verdict}")

# %% [markdown]
# ## Another divergence, another order
#
# The Frobenius norm is decided by the large eigenvalues. An optimizer divides by $\tilde F^{1/2}$, so small
# eigenvalues matter to it. LogDet weighs an error of an eigenvalue relative to that eigenvalue:
#
# $$D(F, \tilde F) = \mathrm{tr}(F \tilde F^{-1}) - \log\det(F \tilde F^{-1}) - mn.$$
#
# Apart from a term that depends on $F$ alone, it is *linear in $F$*. All divergences here are. So the mean over
# held-out gradients estimates it without bias, and the unknown term cancels in differences. LogDet is then twice the
# negative log-likelihood of a gradient under a Gaussian of covariance $\tilde F$. The numbers are nats per entry, less
# those of the best multiple of the identity: below 0 is nearer than that multiple.

# %%
error_map(real["LogDet"])

# %%
print(*conclude(real["LogDet"]), sep="\n")

# %% [markdown]
# Shampoo squared was the nearest on most matrices in the Frobenius norm, and is among the farthest here. Its smallest
# eigenvalues are too small for gradients that do come. An infinite error means that a fit has an eigenvalue of zero
# in the direction of a held-out gradient: GaLore's has many.
#
# ## A choice within a budget
#
# `fl.recommend` chooses a structure for each matrix, so that the mean error is least within a budget. The budget
# counts the numbers that the optimizer keeps beside its momentum. A structure is left out if a cheaper one is not
# clearly worse, so noise buys nothing.

# %%
entries = sum(found.shape[0] * found.shape[1] for found in real["LogDet"].values())
for share in (0.01, 1.0, 4.0):
    print(f"{share:g} numbers an entry. {fl.recommend(real['LogDet'], share * entries).in_words()}\n")

# %% [markdown]
# `fl.recommended(rate, choices=found.choices)` is the optimizer of such a choice. On the command line it is
# `fimlens recommend` and then `fimlens pretrain --optimizer recommended:recommended.json`.
#
# ## A model of your own
#
# Now the same on a small language model of bytes, trained here for a moment. Any model will do: `fl.estimate` takes
# an array of gradients $(N, m, n)$ of one matrix, and `fl.empirical_fisher` makes it from a JAX loss.

# %%
config = llama.Config()
params, losses = trial.train(optax.adam(1e-2), steps=STEPS, config=config)
windows = text.batches(text.read(text.standard_library()), size=16, length=trial.WINDOW, seed=1)
batches = [jnp.asarray(next(windows), jnp.int32) for _ in range(max(COUNTS) // 16)]
matrix = "layers/1/attention/value"
fisher = fl.empirical_fisher(partial(llama.loss, config), params, batches, matrices=[matrix])[matrix]
print(f"{losses[-10:].mean():.2f} nats per byte; {fisher}")

# %% [markdown]
# With more gradients both errors approach the error against the true $F$: the plug-in error from below, and the
# held-out error with smaller and smaller error bars. With 16 gradients `fl.estimate` may warn that they are too few.

# %%
chosen = {name: STRUCTURES[name] for name in JUDGED}
grown = {count: fl.estimate(chosen, fisher.samples[:count], folds=4) for count in COUNTS}
drawn = plotting.sheet(1, len(JUDGED[-2:]), width=3.4, height=3)
for axes, name in zip(drawn.axes, JUDGED[-2:], strict=True):
    rows = [found.rows[name] for found in grown.values()]
    reach = [[row.relative - row.low for row in rows], [row.high - row.relative for row in rows]]
    axes.errorbar(COUNTS, [row.relative for row in rows], reach, fmt="o-", color=plotting.BASIS, label="held out")
    axes.plot(COUNTS, [row.plug_in for row in rows], "x--", color=plotting.SPECTRUM, label="plug-in")
    axes.set(title=name, xscale="log", xlabel="gradients")
drawn.axes[0].set_ylabel(r"$\|\tilde F - F\|^2 / \|F\|^2$")
plotting.legend_below(drawn)
drawn

# %%
largest = grown[COUNTS[-1]]
for name in largest.ranked():
    row = largest.rows[name]
    print(f"{name:16}{row.relative:6.3f} +- {row.se:.3f}   plug-in {row.plug_in:.3f}")

# %% [markdown]
# ## Heavy tails
#
# The Frobenius norm squares second moments, so it needs fourth moments of gradients. If a few gradients are much
# larger than the others, they decide $\|F\|^2$ alone, and an error relative to it means little. `fl.estimate` looks for
# this, and warns. Here each gradient is multiplied by a random factor with heavy tails:

# %%
factors = np.random.default_rng(0).standard_t(1.5, size=(COUNTS[-1], 1, 1))
tailed = fisher.samples * jnp.asarray(factors, jnp.float32)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    heavy = fl.estimate(chosen, tailed, folds=4)
print(f"reliable: {largest.reliable} before, {heavy.reliable} now. The warning begins: {str(caught[-1].message)[:80]}...")

# %% [markdown]
# LogDet needs no fourth moments, and is not divided by $\|F\|^2$. If the tails make it uncertain too, its error bars
# say so. On the same gradients:

# %%
positive = {name: chosen[name] for name in ("sgd", "adam")}
judged = fl.estimate(positive, tailed, divergence=fl.LogDet(), folds=4)
for name in judged.ranked():
    row = judged.rows[name]
    print(f"{name:16}{row.relative:+.3f} +- {row.se:.3f} nats per entry")

# %% [markdown]
# A small error is not by itself a fast training. *The lens on your model* in the documentation measures how far one
# predicts the other, and where it does not.

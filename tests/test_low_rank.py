"""The optimizers of low rank follow their NumPy witnesses over four refreshes; and what they do where little is to be seen."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpy_low_rank as witness
import pytest
from test_fidelity import gradients

import fimlens as fl


def drawn(state, m, r):
    """U of the one matrix that a state holds."""
    kept = next(x for x in jax.tree.leaves(state, is_leaf=is_state) if is_state(x)).subspaces
    (kept,) = kept.values()
    return jax.random.normal(kept.key[0], (m, r)) / r**0.5 if hasattr(kept, "key") else kept.basis[0]


def is_state(x):
    return isinstance(x, fl.LowRankState)


def follow(make, paper, shape, rank, dtype, tolerance, steps=17):
    """The weights are summed in float64: what is compared is the optimizer, not the addition of its updates."""
    with jax.enable_x64(dtype == jnp.float64):
        tx = make(1e-3, rank=rank, update_interval=5)
        W = np.random.default_rng(1).normal(size=shape)
        ours, state = W, tx.init(jnp.asarray(W, dtype))
        theirs = paper(1e-3, rank=rank, frames=lambda: drawn(state, min(shape), rank))
        next(theirs)
        update = jax.jit(tx.update)
        for t, G in enumerate(gradients(shape, steps)):
            updates, state = update(jnp.asarray(G, dtype), state, jnp.asarray(ours, dtype))
            step = theirs.send((G, W))
            W, ours = W + step, ours + np.asarray(updates, np.float64)
            off = np.abs(ours - W).max() / np.abs(W).max()
            assert off < tolerance, f"{off:.2e} off at step {t + 1}, in {np.dtype(dtype)}"


def both(ours, theirs, **options):
    named = {"corrected": "bias_correction"}
    return partial(ours, **{named.get(k, k): v for k, v in options.items()}), partial(theirs, **options)


METHODS = {
    "alice": both(fl.alice, witness.alice, leading=1),
    "alice, rotated": both(fl.alice, witness.alice, leading=1, moments="rotate"),
    "galore": both(fl.galore, witness.galore),
    "fira": (fl.fira, partial(witness.galore, fira=True)),
    "apollo": both(fl.apollo, witness.apollo),
    "apollo-svd": both(fl.apollo, witness.apollo, variant="svd"),
}
ALIKE = {
    "alice, reset": both(fl.alice, witness.alice, leading=1, moments="reset"),
    "alice, corrected": both(fl.alice, witness.alice, leading=1, corrected=True),
    "alice, fira": both(fl.alice, witness.alice, leading=1, compensation="fira"),
    "alice, fira+": both(fl.alice, witness.alice, leading=1, compensation="fira+"),
    "alice, none": both(fl.alice, witness.alice, leading=1, compensation="none"),
    "alice, full": both(fl.alice, witness.alice, leading=1, switch="full"),
    "alice, gaussian": both(fl.alice, witness.alice, leading=1, switch="gaussian"),
    "alice, gaussian-mix": both(fl.alice, witness.alice, leading=1, switch="gaussian-mix"),
    "alice, unswitched": both(fl.alice, witness.alice, leading=1, switch="none"),
    "alice0": (partial(fl.alice0, leading=1), partial(witness.alice, leading=1, b3=0.0)),
    "galore, rotated": both(fl.galore, witness.galore, moments="rotate"),
    "galore, reset": both(fl.galore, witness.galore, moments="reset"),
    "fira+": (partial(fl.fira, plus=True), partial(witness.galore, fira=True, plus=True)),
}
CASES = [((5, 7), 2), ((7, 5), 3), ((5, 5), 5), ((5, 5), 1), ((7, 5), 5), ((5, 7), 4)]
QUICK = [("alice", *CASES[1]), ("alice", *CASES[2]), *((name, *CASES[0]) for name in METHODS)]
SLOW = [(name, *case) for name in METHODS | ALIKE for case in CASES if (name, *case) not in QUICK]


@pytest.mark.parametrize(
    ("name", "shape", "rank"), QUICK + [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW], ids=str
)
def test_it_follows_its_paper_over_four_refreshes(name, shape, rank):
    follow(*(METHODS | ALIKE)[name], shape, rank, jnp.float64, 1e-10)


@pytest.mark.parametrize("name", [name if name == "alice" else pytest.param(name, marks=pytest.mark.slow) for name in METHODS])
def test_in_single_precision(name):
    follow(*METHODS[name], (5, 7), 2, jnp.float32, 1e-6)


def test_mini_follows_its_paper():
    ours = lambda lr, rank, update_interval: fl.apollo(lr, variant="mini", update_interval=update_interval)  # noqa: E731
    follow(ours, partial(witness.apollo, variant="mini"), (5, 7), 1, jnp.float64, 1e-10)

"""Each named optimizer follows its NumPy witness for fifty steps, and Optax's own for a hundred where Optax has it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpy_optimizers as witness
import optax
import pytest

import fimlens as fl

SHAPES = [(4, 6), *(pytest.param(shape, marks=pytest.mark.slow) for shape in ((6, 4), (5, 5)))]


def gradients(shape, steps, seed=0):
    """Correlated, of drifting scale, with rows and columns of different size."""
    rng = np.random.default_rng(seed)
    m, n = shape
    L, R = rng.normal(size=(m, m)), rng.normal(size=(n, n))
    mean = rng.normal(size=shape)
    return [(1 + t / steps) * (0.3 * mean + L @ rng.normal(size=shape) @ R) for t in range(steps)]


def bases(state):
    """The bases of the one matrix that a state holds, the shorter side's first; None on a side without."""
    (stacks,) = [found for _, found in optax.tree.get_all_with_path(state, "bases") if found]
    ((left, right, _),) = stacks.values()
    left, right = (None if U is None else np.asarray(U[0]) for U in (left, right))
    return (right, None) if left is None else (left, right)


METHODS = [
    (fl.sgd, {}, witness.sgd),
    (fl.adam, {}, witness.adam),
    (fl.adamw, {}, witness.adamw),
    (fl.adafactor, {}, witness.adafactor),
    (fl.lars, {}, witness.lars),
    (fl.lamb, {}, witness.lamb),
    (fl.muon, {}, witness.muon),
    (fl.muon, {"root": "exact"}, witness.muon_exact),
    (fl.muon, {"coefficients": "polar-express"}, witness.muon_by_polar_express),
    (fl.normuon, {}, witness.normuon),
    (fl.swan, {}, witness.swan),
    (fl.shampoo, {"update_interval": 1}, witness.shampoo),
    (fl.shampoo, {"update_interval": 3}, witness.shampoo_of_interval_3),
    (fl.shampoo, {"update_interval": 1, "b2": 1.0}, witness.shampoo_of_sums),
    (fl.soap, {}, witness.soap),
    (fl.soap, {"refresh": "eigh"}, witness.soap_by_eigh),
    (fl.soap_muon, {}, witness.soap_muon),
    (fl.osoap, {}, witness.osoap),
    (fl.racs, {}, witness.racs),
    (fl.racs, {"cap": None}, witness.racs_in_print),
    (fl.racs, {"bias_correction": True}, witness.racs_corrected),
    (fl.racs, {"divergence": fl.VonNeumann()}, witness.racs_under_von_neumann),
    (fl.racs, {"divergence": fl.Beta(0.5)}, witness.racs_between),
    (fl.racs, {"divergence": fl.LogDet()}, witness.racs_under_logdet),
    (fl.sinkgd, {}, witness.sinkgd),
    (fl.aro, {"eps": 0.0}, witness.aro),
    (fl.aro, {"eps": 0.0, "update_interval": 3}, witness.aro_of_interval_3),
    (fl.kl_shampoo, {}, witness.kl_shampoo),
    (fl.kl_soap, {}, witness.kl_soap),
    (fl.adadiag, {"update_interval": 20}, witness.adadiag),
    (fl.adadiag_pp, {"update_interval": 20}, witness.adadiag_pp),
    (fl.adafacdiag, {"update_interval": 20}, witness.adafacdiag),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("make", "options", "paper"), METHODS, ids=lambda x: getattr(x, "__name__", ""))
def test_it_follows_its_paper_for_fifty_steps(make, options, paper, shape):
    takes_frames = "frames" in paper.__code__.co_varnames or paper.__name__ in ("adadiag", "adafacdiag")

    def witnessed(state):
        return paper(1e-3, frames=lambda: bases(state())) if takes_frames else paper(1e-3)

    for x64, tolerance in ((False, 1e-6), (True, 1e-10)):
        if not x64 and shape != (4, 6):
            continue  # single precision on one shape, double on all
        with jax.enable_x64(x64):
            follow(make(1e-3, **options), witnessed, shape, jnp.float64 if x64 else jnp.float32, tolerance)


def follow(tx, witnessed, shape, dtype, tolerance, steps=50):
    """`witnessed` makes the witness, given a function that gives the optimizer's state.

    The weights are summed in float64: what is compared is the optimizer, not the addition of its updates.

    In float32 1 - b^t, taken as Optax takes it, is good to 1e-5 at b = 0.999: hence the rate of 1e-3, and the bound on
    what is off by the way moved; Shampoo's fourth roots of what is nearly null are good to half of that.
    """
    start = W = np.random.default_rng(1).normal(size=shape)
    ours, state = W, jax.jit(tx.init)(jnp.asarray(W, dtype))
    theirs = witnessed(lambda: state)
    next(theirs)
    update = jax.jit(tx.update)
    for t, G in enumerate(gradients(shape, steps)):
        updates, state = update(jnp.asarray(G, dtype), state, jnp.asarray(ours, dtype))
        ours = ours + np.asarray(updates, np.float64)
        W = W + theirs.send((G, W))
        off = np.abs(ours - W).max()
        assert off < tolerance * np.abs(W).max(), f"{off:.2e} off at step {t + 1}, in {np.dtype(dtype)}"
        assert off <= 100 * tolerance * np.abs(W - start).max(), f"{off:.2e} off the way moved at step {t + 1}"


def crossing(seed, m=12, before=60, after=20):
    """Gradients whose covariance has condition 100; then its eigenvalues cross, and its eigenvectors turn a little."""
    rng = np.random.default_rng(seed)
    eigenvalues = np.geomspace(100, 1, m)
    U, A, Z = (rng.normal(size=shape) for shape in ((m, m), (m, m), (before + after, m, m)))
    U = np.linalg.qr(U)[0]
    turned = U @ np.linalg.qr(np.eye(m) + 0.01 * (A - A.T))[0]
    return np.concatenate([U * eigenvalues**0.5 @ Z[:before], turned * eigenvalues[::-1] ** 0.5 @ Z[before:]])


def test_a_refresh_by_qr_follows_eigenvalues_that_cross():
    """Part of C off the diagonal in the basis, 20 steps and two refreshes later: 0.44 unsorted, 0.11 sorted; "eigh": 0.19."""
    tx = fl.scale_by_soap(refresh="qr", update_interval=10)

    @jax.jit
    @jax.vmap
    def last(gradients):
        state = jax.lax.scan(lambda state, G: (tx.update(G, state)[1], None), tx.init(gradients[0]), gradients)[0]
        return state.bases["12 x 12"].left[0], state.covariances["12 x 12"].left[0]

    U, C = last(jnp.asarray(np.stack([crossing(seed) for seed in range(4)]), jnp.float32))
    X = np.asarray(U.mT @ C @ U)
    off = np.linalg.norm(X - X * np.eye(12), axis=(1, 2)) / np.linalg.norm(X, axis=(1, 2))
    assert off.mean() < 0.15


def problem(dtype):
    """A two-layer network on noise: gradients of different shapes and sizes, that depend on the weights."""
    keys = jax.random.split(jax.random.key(0), 5)
    weights = {
        "first": jax.random.normal(keys[0], (6, 9), dtype) / 2,
        "bias": jax.random.normal(keys[1], (9,), dtype),
        "second": jax.random.normal(keys[2], (9, 4), dtype) / 3,
    }
    X, Y = jax.random.normal(keys[3], (32, 6), dtype), jax.random.normal(keys[4], (32, 4), dtype)

    def loss(w, t):
        noise = 0.1 * jax.random.normal(jax.random.fold_in(keys[3], t), X.shape, dtype)
        return jnp.mean((jnp.tanh((X + noise) @ w["first"] + w["bias"]) @ w["second"] - Y) ** 2)

    return weights, jax.grad(loss)


def trained(tx, weights, grad):
    @jax.jit
    def step(w, state, t):
        updates, state = tx.update(grad(w, t), state, w)
        return optax.apply_updates(w, updates), state

    state = jax.jit(tx.init)(weights)
    for t in range(100):
        weights, state = step(weights, state, t)
    return weights


WITH_OPTAX = {
    "sgd": (partial(fl.sgd, momentum=0.9, nesterov=True), partial(optax.sgd, momentum=0.9, nesterov=True)),
    "adam": (fl.adam, optax.adam),
    "adamw": (partial(fl.adamw, weight_decay=0.1), partial(optax.adamw, weight_decay=0.1)),
    "adafactor": (fl.adafactor, partial(optax.adafactor, min_dim_size_to_factor=1)),
    "adafactor with momentum": (
        partial(fl.adafactor, momentum=0.9, weight_decay=0.01),
        partial(optax.adafactor, min_dim_size_to_factor=1, momentum=0.9, weight_decay_rate=0.01),
    ),
    "lars": (partial(fl.lars, weight_decay=0.01), partial(optax.lars, weight_decay=0.01)),
    "lamb": (partial(fl.lamb, weight_decay=0.01), partial(optax.lamb, weight_decay=0.01)),
    "muon": (partial(fl.muon, weight_decay=0.1), partial(optax.contrib.muon, weight_decay=0.1, adam_weight_decay=0.1)),
}


SIMPLE = ("sgd", "lars")  # by make slow


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SIMPLE else n for n in WITH_OPTAX])
def test_it_follows_optax_for_a_hundred_steps(name):
    # Optax computes Adafactor's decay in float32 always.
    for x64, tolerance in ((False, 1e-5), (True, 1e-6 if "adafactor" in name else 1e-12)):
        with jax.enable_x64(x64):
            weights, grad = problem(jnp.float64 if x64 else jnp.float32)
            ends = [trained(make(optax.cosine_decay_schedule(0.02, 200)), weights, grad) for make in WITH_OPTAX[name]]
            for leaf in weights:
                moved = np.abs(ends[1][leaf] - weights[leaf]).max()
                off = np.abs(ends[0][leaf] - ends[1][leaf]).max() / moved
                assert off < tolerance, f"{leaf}: {off:.2e} of the way moved"

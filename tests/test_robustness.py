"""Finite gradients give finite updates at every scale, NaN stays in its matrix, and every step compiles for accelerators."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_optax import NAMES, named, tree

import fimlens as fl
from fimlens import RowColumn

SHAPES = [(5, 3), (1, 4)]
KINDS = ["normal", "zero rows", "zero", "rank one", "repeated", "one entry"]


@functools.cache
def stepper(name, shape, dtype, options=()):
    tx = named(name)(1.0, **dict(options))
    return jax.jit(tx.init), jax.jit(tx.update)


def gradients(kind, shape, seed):
    rng = np.random.default_rng(seed)
    G = [rng.normal(size=shape) for _ in range(3)]
    if kind == "zero rows":
        for g in G:
            g[0] = 0
    if kind == "zero":
        G[0] *= 0
        G[2] *= 0
    if kind == "rank one":
        G = [np.outer(g[:, 0], g[0]) for g in G]
    if kind == "repeated":
        G = [G[0]] * 3
    if kind == "one entry":
        G = [np.where(np.arange(g.size).reshape(shape) == 1, g, 0) for g in G]
    return G


def updates_of(name, kind, shape, scale, seed, dtype=jnp.float32, options=()):
    init, update = stepper(name, shape, dtype, options)
    weights = jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)
    state, found = init(weights), []
    for G in gradients(kind, shape, seed):
        u, state = update(jnp.asarray(G * scale, dtype), state, weights)
        found.append(np.asarray(u, np.float64))
    return found, state


@pytest.mark.parametrize("name", NAMES)
@hypothesis.settings(max_examples=20, deadline=None, derandomize=True)
@hypothesis.given(
    kind=st.sampled_from(KINDS),
    shape=st.sampled_from(SHAPES),
    power=st.floats(-30, 30),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16]),
    seed=st.integers(0, 100),
)
def test_finite_gradients_make_finite_updates(name, kind, shape, power, dtype, seed):
    found, state = updates_of(name, kind, shape, 10.0**power, seed, dtype)
    assert all(np.isfinite(u).all() for u in found)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating))


def test_racs_is_finite_at_the_smallest_squares():
    """One entry, a row, a column and a whole matrix have squares near the smallest number of float32."""
    fitted = jax.jit(RowColumn(sweeps=5).project)
    for m, n in ((4, 6), (128, 128), (512, 512)):
        for where in (np.s_[1, 1], np.s_[1], np.s_[:, 1], np.s_[:]):
            for g in (1e-15, 1e-17, 1e-18, 1e-19, 2e-20):
                V = np.zeros((m, n), np.float32)
                V[where] = np.float32(g) ** 2
                q, s = fitted(jnp.asarray(V))
                assert np.isfinite(q * s).all(), (m, where, g)
                if g == 1e-15:
                    np.testing.assert_allclose(q * s, V, rtol=1e-5)


INVARIANT = {
    "racs": (("adam_learning_rate", 1.0),),
    "muon": (("eps", 0.0),),
    "shampoo": (("eps", 0.0),),
    "soap": (("eps", 0.0),),
}


@pytest.mark.parametrize("name", INVARIANT)
@hypothesis.settings(max_examples=20, deadline=None, derandomize=True)
@hypothesis.given(kind=st.sampled_from(KINDS), shape=st.just((5, 3)), power=st.floats(-15, 15), seed=st.integers(0, 100))
def test_without_eps_updates_do_not_depend_on_the_scale_of_gradients(name, kind, shape, power, seed):
    here, _ = updates_of(name, kind, shape, 1.0, seed, options=INVARIANT[name])
    there, _ = updates_of(name, kind, shape, 10.0**power, seed, options=INVARIANT[name])
    for a, b in zip(here, there, strict=True):
        assert np.abs(a - b).max() <= 2e-3 * np.abs(a).max(), f"at 1e{power:.1f}"


@pytest.mark.parametrize("name", ["racs", "muon", "swan", "soap", "osoap", "adadiag_pp", "alice"])
def test_nan_spreads_in_its_matrix_and_spares_the_others(name):
    tx = named(name)(1.0)
    weights = {"a": tree(0)["kernel"], "b": tree(1)["kernel"]}
    state, update = tx.init(weights), jax.jit(tx.update)
    for t, bad in enumerate((0.0, jnp.nan, 0.0)):
        G = {"a": tree(t)["kernel"].at[1, 1].add(bad), "b": tree(t + 9)["kernel"]}
        updates, state = update(G, state, weights)
        stays = t == 2 and name != "swan"  # which has no state
        assert np.isnan(updates["a"]).any() == (t == 1 or stays)
        assert np.isfinite(updates["b"]).all()


def dots(jaxpr):
    """Yield the matrix products of a jaxpr and of those nested in it."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        is_jaxpr = lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")  # noqa: E731
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr):
            if is_jaxpr(inner):
                yield from dots(getattr(inner, "jaxpr", inner))


@pytest.mark.parametrize("name", ["muon", "swan", "shampoo", "soap", "racs", "adadiag_pp", "alice", "fira"])
def test_every_product_asks_for_the_highest_precision(name):
    """Accelerators default to fewer bits, which statistics and roots do not survive."""
    tx = named(name)(1.0)
    jaxpr = jax.make_jaxpr(tx.update)(tree(1), tx.init(tree(0)), tree(0))
    found = list(dots(jaxpr.jaxpr))
    assert found or name == "swan"
    highest = jax.lax.Precision.HIGHEST
    assert all(equation.params["precision"] == (highest, highest) for equation in found)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("name", NAMES)
def test_every_step_lowers_for_accelerators(name, platform):
    tx = named(name)(1.0)
    shapes = jax.eval_shape(lambda: (tree(1), tx.init(tree(0)), tree(0)))
    exported = jax.export.export(jax.jit(tx.update), platforms=[platform])(*shapes)
    assert exported.platforms == (platform,)


@pytest.mark.parametrize("tx", [fl.muon(1e-2), optax.chain(fl.matrices(fl.scale_by_racs()), optax.scale(-1e-2))])
@pytest.mark.parametrize(("dtype", "huge"), [("float32", 1e25), ("bfloat16", 1e25), ("float16", 1e4)])
def test_leaves_of_adam_recover_from_a_gradient_whose_square_overflows(tx, dtype, huge):
    bias = {"bias": jnp.ones(3, dtype)}
    state = tx.init(bias)
    for size in (1.0, huge, *10 * [1.0]):
        updates, state = tx.update(jax.tree.map(lambda x, size=size: size * x, bias), state, bias)
    assert bool((updates["bias"] < 0).all())
    assert updates["bias"].dtype == dtype

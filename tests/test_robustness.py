"""Finite gradients give finite updates at every scale, NaN stays in its matrix, and every step compiles for accelerators."""

import functools
import importlib.util
from pathlib import Path

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
from fimlens.transforms.dtypes import narrowed

spec = importlib.util.spec_from_file_location("fuzz", Path(__file__).parents[1] / "benchmarks" / "fuzz.py")
fuzz = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fuzz)

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


@pytest.mark.parametrize("name", ["muon", "normuon"])
def test_momentum_that_looks_ahead_takes_large_gradients(name):
    W = jnp.full((2, 3), 1e38)
    updates, _ = named(name)(1.0).update(W, named(name)(1.0).init(W), W)
    assert bool(jnp.isfinite(updates).all())


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


def largest_entry(tx, gradients):
    """Of the updates of a sequence of gradients, in one program."""

    def step(state, G):
        updates, state = tx.update(G, state)
        return state, jnp.abs(updates.astype(jnp.float32)).max()

    return float(jax.jit(lambda Gs: jax.lax.scan(step, tx.init(Gs[0]), Gs)[1].max())(gradients))


def lesser_blocks():
    """Sequences of ten gradients whose second moments are far from rank one."""
    keys = jax.random.split(jax.random.key(0), 4)
    blocks = jnp.kron(jnp.diag(jnp.array([1.0, 0.5])), jnp.ones((4, 6)))
    return {
        "diagonal": jnp.tile(jnp.diag(jnp.array([1.0, 0.1, *6 * [0.0]]))[:, :8], (10, 1, 1)),
        "blocks": jax.random.normal(keys[0], (10, 8, 12)) * blocks,
        "sparse": jax.random.normal(keys[1], (10, 12, 8)) * jax.random.bernoulli(keys[2], 0.1, (10, 12, 8)),
        "heavy-tailed": jax.random.t(keys[3], 1.0, (10, 8, 12)),
    }


@pytest.mark.parametrize("kind", ["diagonal", "blocks", "sparse", "heavy-tailed"])
def test_no_entry_of_racs_exceeds_its_bound(kind):
    largest = largest_entry(fl.scale_by_racs(alpha=1.0, gamma=1e9), lesser_blocks()[kind])
    assert largest <= (30 * 8) ** 0.5 / (1 - 0.9) * (1 + 1e-5)


def test_the_cap_of_racs_leaves_gaussian_gradients_alone_and_keeps_homogeneity_and_symmetry():
    with jax.enable_x64():
        V = jax.random.normal(jax.random.key(0), (16, 24)) ** 2
        sparse = V * jax.random.bernoulli(jax.random.key(1), 0.1, V.shape)
        project = jax.jit(lambda V: jnp.multiply(*RowColumn(5, 30.0).project(V)))
        print_of = jax.jit(lambda V: jnp.multiply(*RowColumn(5).project(V)))
        np.testing.assert_array_equal(project(V), print_of(V))
        np.testing.assert_allclose(project(1e6 * sparse), 1e6 * project(sparse), rtol=1e-13)
        rows, columns = (np.random.default_rng(0).permutation(k) for k in V.shape)
        np.testing.assert_allclose(project(sparse[rows][:, columns]), project(sparse)[rows][:, columns], rtol=1e-12)


def test_a_cap_needs_sweeps():
    with pytest.raises(ValueError, match="RowColumn: a cap limits sweeps"):
        RowColumn(cap=30.0)


IN_BASES = {
    "adadiag": fl.scale_by_adadiag,
    "adadiag_pp": fl.scale_by_adadiag_pp,
    "osoap": fl.scale_by_osoap,
    "soap": fl.scale_by_soap,
    "kl_shampoo": fl.scale_by_kl_shampoo,
    "kl_soap": fl.scale_by_kl_soap,
    "original": functools.partial(fl.scale_by_structure, fl.Rotated(fl.Diagonal(), "LR")),
}


@pytest.mark.parametrize("name", IN_BASES)
def test_second_moments_follow_a_basis_that_turns(name):
    """One gradient thrice and another four times, and sparse gradients of rank one: both turn the basis at each refresh."""
    G, H = jax.random.normal(jax.random.key(1), (2, 8, 12))
    left, right = (jax.random.normal(key, (7, k)) for key, k in zip(jax.random.split(jax.random.key(2)), (8, 12), strict=True))
    rank_one = jnp.einsum("ti,tj->tij", left * (jnp.abs(left) > 1), right)
    for gradients in (jnp.stack([*3 * [G], *4 * [H]]), rank_one):
        assert largest_entry(IN_BASES[name](update_interval=3), gradients) < 20


def test_sums_of_squares_of_the_largest_entries_are_not_clipped():
    """A covariance clipped in its diagonal alone would have negative eigenvalues."""
    signs = jnp.sign(jnp.outer(*(jax.random.normal(jax.random.key(i), (k,)) for i, k in enumerate((8, 12)))))
    B, C = (signs.at[3, j].multiply(-1) for j in (4, 5))
    gradients = jnp.stack([signs, B, C, *5 * [signs], B, C, signs])
    assert largest_entry(fl.scale_by_soap(update_interval=3), 1.8e16 * gradients) < 20


@pytest.mark.parametrize("name", NAMES)
def test_the_largest_float16_gradients_make_finite_updates(name):
    init, update = stepper(name, (5, 3), jnp.float16)
    G = jnp.asarray(np.random.default_rng(0).choice([-65504, -3500, 3500, 65504], (5, 3)), jnp.float16)
    state = init(G / 65504)
    for _ in range(2):
        updates, state = update(G, state, G / 65504)
        assert updates.dtype == jnp.float16
        assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves((updates, state)))


def test_a_number_beyond_a_dtype_becomes_its_largest():
    found = narrowed(jnp.array([1e30, -1e30, 1.0, jnp.inf, jnp.nan]), jnp.float16(0))
    np.testing.assert_array_equal(found, np.array([65504, -65504, 1, np.inf, np.nan], np.float16))


@pytest.mark.parametrize(("name", "dtype"), [("racs", "float16"), ("adadiag_pp", "float16"), ("apollo", "float32")])
def test_fuzzed_gradients_are_survived(name, dtype):
    """A small part of benchmarks/fuzz.py, of ordinary and of any scale."""
    for line in fuzz.fuzz([name], [dtype], ["sparse", "repeated", "log normal", "uneven steps"], 32):
        assert [line[scales][what] for scales in fuzz.SCALES for what in fuzz.COUNTS] == [0] * 6


INVARIANT = {
    "racs": (("adam_learning_rate", 1.0),),
    "muon": (("eps", 0.0),),
    "normuon": (("eps", 0.0),),
    "soap_muon": (("eps", 0.0),),
    "shampoo": (("eps", 0.0),),
    "soap": (("eps", 0.0),),
    "kl_shampoo": (("eps", 0.0),),
    "sinkgd": (("eps", 0.0),),
    "aro": (("eps", 0.0),),
}


@pytest.mark.parametrize("name", INVARIANT)
@hypothesis.settings(max_examples=20, deadline=None, derandomize=True)
@hypothesis.given(kind=st.sampled_from(KINDS), shape=st.just((5, 3)), power=st.floats(-15, 15), seed=st.integers(0, 100))
def test_without_eps_updates_do_not_depend_on_the_scale_of_gradients(name, kind, shape, power, seed):
    here, _ = updates_of(name, kind, shape, 1.0, seed, options=INVARIANT[name])
    there, _ = updates_of(name, kind, shape, 10.0**power, seed, options=INVARIANT[name])
    for a, b in zip(here, there, strict=True):
        assert np.abs(a - b).max() <= 2e-3 * np.abs(a).max(), f"at 1e{power:.1f}"


WITH_STATE = ("racs", "muon", "normuon", "soap", "soap_muon", "osoap", "kl_shampoo", "adadiag_pp", "alice")


def test_a_turning_basis_and_its_update_mean_the_same_by_eps():
    """Gradients and eps in other units give the same updates."""
    gradients = jax.random.normal(jax.random.key(0), (3, 4, 6))
    found = []
    for unit in (1.0, 1e-3):
        tx = fl.scale_in_turning_basis(fl.RowColumn(5, divergence=fl.LogDet()), eps=unit)
        state = tx.init(gradients[0])
        for G in gradients:
            updates, state = tx.update(unit * G, state)
        found.append(updates)
    np.testing.assert_allclose(*found, rtol=1e-3, atol=1e-4)


NOT_FINITE = [(name, jnp.nan) for name in (*WITH_STATE, "swan")]


@pytest.mark.parametrize(("name", "wrong"), [*NOT_FINITE, ("racs", jnp.inf), ("adafactor", -jnp.inf), ("adam", jnp.inf)])
def test_nan_spreads_in_its_matrix_and_spares_the_others(name, wrong):
    """And so does what is infinite: averages of it would be huge for ever, and their updates zero without a word."""
    tx = named(name)(1.0)
    weights = {"a": tree(0)["kernel"], "b": tree(1)["kernel"]}
    state, update = tx.init(weights), jax.jit(tx.update)
    for t, bad in enumerate((0.0, wrong, 0.0)):
        G = {"a": tree(t)["kernel"].at[1, 1].add(bad), "b": tree(t + 9)["kernel"]}
        updates, state = update(G, state, weights)
        stays = t == 2 and name != "swan"  # which has no state
        assert np.isnan(updates["a"]).any() == (t == 1 or stays)
        assert np.isfinite(updates["b"]).all()


@pytest.mark.parametrize("name", ["adam", "racs", "soap", "alice", "galore"])
def test_state_in_float16_stops_at_its_largest_number(name):
    """Squares of 1e4 are beyond float16. Infinite averages would make every later update zero."""
    sizes = {"alice": {"rank": 2, "leading": 1}, "galore": {"rank": 2}}.get(name, {})
    tx, G = getattr(fl, name)(1.0, dtypes=jnp.float16, **sizes), {"kernel": 1e4 * tree(3)["kernel"]}
    _, state = jax.jit(tx.update)(G, tx.init(G), G)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(state))


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
    jaxpr = jax.make_jaxpr(tx.update)(tree(1), jax.eval_shape(tx.init, tree(0)), tree(0))
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

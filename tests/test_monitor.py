"""fl.monitor: its readings are NumPy's, it changes nothing, and it stands wherever its optimizer does."""

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import fimlens as fl
from fimlens.transforms.measures import gram, stable_rank

pytestmark = pytest.mark.system

SHAPES = {
    "attention": {"query": (4, 6)},
    "layers": {"w": (2, 5, 3), "bias": (2, 3)},
    "embedding": (7, 3),
    "gain": (),
}
WEIGHTS = ["attention/query", "embedding", "gain", "layers/bias", "layers/w/0", "layers/w/1"]
MATRICES = ["attention/query", "layers/w/0", "layers/w/1"]


def normal(seed, shapes=SHAPES):
    leaves, treedef = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
    rng = np.random.default_rng(seed)
    return treedef.unflatten([jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in leaves])


def by_name(tree):
    """Each matrix of SHAPES, by the name of its readings."""
    stack = {f"layers/w/{i}": tree["layers"]["w"][i] for i in range(2)}
    others = {"attention/query": tree["attention"]["query"], "layers/bias": tree["layers"]["bias"]}
    return {name: np.asarray(x, float) for name, x in (stack | others | {k: tree[k] for k in ("embedding", "gain")}).items()}


def names(tx, params):
    """The names of the readings, without running anything."""
    return {f"{of}/{name}" for name, (names, _) in jax.eval_shape(tx.init, params).readings.items() for of in names}


def expected(G, U, W):
    """An independent witness of the readings that need no basis."""
    found = {}
    for name, (g, u, w) in {k: (by_name(G)[k], by_name(U)[k], by_name(W)[k]) for k in WEIGHTS}.items():
        found[f"{name}/update_rms"] = np.sqrt(np.mean(u**2))
        found[f"{name}/relative_update"] = np.linalg.norm(u) / np.linalg.norm(w)
        found[f"{name}/cosine"] = np.sum(u * g) / np.linalg.norm(u) / np.linalg.norm(g)
        if name in MATRICES:
            found[f"{name}/stable_rank"] = np.linalg.norm(g) ** 2 / np.linalg.norm(g, 2) ** 2
    return found


def close(found, wanted, rtol=1e-5):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=rtol, atol=1e-6, err_msg=name)


# --- what is read ----------------------------------------------------------------------------------------------


def test_readings_are_numpy_s_at_every_interval_and_the_last_ones_stay():
    tx, W, old = fl.monitor(optax.adamw(0.1), interval=2), normal(0), None
    state, step = tx.init(W), jax.jit(tx.update)
    for t in range(1, 6):
        G = normal(t)
        U, state = step(G, state, W)
        if t % 2 == 0:
            old = expected(G, U, W)
        close(fl.readings(state), old or dict.fromkeys(fl.readings(state), 0.0))


@pytest.mark.parametrize(("scale", "dtype"), [(1e-30, "float32"), (1e30, "float32"), (1.0, "bfloat16")])
def test_readings_hold_at_every_scale_and_are_of_float32(scale, dtype):
    G, W = (jax.tree.map(lambda x: (scale * x).astype(dtype), normal(seed)) for seed in (1, 0))
    tx = fl.monitor(optax.sgd(1.0), interval=1)
    U, state = jax.jit(tx.update)(G, tx.init(W), W)
    assert {values.dtype for _, values in state.readings.values()} == {jnp.dtype("float32")}
    close(fl.readings(state), expected(G, U, W), rtol=1e-4)


@pytest.mark.parametrize("spectrum", [np.ones(40), np.linspace(1, 0.99, 40), np.eye(40)[0], np.arange(1, 41.0)], ids=str)
def test_the_stable_rank_is_too_large_by_no_more_than_its_bound(spectrum):
    G = np.linalg.qr(np.random.default_rng(0).normal(size=(50, 40)))[0] * spectrum
    found = stable_rank(gram(jnp.asarray(G, jnp.float32)[None])).item()
    exact = np.sum(spectrum**2) / np.max(spectrum) ** 2
    assert exact * (1 - 1e-5) <= found <= exact * 40 ** (1 / 512) * (1 + 1e-5)


def test_zeros_read_as_zero():
    zeros = jax.tree.map(jnp.zeros_like, normal(0))
    tx = fl.monitor(optax.sgd(1.0), interval=1)
    for G, W in ((zeros, normal(0)), (normal(0), zeros)):
        _, state = jax.jit(tx.update)(G, tx.init(W), W)
        found = fl.readings(state)
        assert np.isfinite(list(found.values())).all()
        assert not any(found.values()) or not any(v for k, v in found.items() if k.endswith("relative_update"))


def test_derivatives_of_a_training_are_those_without_it():
    """A root of zero has an infinite derivative, and times the zero that comes back from a reading it would be NaN."""

    def loss(rate, watch):
        tx, w = watch(optax.sgd(rate)), {"w": jnp.zeros((2, 3))}
        updates, state = tx.update({"w": jnp.eye(2, 3)}, tx.init(w), w)
        return updates["w"].sum() + 0 * sum(x.sum() for x in jax.tree.leaves(state) if x.dtype == jnp.float32)

    assert jax.jit(jax.grad(loss), static_argnums=1)(0.1, lambda tx: fl.monitor(tx, 1)) == -2


def test_a_gradient_that_is_not_finite_is_seen():
    W = normal(0)
    G = W | {"embedding": W["embedding"].at[0, 0].set(jnp.inf)}
    _, state = jax.jit(fl.monitor(optax.sgd(1.0), 1).update)(G, fl.monitor(optax.sgd(1.0)).init(W), W)
    found = fl.readings(state)
    assert not np.isfinite(found["embedding/update_rms"])
    assert np.isfinite(found["attention/query/update_rms"])


# --- bases -----------------------------------------------------------------------------------------------------


def test_staleness_is_rounding_after_a_refresh_and_grows_until_the_next():
    direction = fl.scale_by_structure(fl.Rotated(fl.Diagonal(), "LR"), b2=0.8, update_interval=3)
    tx, W, found = fl.monitor(direction, interval=1), {"w": jnp.ones((3, 4))}, []
    state, step = tx.init(W), jax.jit(tx.update)
    for t in range(5):
        _, state = step(normal(t, {"w": (3, 4)}), state, W)
        read = fl.readings(state)
        found.append([read["w/staleness_left"], read["w/staleness_right"]])
    fresh, stale = np.array(found)[[0, 3]], np.array(found)[[1, 2, 4]]
    assert (fresh < 1e-5).all()
    assert (stale > 0.05).all()
    for side in ("left", "right"):  # of the last step, in NumPy
        U, C = (np.asarray(getattr(kept["3 x 4"], side)[0], float) for kept in (state.inner.bases, state.inner.covariances))
        D = U.T @ C @ U
        np.testing.assert_allclose(
            read[f"w/staleness_{side}"], np.linalg.norm(D - np.diag(np.diag(D))) / np.linalg.norm(D), rtol=1e-4
        )


def test_the_share_outside_is_0_inside_the_subspace_and_1_outside_in_any_partition():
    """Four matrices of one shape, of which two transforms of one kind take turns."""
    rank = {"x": 1, "y": 2}
    galores = {name: fl.scale_by_galore(rank=r, update_interval=None) for name, r in rank.items()}
    labels = {"a": "x", "b": "y", "c": "x", "d": "y"}
    tx = optax.chain(optax.scale(1.0), fl.monitor(optax.partition(galores, labels), interval=1))
    shapes = dict.fromkeys(labels, (3, 4)) | {"c": (4, 3)}  # tall: its shorter side is the right one
    W, first = normal(0, shapes), normal(1, shapes)
    step = jax.jit(tx.update)
    _, state = step(first, tx.init(W), W)
    parts = {}
    for name, G in first.items():
        U, s, Vt = np.linalg.svd(np.asarray(G), full_matrices=False)
        parts[name] = [
            (U[:, which] * s[which]) @ Vt[which] for which in (slice(rank[labels[name]]), slice(rank[labels[name]], 3))
        ]
    inside = {"a": 0, "b": 1, "c": 1, "d": 0}
    _, state = step({name: jnp.asarray(parts[name][inside[name]]) for name in labels}, state, W)
    found = fl.readings(state)
    for name, which in inside.items():
        np.testing.assert_allclose(found[f"{name}/outside"], which, atol=1e-5)
    assert {f"{name}/staleness_left" for name in "abd"} | {"c/staleness_right"} == {k for k in found if "staleness" in k}


def heads(path, leaf):
    return fl.Axes(0, (1, 2)) if path == "heads" else None


def test_the_matrices_of_a_chain_are_those_of_the_readings():
    params = {"heads": jnp.ones((6, 2, 4)), "conv": jnp.ones((3, 3, 2, 4)), "head": jnp.ones((6, 9)), "bias": jnp.ones(4)}
    sides = {"heads/staleness_left", "heads/staleness_right", "conv/staleness_left", "conv/staleness_right"}
    ranks = {"heads/stable_rank", "conv/stable_rank"}
    of_matrices = names(fl.monitor(fl.soap(0.1, axes=heads), axes=heads), params) - names(fl.monitor(optax.sgd(0.1)), {})
    assert {
        name for name in of_matrices if name.rsplit("/")[-1] not in ("update_rms", "relative_update", "cosine")
    } == sides | ranks
    assert "head/cosine" in of_matrices


def test_bases_of_parts_and_random_projections_give_no_reading():
    params = {"w": jnp.ones((4, 6))}
    plain = names(fl.monitor(optax.sgd(0.1)), params)
    blocks = fl.scale_by_structure(fl.Blocks(fl.Rotated(fl.Diagonal(), "L"), rows=2))
    for tx in (blocks, fl.scale_by_apollo(rank=2), fl.scale_by_muon()):
        assert names(fl.monitor(tx), params) == plain


# --- where it stands -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tx", [optax.adamw(0.1), fl.scale_by_galore(rank=1, update_interval=2)], ids=["adamw", "galore"])
def test_updates_and_inner_state_are_those_without_it_to_the_bit(tx):
    W, watched = normal(0), fl.monitor(tx, interval=2)

    def trained(tx):
        def step(state, G):
            U, state = tx.update(G, state, W)
            return state, U

        gradients = jax.tree.map(lambda *xs: jnp.stack(xs), *map(normal, range(1, 4)))
        return jax.jit(lambda: jax.lax.scan(step, tx.init(W), gradients))()

    (alone, updates), (state, same) = trained(tx), trained(watched)
    for one, other in zip(jax.tree.leaves((alone, updates)), jax.tree.leaves((state.inner, same)), strict=True):
        np.testing.assert_array_equal(one, other)


WRAPPED = {
    "chain": lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
    "masked": lambda tx: optax.masked(tx, {**dict.fromkeys(SHAPES, True), "embedding": False}),
    "partition": lambda tx: optax.partition({"a": tx, "b": optax.sgd(1.0)}, {**dict.fromkeys(SHAPES, "a"), "gain": "b"}),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "injected": lambda tx: optax.inject_hyperparams(lambda rate: optax.chain(tx, optax.scale(rate)))(rate=1.0),
    "nested": lambda tx: {"trainer": [optax.chain(tx)]},
}


@pytest.mark.parametrize("name", WRAPPED)
def test_readings_are_found_in_any_state(name):
    tx = WRAPPED[name](fl.monitor(fl.soap(0.1)))
    params = jax.eval_shape(lambda: normal(0))
    init = tx["trainer"][0].init if name == "nested" else tx.init
    state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(init, params))
    found = fl.readings({"optimizer": [state]})
    assert "layers/w/1/staleness_right" in found
    assert {name.split("/")[0] for name in found} == SHAPES.keys() - {"masked": {"embedding"}, "partition": {"gain"}}.get(
        name, set()
    )


def test_bases_are_found_within_wrappers_of_the_optimizer():
    params = jax.eval_shape(lambda: normal(0))
    plain = names(fl.monitor(fl.soap(0.1)), params)
    injected = optax.inject_hyperparams(fl.soap)(0.1)
    for tx in (injected, optax.MultiSteps(fl.soap(0.1), 2).gradient_transformation(), optax.apply_if_finite(fl.soap(0.1), 3)):
        assert names(fl.monitor(tx), params) == plain


def test_a_batch_of_trainings_reads_each():
    tx = fl.monitor(optax.sgd(0.1), interval=2)
    W, G = (jax.tree.map(lambda *xs: jnp.stack(xs), normal(seed), normal(seed + 1)) for seed in (0, 2))
    state = jax.vmap(tx.init)(W)
    state = state._replace(steps=jnp.array([0, 1]))  # only the second is due
    _, state = jax.jit(jax.vmap(tx.update))(G, state, W)
    early, due = (fl.readings(jax.tree.map(lambda x, i=i: x[i], state)) for i in range(2))
    assert not any(early.values())
    close(due, expected(*(jax.tree.map(lambda x: x[1], tree) for tree in (G, jax.tree.map(lambda x: -0.1 * x, G), W))))


def test_a_state_is_kept_and_mapped_like_any_other():
    tx, W = fl.monitor(fl.scale_by_soap()), normal(0)
    state = tx.init(W)
    kept = flax.serialization.from_bytes(state, flax.serialization.to_bytes(state))
    assert jax.tree.structure(kept) == jax.tree.structure(state)
    mapped = optax.tree.map_params(tx, lambda x: x, state, transform_non_params=lambda x: x)
    assert jax.tree.structure(mapped) == jax.tree.structure(state)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_readings_on_a_mesh_are_those_of_one_device(kind):
    mesh = jax.make_mesh((2, 4), ("fsdp", "tensor"), axis_types=(kind, kind))
    W, G = ({"w": normal(seed, {"w": (4, 8)})["w"], "v": jnp.ones((8,))} for seed in (0, 1))
    specs = {"w": P("fsdp", "tensor"), "v": P()}
    direction = fl.scale_by_structure(fl.Rotated(fl.Diagonal(), "L", fl.Singular()), update_interval=None)
    tx = fl.monitor(direction, interval=1, ring=2)
    _, alone = jax.jit(tx.update)(G, tx.init(W), W)
    states = fl.state_partition_specs(tx, W, specs, mesh=mesh)
    assert set(jax.tree.leaves(states.readings, is_leaf=lambda x: isinstance(x, P))) == {P()}
    assert states.ring == {"w": P(None, "fsdp", "tensor"), "v": None}
    with jax.set_mesh(mesh):
        W, G = (jax.device_put(tree, jax.tree.map(lambda s: NamedSharding(mesh, s), specs)) for tree in (W, G))
        _, state = jax.jit(tx.update)(G, tx.init(W), W)
    close(fl.readings(state), fl.readings(alone), rtol=1e-4)
    np.testing.assert_array_equal(fl.recent_gradients(state)["w"], fl.recent_gradients(alone)["w"])
    assert state.ring["w"].sharding.spec == P(None, "fsdp", "tensor")


def test_the_ring_holds_the_last_gradients_of_every_matrix_in_their_order():
    tx, W = fl.monitor(optax.sgd(0.1), ring=3), normal(0)
    state, step = tx.init(W), jax.jit(tx.update)
    for t in range(1, 6):
        _, state = step(normal(t), state, W)
        found = fl.recent_gradients((state,))
        assert list(found) == MATRICES
        for name, G in found.items():
            np.testing.assert_array_equal(G, [by_name(normal(k))[name] for k in range(max(1, t - 2), t + 1)])


def test_the_ring_is_made_once():
    jaxpr = jax.make_jaxpr(fl.monitor(optax.sgd(0.1), ring=7).init)({"w": jnp.ones((2, 3))})
    assert [x.aval.shape for equation in jaxpr.eqns for x in equation.outvars].count((7, 2, 3)) == 1


def test_a_finite_gradient_stays_finite_in_a_short_ring():
    tx, W = fl.monitor(optax.sgd(0.1), ring=1), {"w": jnp.zeros((2, 2), jnp.float16)}
    _, state = tx.update({"w": jnp.full((2, 2), 1e6)}, tx.init(W), W)
    assert float(fl.recent_gradients(state)["w"].max()) == 65504


def test_weights_say_which_leaves_have_readings():
    """Optax trains the float leaves of a tree with integers beside them, whose gradients are zeros of any dtype."""
    W = {"w": jnp.ones((2, 3)), "table": jnp.arange(6).reshape(2, 3)}
    G = jax.tree.map(lambda x: jnp.ones(x.shape), W)
    tx = fl.monitor(optax.adamw(0.1), interval=1, ring=2)
    _, state = tx.update(G, tx.init(W), W)
    assert {name.split("/")[0] for name in fl.readings(state)} == set(fl.recent_gradients(state)) == {"w"}


def test_wrong_calls_are_refused():
    W = normal(0)
    batch = jax.vmap(fl.monitor(optax.sgd(1.0), ring=2).init)({"w": jnp.zeros((3, 2, 2))})
    for ask in (fl.readings, fl.recent_gradients):
        with pytest.raises(ValueError, match="a batch of states"):
            ask(batch)
    with pytest.raises(ValueError, match="ring is a number, at least 0; got -1"):
        fl.monitor(optax.sgd(1.0), ring=-1)
    with pytest.raises(ValueError, match="no monitor has a ring"):
        fl.recent_gradients(fl.monitor(optax.sgd(1.0)).init(W))
    with pytest.raises(ValueError, match="interval is a whole number, at least 1; got 0"):
        fl.monitor(optax.sgd(1.0), interval=0)
    with pytest.raises(ValueError, match="needs the parameters"):
        fl.monitor(optax.sgd(1.0)).update(W, fl.monitor(optax.sgd(1.0)).init(W))
    with pytest.raises(TypeError, match="expected the state that its own init makes"):
        fl.monitor(optax.sgd(1.0)).update(W, optax.sgd(1.0).init(W), W)
    with pytest.raises(ValueError, match="holds no monitor"):
        fl.readings(optax.sgd(1.0).init(W))


def test_two_monitors_of_the_same_matrices_are_told_apart_by_their_states():
    W = {"w": jnp.ones((2, 3))}
    state = optax.chain(fl.monitor(optax.sgd(1.0), ring=2), fl.monitor(optax.sgd(0.1), ring=2)).init(W)
    for ask in (fl.readings, fl.recent_gradients):
        with pytest.raises(ValueError, match=r"two monitors in this state have w"):
            ask(state)
        assert ask(state[0]).keys() == ask(state[1]).keys()

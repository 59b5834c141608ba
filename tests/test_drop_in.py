"""What a framework does to an optimizer's state and steps: each works for `optax.adamw`, and so for every optimizer here."""

import contextlib

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from test_optax import CHAINS, LIKE_THEM, QUICK, named

import fimlens as fl
from fimlens.transforms.drop_in import compiled_once

SOME = ["adam", "racs", "muon", "soap", "alice"]  # a state leaf by leaf, averages of fits, a momentum, stacks, low rank
LIKE_SOME = [name for name in QUICK + LIKE_THEM if name not in SOME]
ALL = SOME + [pytest.param(name, marks=pytest.mark.slow) for name in LIKE_SOME]
PARAMS = {
    "kernel": (4, 6),
    "layers": (2, 4, 6),
    "heads": (6, 2, 4),
    "conv": (3, 2, 3, 4),
    "bias": (4,),
    "gain": (),
    "none": (0, 4),
}


def heads(path, leaf):
    return fl.Axes(0, (1, 2)) if path == "heads" else None


def tree(seed=0, shapes=PARAMS):
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {name: jax.random.normal(k, shape) for (name, shape), k in zip(shapes.items(), keys, strict=True)}


def made(name):
    chain = name not in ("sgd", "adam", "adamw", "adafactor", "lars", "lamb", *CHAINS)
    return named(name)(0.1, **({"axes": heads} if chain else {}))


def is_masked(x):
    return isinstance(x, optax.MaskedNode)


@pytest.mark.parametrize("name", ALL)
def test_what_is_mapped_as_a_parameter_has_its_shape(name):
    """`optax.tree.map_params` maps every momentum and second moment of a parameter's shape, and keeps the tree."""
    tx, params = made(name), tree()
    state, pairs = jax.eval_shape(tx.init, params), []

    def seen(x, param):
        if not is_masked(x):
            pairs.append((x.shape, param.shape))
        return x

    mapped = optax.tree.map_params(tx, seen, state, params, transform_non_params=lambda x: x, is_leaf=is_masked)
    assert jax.tree.structure(mapped) == jax.tree.structure(state)
    assert all(own == shape for own, shape in pairs), pairs
    least = {"sgd": 0, "adafactor": 0, "lars": 7, "adam": 12, "adamw": 12, "lamb": 12, "muon": 4}
    assert len(pairs) >= least.get(name, 4), pairs  # Adam's two for each of the leaves that it takes


@pytest.mark.parametrize("name", ALL)
def test_a_state_is_made_from_shapes_and_kept_by_flax(name):
    """`init` reads shapes and dtypes alone; the state is of dicts, tuples and arrays, which any checkpoint holds."""
    tx, params = made(name), tree()
    state = tx.init(jax.eval_shape(lambda: params))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(lambda x: (x.shape, x.dtype), tx.init(params))
    kept = flax.serialization.from_bytes(state, flax.serialization.to_bytes(state))
    assert jax.tree.structure(kept) == jax.tree.structure(state)
    for there, here in zip(jax.tree.leaves(kept), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(there, here)


def injected(name):
    """Optax makes this transform anew at each step, with arrays as its numbers."""
    sizes = {"rank": 2, "leading": 1} if name == "alice" else {}
    return optax.inject_hyperparams(getattr(fl, name))(0.1, axes=heads, **sizes)


def with_a_new_direction(name):
    return optax.inject_hyperparams(lambda rate: optax.chain(getattr(fl, name)(), optax.scale(-rate)))(rate=0.1)


def monitored(name):
    return fl.monitor(getattr(fl, name)(), interval=2)


FACTORIES = [(made, name) for name in SOME] + [(injected, name) for name in ("racs", "muon", "soap", "alice", "adafactor")]


@pytest.mark.parametrize(
    ("factory", "name"), [*FACTORIES, (with_a_new_direction, "scale_by_racs"), (monitored, "scale_by_racs")]
)
def test_after_the_first_a_step_outside_jit_compiles_nothing(factory, name, caplog):
    tx, params, programs = factory(name), tree(), []
    state = tx.init(params)
    for _ in range(3):
        caplog.clear()
        with jax.log_compiles():
            _, state = jax.block_until_ready(tx.update(params, state, params))
        programs.append(sum("Compiling" in record.getMessage() for record in caplog.records))
    assert programs[0] > 0
    assert programs[2] == 0


def test_a_program_is_shared_by_options_that_differ_in_arrays_alone():
    """1, 1.0 and True are equal, and yet not the same option. What has no hash is compiled for itself."""
    traced = []

    def scaled(options, x):
        traced.append(options)
        return options[0] * x

    one, two = jnp.float32(1), jnp.float32(2)
    for options in [(one, 1), (two, 1), (one, 1.0), (one, True), (one, [1])]:
        np.testing.assert_array_equal(compiled_once(scaled, options)(one), options[0])
    assert [type(other) for _, other in traced] == [int, float, bool, list]


@pytest.mark.parametrize("interval", [3, None])
def test_a_batch_of_trainings_refreshes_where_one_is_due_and_each_its_own(interval):
    """Counters that differ: after one step alone, the second training is a step ahead of the first."""
    tx, G = fl.scale_by_structure(fl.Rotated(fl.Diagonal(), "LR"), update_interval=interval), tree(1)["kernel"]
    first = tx.init(G)
    _, second = tx.update(G, first)
    states, alone = jax.tree.map(lambda a, b: jnp.stack([a, b]), first, second), [first, second]
    batched = jax.jit(jax.vmap(tx.update))
    for seed in range(2, 6):
        Gs = jnp.stack([tree(seed)["kernel"], tree(seed + 9)["kernel"]])
        updates, states = batched(Gs, states)
        own = [tx.update(g, state) for g, state in zip(Gs, alone, strict=True)]
        alone = [state for _, state in own]
        np.testing.assert_allclose(updates, jnp.stack([update for update, _ in own]), rtol=1e-4, atol=1e-4)


def test_under_vmap_a_refresh_stays_behind_a_condition():
    tx, G = fl.scale_by_soap(), jnp.zeros((3, 4, 6))
    program = str(jax.make_jaxpr(jax.vmap(tx.update))(G, jax.vmap(tx.init)(G)))
    assert "cond[" in program


@pytest.mark.parametrize("name", ["soap", "galore"])
def test_a_loss_has_a_derivative_by_the_rate(name):
    """Through decompositions of bases at every step: against a difference quotient in float64."""

    def loss(rate):
        tx, w, target = named(name)(rate, update_interval=1), tree(0)["kernel"].astype(float), tree(1)["kernel"]

        def step(carry, _):
            w, state = carry
            updates, state = tx.update(w - target + 0.1 * w**3, state, w)
            return (optax.apply_updates(w, updates), state), None

        (w, _), _ = jax.lax.scan(step, (w, tx.init(w)), length=3)
        return jnp.sum((w - target) ** 2)

    with jax.enable_x64(True):
        slope, h = jax.jit(jax.grad(loss))(0.05), 1e-5
        quotient = (jax.jit(loss)(0.05 + h) - jax.jit(loss)(0.05 - h)) / (2 * h)
    np.testing.assert_allclose(slope, quotient, rtol=1e-5)


@pytest.mark.parametrize("name", ["scale_by_soap", "scale_by_osoap"])
def test_two_steps_have_a_derivative_by_their_gradients(name):
    """The first of them carries averages that are zero into the first basis."""
    tx, G = getattr(fl, name)(), jax.random.normal(jax.random.key(0), (2, 3, 4))

    def loss(G):
        state = tx.init(G[0])
        for g in G:
            updates, state = tx.update(g, state)
        return jnp.sum(updates**2 * jnp.arange(12.0).reshape(3, 4))

    assert jnp.isfinite(jax.jit(jax.grad(loss))(G)).all()


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_the_state_of_sharded_weights_is_made_where_they_are(name, kind):
    """Outside jit, as Optax's is: no array of a parameter's size lies whole on one device."""
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(kind,))
    shapes = {"a": (16, 24), "b": (8, 16, 24)}
    params = {k: jax.device_put(x, NamedSharding(mesh, P("fsdp"))) for k, x in tree(0, shapes).items()}
    for x in jax.tree.leaves(named(name)(0.1).init(params)):
        if x.size >= 16 * 24:
            assert x.sharding.num_devices == 8
            assert x.addressable_shards[0].data.size < x.size or x.shape[0] % 8, (x.shape, x.sharding)


@pytest.mark.system
@pytest.mark.parametrize("name", ["adam", "adamw", "racs", "soap", "alice"])
def test_sharded_by_type_it_trains_in_scan(name):
    """On an explicit mesh, the default of `jax.make_mesh`: carries keep their types, and the steps are those of one device."""
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Explicit,))
    tx, shapes = named(name)(0.1), {"a": (16, 24), "b": (8, 16, 24)}

    noise = {k: jnp.stack([tree(seed, shapes)[k] for seed in (1, 2, 3)]) for k in shapes}

    def train(params, noise):
        def step(carry, gradients):
            params, state = carry
            updates, state = tx.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), noise)[0][0]

    alone = jax.jit(train)(tree(0, shapes), noise)
    with jax.set_mesh(mesh):
        sharded = {k: jax.device_put(x, NamedSharding(mesh, P("fsdp"))) for k, x in tree(0, shapes).items()}
        noise = {k: jax.device_put(x, NamedSharding(mesh, P(None, "fsdp"))) for k, x in noise.items()}
        spread = jax.jit(train)(sharded, noise)
    for k in shapes:
        np.testing.assert_allclose(spread[k], alone[k], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("in_force", [True, False])
@pytest.mark.parametrize("name", ALL)
def test_weights_sharded_by_type_along_both_sides_have_updates_like_them(name, in_force):
    """Whether or not their mesh is in force (`jax.set_mesh`)."""
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Explicit,) * 2)
    params = {"kernel": jax.device_put(jnp.ones((8, 16)), NamedSharding(mesh, P("fsdp", "tensor")))}
    tx = named(name)(0.1)
    state = tx.init(params)
    with jax.set_mesh(mesh) if in_force else contextlib.nullcontext():
        updates, _ = jax.eval_shape(tx.update, params, state, params)
    assert updates["kernel"].sharding.spec == P("fsdp", "tensor")


@pytest.mark.parametrize("name", ["racs", "muon", "soap"])
def test_numbers_may_be_arrays_of_an_explicit_mesh(name):
    """As those of `optax.inject_hyperparams` are after a step inside jit."""
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Explicit,))
    params = {"kernel": jax.device_put(jnp.ones((8, 16)), NamedSharding(mesh, P("fsdp")))}
    tx = optax.inject_hyperparams(getattr(fl, name))(0.1)
    state = tx.init(params)
    numbers = jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, P())), state.hyperparams)
    updates, _ = jax.eval_shape(tx.update, params, state._replace(hyperparams=numbers), params)
    assert updates["kernel"].sharding.spec == P("fsdp", None)


@pytest.mark.parametrize("name", ["adam", "muon"])
def test_empty_leaves_of_bfloat16_keep_the_dtypes_of_the_state(name):
    """Gradients in float32, as of bfloat16 weights in mixed precision: the state can be the carry of a scan."""
    params = {"kernel": jnp.ones((4, 6), jnp.bfloat16), "none": jnp.ones((0, 4), jnp.bfloat16)}
    tx = named(name)(0.1)
    before = jax.eval_shape(tx.init, params)
    _, after = jax.eval_shape(tx.update, jax.tree.map(lambda x: x.astype(jnp.float32), params), before, params)
    assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, before)

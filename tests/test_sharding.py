"""On a mesh of eight simulated devices, every optimizer takes the same steps, and keeps its state where the weights lie."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from test_optax import SIZES, named

import fimlens as fl

pytestmark = pytest.mark.system

SPECS = {
    "attention": {f"w{i}": P("fsdp", "tensor") for i in range(8)},
    "up": {f"w{i}": P("fsdp", "tensor") for i in range(4)},
    "layers": P(None, "fsdp", "tensor"),
    "embedding": P("tensor", "fsdp"),
    "norm": P("fsdp"),
}
SHAPES = {
    "attention": {f"w{i}": (16, 16) for i in range(8)},
    "up": {f"w{i}": (16, 24) for i in range(4)},
    "layers": (4, 16, 24),
    "embedding": (32, 16),
    "norm": (16,),
}
NAMES = [pytest.param("muon", marks=pytest.mark.slow), "soap", "alice"]
LIKE_THEM = ["racs", "adafactor", "adam", "sgd", "lars", "lamb", "osoap", "adadiag", "adadiag_pp", "adafacdiag"]
LIKE_THEM += ["kl_shampoo", "kl_soap", "sinkgd", "aro", "normuon", "soap_muon", "alice_muon"]
LIKE_THEM += ["frugal", "cosmos", "galore", "apollo", "fira", "alice0", "low_rank_soap", "recommended", "links", "hyperball"]
NAMES += [pytest.param(name, marks=pytest.mark.slow) for name in LIKE_THEM]


def is_shape(x):
    return isinstance(x, tuple) and not isinstance(x, P)


def mesh():
    return Mesh(np.array(jax.devices()).reshape(2, 2, 2), ("data", "fsdp", "tensor"))


def tree(seed, rank=None):
    """Normal entries; with a rank, products of that rank, whose null spaces have no basis of their own."""
    shapes, treedef = jax.tree.flatten(SHAPES, is_leaf=is_shape)
    keys = jax.random.split(jax.random.key(seed), len(shapes))

    def leaf(key, shape):
        if rank is None or len(shape) < 2:
            return jax.random.normal(key, shape)
        a, b = jax.random.split(key)
        left = jnp.linalg.qr(jax.random.normal(a, (*shape[:-1], rank)))[0]
        right = jnp.linalg.qr(jax.random.normal(b, (*shape[:-2], shape[-1], rank)))[0]
        return left * (1 + jnp.arange(rank)) @ right.mT

    return treedef.unflatten([leaf(key, shape) for key, shape in zip(keys, shapes, strict=True)])


def shardings():
    return jax.tree.map(lambda spec: NamedSharding(mesh(), spec), SPECS, is_leaf=lambda x: isinstance(x, P))


def compiled(tx):
    """The step, with weights sharded and the state as `state_partition_specs` says."""
    params = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), SHAPES, is_leaf=is_shape)
    where = shardings()
    specs = fl.state_partition_specs(tx, params, where)
    state_where = jax.tree.map(lambda spec: NamedSharding(mesh(), spec), specs, is_leaf=lambda x: isinstance(x, P))
    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), jax.eval_shape(tx.init, params), state_where
    )
    params = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, where)
    step = jax.jit(tx.update, out_shardings=(where, state_where))
    with jax.set_mesh(mesh()):
        return step.lower(params, state, params).compile(), where, state_where


@pytest.mark.parametrize("name", NAMES)
def test_sharded_steps_are_the_unsharded_ones(name):
    """For gradients of full rank and of rank two."""
    tx = named(name)(1e-2)
    step, where, state_where = compiled(tx)
    alone = jax.jit(tx.update)
    # ARO brings every coordinate of the momentum to full size, and knows its last ones to eps times a condition number.
    for rank in (None,) if name == "aro" else (None, 2):
        weights = tree(0)
        state = tx.init(weights)
        there = jax.device_put((weights, state), (where, state_where))
        for t in range(3):
            G = tree(t + 1, rank)
            updates, state = alone(G, state, weights)
            sharded, there_state = step(jax.device_put(G, where), there[1], there[0])
            there = there[0], there_state
            for (path, u), v in zip(jax.tree_util.tree_leaves_with_path(updates), jax.tree.leaves(sharded), strict=True):
                off = np.abs(np.asarray(u) - np.asarray(v)).max() / max(np.abs(u).max(), 1e-30)
                # What a subspace leaves of a column is a difference, known to a hundredth where it is 1e-5 of the whole.
                bound = 1e-2 if (rank and name in SIZES) or name == "aro" else 1e-4
                if name == "hyperball":  # its update is a difference of weights, which are a hundred times as large
                    bound = 1e-3
                assert off < bound, f"{jax.tree_util.keystr(path)} is {off:.1e} off, rank {rank}, step {t}"


@pytest.mark.parametrize("name", ["adam", "racs", "adafactor"])
def test_nothing_of_a_parameters_size_is_gathered(name):
    """Neither whole, nor along one axis of the mesh."""
    step, _, _ = compiled(getattr(fl, name)(1e-2))
    hlo = step.as_text()
    moved = re.findall(r"= (\(.*?\)|\S+) (?:all-gather|all-to-all|collective-permute)(?:-start)?\(", hlo)
    sizes = [np.prod([int(d) for d in dims.split(",") if d]) for kind in moved for dims in re.findall(r"\[([\d,]*)\]", kind)]
    assert max(sizes, default=0) <= 32, moved
    reduced = re.findall(r"= (\(.*?\)|\S+) all-reduce(?:-start)?\(", hlo)
    if name != "adam":
        assert reduced  # the pattern finds what is there


@pytest.mark.parametrize("name", ["soap", "shampoo"])
def test_each_device_decomposes_its_own_matrices(name):
    step, _, _ = compiled(getattr(fl, name)(1e-2))
    hlo = step.as_text()
    decomposed = re.findall(r"= \(f32\[([\d,]+)\][^=]*?custom-call\([^\n]*lapack_ssyevd_ffi", hlo)
    assert set(decomposed) == {"16,16", "24,24"}  # on the CPU one at a time
    turns = re.findall(r"known_trip_count\":\{\"n\":\"(\d+)\"", hlo)
    assert "8" not in turns, turns  # of eight in a stack each of eight devices has one, and not all of them in a loop


def test_a_shard_map_and_a_mesh_of_explicit_axes_change_nothing():
    """Data-parallel training as people write it: gradients averaged within a `shard_map` of their own."""
    tx, G = fl.osoap(1e-2), {"a": jnp.asarray(tree(1)["up"]["w0"]), "b": jnp.asarray(tree(2)["up"]["w0"])}
    state = jax.jit(tx.init)(G)
    alone, _ = jax.jit(tx.update)(G, state, G)

    def step(weight):
        return tx.update(jax.tree.map(lambda g: jax.lax.pmean(g * weight.mean(), "data"), G), state, G)[0]

    auto = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    mapped = jax.jit(jax.shard_map(step, mesh=auto, in_specs=P("data"), out_specs=P()))(jnp.ones(8))
    with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))):
        explicit, _ = jax.jit(tx.update)(G, state, G)
    for name in G:
        for there in (mapped, explicit):  # to 1e-4, as above
            assert np.abs(there[name] - alone[name]).max() < 1e-4 * np.abs(alone[name]).max()


def test_the_state_lies_where_the_weights_do():
    params = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), SHAPES, is_leaf=is_shape)
    adam = fl.state_partition_specs(fl.adam(1e-3), params, SPECS)
    assert adam[0].averaged["layers"] == adam[0].momentum["layers"] == P(None, "fsdp", "tensor")
    assert adam[0].momentum["norm"] == P("fsdp")
    theirs = fl.state_partition_specs(optax.adam(1e-3), params, SPECS)
    assert theirs[0].mu == SPECS
    racs = fl.state_partition_specs(fl.scale_by_racs(), params, SPECS)
    assert [part["layers"] for part in racs[0].averaged] == [P(None, "fsdp", None), P(None, None, "tensor")]
    assert racs[1].norms["up"]["w0"] == P()
    soap = fl.state_partition_specs(fl.scale_by_soap(), params, SPECS, mesh=mesh())
    assert soap.momentum["16 x 16"] == P(("data", "fsdp", "tensor"), None, None)
    with pytest.raises(ValueError, match="name the mesh"):
        fl.state_partition_specs(fl.scale_by_soap(), params, SPECS)


@pytest.mark.parametrize("name", ["alice", "low_rank_soap", "soap"])
def test_stacks_of_any_length_and_lying_or_standing_can_be_laid_out(name):
    """One, three and two matrices on eight devices: mesh axes that the stack leaves over stay on whole sides alone."""
    sizes = {"rank": 5, "leading": 2} if name != "soap" else {}
    tx = getattr(fl, name)(1e-2, **sizes)
    for count, shape in ((1, (16, 24)), (3, (16, 24)), (2, (24, 16))):
        params = {f"w{i}": jnp.zeros(shape) for i in range(count)}
        specs = fl.state_partition_specs(tx, params, dict.fromkeys(params, P("fsdp", "tensor")), mesh=mesh())
        where = jax.tree.map(lambda spec: NamedSharding(mesh(), spec), specs, is_leaf=lambda x: isinstance(x, P))
        jax.tree.map(
            lambda x, s: s.shard_shape(x.shape), jax.eval_shape(tx.init, params), where
        )  # raises where it does not divide
    alice = fl.state_partition_specs(
        fl.scale_by_alice(rank=5, leading=2), jnp.zeros((24, 16)), P("fsdp", "tensor"), mesh=mesh()
    )
    assert alice[0].stacks["24 x 16"].left.basis == P(None, "tensor", None)
    assert alice[0].stacks["24 x 16"].lead.momentum == P(None, None, "fsdp")


def test_merged_axes_keep_what_they_can():
    tx = fl.as_matrix(fl.scale_by_structure(fl.RowColumn(), average="fits"), fl.Axes(0, (1, 2)))
    shape = jax.ShapeDtypeStruct((16, 4, 8), jnp.float32)
    specs = fl.state_partition_specs(tx, shape, P("fsdp", "tensor"))
    assert specs.momentum == P("fsdp", "tensor", None)  # kept as the leaf is
    assert specs.averaged == (P("fsdp", None), P(None, "tensor"))
    assert fl.state_partition_specs(tx, shape, P(None, None, "tensor")).averaged == (P(None, None), P(None, None))


def test_the_place_nearest_the_leaf_counts():
    """Where parameters are a list, their numbers are also those of the transforms in a chain."""
    shapes = [jax.ShapeDtypeStruct((8, 8), jnp.float32), jax.ShapeDtypeStruct((8, 8), jnp.float32)]
    specs = fl.state_partition_specs(fl.adam(1e-3), shapes, [P("fsdp"), P(None, "tensor")])
    assert specs[0].momentum == [P("fsdp", None), P(None, "tensor")]
    vectors = [jax.ShapeDtypeStruct((2,), jnp.float32)] * 2
    for tx in (fl.adam(1e-3), fl.scale_by_structure(fl.Diagonal())):
        specs = jax.tree.leaves(fl.state_partition_specs(tx, vectors, [P("data")] * 2), is_leaf=lambda x: isinstance(x, P))
        assert specs.count(P("data")) == 4  # momenta and second moments, not the count, the weight or the key
        assert set(specs) == {P("data"), P()}
    numbers = fl.state_partition_specs(optax.adamw(1e-3), {"w": shapes[0], "gain": 1.5}, {"w": P("fsdp"), "gain": P()})
    assert numbers[0].mu == {"w": P("fsdp", None), "gain": P()}  # a number of Python is a leaf, too
    alone = fl.state_partition_specs(fl.scale_by_racs(), shapes[0], P("fsdp", "tensor"))
    assert alone[0].averaged == (P("fsdp", None), P(None, "tensor"))

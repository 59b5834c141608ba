"""Leaves of three axes or more are matrices by evidence, or go to Adam with one warning that says what to write."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import fimlens as fl


def shaped(tree):
    return jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), tree, is_leaf=lambda x: isinstance(x, tuple))


def routes(tree, **options):
    return fl.routes(shaped(tree), **options)


class Layer(linen.Module):
    """A layer of Flax's modules: a norm, attention, an MLP whose axes have names, and convolutions."""

    bias: bool = True

    @linen.compact
    def __call__(self, x, _=None):
        named = linen.with_logical_partitioning(linen.initializers.lecun_normal(), ("embed", "mlp"))
        if self.bias:
            x = linen.LayerNorm()(x)
        x = linen.MultiHeadDotProductAttention(4, use_bias=self.bias)(x, x)
        x = linen.Dense(64, use_bias=self.bias, kernel_init=named)(linen.Dense(64, use_bias=self.bias)(x))
        x = linen.Conv(64, (3,), use_bias=self.bias)(x)
        return linen.Conv(64, (3,), feature_group_count=64, use_bias=self.bias, name="depthwise_conv")(x), None


class Model(linen.Module):
    """Two copies of the layer: one alone, three scanned."""

    bias: bool = True
    scanned: str | None = None

    @linen.compact
    def __call__(self, x):
        x, _ = Layer(self.bias, name="alone")(x)
        options = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "length": 3}
        names = {"metadata_params": {linen.PARTITION_NAME: "layers"}}
        x, _ = linen.scan(Layer, **options, **names)(self.bias, name=self.scanned)(x, None)
        return linen.Dense(10, name="classifier")(x)


@pytest.mark.parametrize(("bias", "scanned"), [(True, None), (True, "trunk"), (False, "blocks")])
@pytest.mark.parametrize("axes", [None, fl.flax_axes])
def test_a_model_of_flax_s_modules_plain_and_scanned(bias, scanned, axes):
    params = jax.eval_shape(Model(bias, scanned).init, jax.random.key(0), jnp.ones((2, 5, 64)))["params"]
    seen = fl.routes(params, axes=axes)
    kernels = {path.replace("/value", "").removesuffix("/kernel"): shape for path, shape in seen.items() if "kernel" in path}
    attention = {f"MultiHeadDotProductAttention_0/{name}": (64, 64) for name in ("query", "key", "out")}
    layer = attention | {"MultiHeadDotProductAttention_0": (64, 64), "Dense_0": (64, 64), "Dense_1": (64, 64)}
    layer |= {"Conv_0": (192, 64), "depthwise_conv": None}
    stack = {name: shape and (3, *shape) for name, shape in layer.items()}
    expected = {f"alone/{name}": shape for name, shape in layer.items()} | {"classifier": None}
    assert kernels == expected | {f"{scanned or 'ScanLayer_0'}/{name}": shape for name, shape in stack.items()}
    assert not any(shape for path, shape in seen.items() if "kernel" not in path)


def test_a_model_of_nnx_modules_plain_and_vmapped():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.attention = nnx.MultiHeadAttention(4, 8, decode=False, rngs=rngs)
            self.conv = nnx.Conv(3, 5, (3, 3), rngs=rngs)

    class Both(nnx.Module):
        def __init__(self, rngs):
            self.alone = Net(rngs)
            self.copies = nnx.vmap(Net)(nnx.Rngs(1).split(2))

    params = jax.eval_shape(lambda: nnx.state(Both(nnx.Rngs(0)), nnx.Param))
    seen = {path.removesuffix("/kernel/value"): shape for path, shape in fl.routes(params).items() if "kernel" in path}
    net = {f"attention/{name}": (8, 8) for name in ("query", "key", "value", "out")} | {"conv": (27, 5)}
    assert seen == {f"alone/{k}": s for k, s in net.items()} | {f"copies/{k}": (2, *s) for k, s in net.items()}


def test_bases_are_those_of_the_matrix():
    """Seen as a convolution, a scanned attention kernel had bases of 4096: 100 numbers a weight in place of 6."""
    kernels = {"query": {"kernel": (4, 64, 4, 16)}, "out": {"kernel": (4, 4, 16, 64)}}
    params = shaped({"layers": kernels | {"norm": {"scale": (4, 64)}}})
    state = jax.eval_shape(fl.soap(1e-3).init, params)
    assert sum(x.size for x in jax.tree.leaves(state)) < 6.1 * 2 * 4 * 64 * 64


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"conv": {"kernel": (3, 8, 16)}}, (24, 16)),  # Conv1D
        ({"conv2_d": {"w": (3, 3, 4, 8), "b": (8,)}}, (36, 8)),  # Haiku
        ({"mix": {"kernel": (8, 2, 3), "bias": (2, 3)}}, (8, 6)),  # DenseGeneral: the bias tells its outputs
        ({"mix": {"kernel": (2, 3, 8), "bias": (8,)}}, (6, 8)),
        ({"mix": {"kernel": (4, 4, 3), "bias": (4, 3)}}, (4, 12)),  # as many heads as inputs
        ({"dense": {"kernel": (5, 4, 3), "bias": (5, 3)}}, (5, 4, 3)),  # five layers, by their bias
        ({"layers": {"experts": {"kernel": (2, 5, 4, 3)}, "bias": (2, 4)}}, (2, 5, 4, 3)),
        ({"layers": [{"w": (6, 6), "b": (6,)}]}, (6, 6)),  # a list of layers is no stack
    ],
)
def test_evidence(tree, expected):
    seen = routes(tree)
    assert [shape for path, shape in seen.items() if not path.endswith(("bias", "b"))] == [expected]
    assert not any(shape for path, shape in seen.items() if path.endswith(("bias", "/b")))


def test_names_of_axes_are_evidence():
    boxes = {
        "query": linen.LogicallyPartitioned(jnp.ones((8, 3, 2, 4)), names=("embed", "layers", "heads", "head_dim")),
        "out": linen.Partitioned(jnp.ones((2, 4, 8)), names=("heads", "kv", "embed")),
        "tau": linen.Partitioned(jnp.ones((3, 8)), names=("layers", None)),
        "mesh": linen.Partitioned(jnp.ones((3, 8, 4)), names=(None, "fsdp", "tensor")),
    }
    assert fl.routes(boxes) == {"mesh/value": None, "out/value": (8, 8), "query/value": (3, 8, 8), "tau/value": None}


STACKED = {"w": (6, 8, 8), "gamma": (6, 8), "layer_scale": (6, 8), "b": (6, 8), "tau": (6, 8)}


@pytest.mark.parametrize(
    "tree",
    [
        {"layers": STACKED},  # stacked vectors, of any name
        {"trunk": STACKED},  # the biases tell that they are stacked
        {"b": (6, 8), "gamma": (6, 8), "q_bias": (6, 8), "layer_scale_1": (6, 8)},
        {"cls_token": (1, 1, 8), "pos": (1, 7, 8), "pos_embedding": (7, 8), "register_tokens": (4, 8), "bias_table": (9, 2)},
        {"classifier": {"kernel": (8, 3)}, "head": {"kernel": (8, 3)}},
        {"bias_hh": (6, 8), "bias_ih_l0": (6, 8), "bq": (6, 8), "b_q": (6, 8), "gain": (6, 8), "shift": (6, 8)},
        {"offset": (6, 8), "alpha": (6, 8), "gamma_1": (6, 8), "ls1": (6, 8), "ls": {"value": (6, 8)}, "temperature": (6, 1)},
        {"positional": (7, 8), "positional_encoding": (7, 8), "position_ids": (1, 7), "pos_enc": (7, 8)},
        {"heads": {"kernel": (8, 3)}, "output_projection": {"kernel": (8, 3)}, "score": {"weight": (8, 3)}, "final": (8, 3)},
        {"params": {"heads": {"kernel": (8, 3)}, "score": {"kernel": {"value": (8, 3)}}}},
        {"depthwise": {"kernel": (3, 3, 1, 8)}},
    ],
)
def test_vectors_tokens_and_heads_go_to_adam_without_a_warning(tree):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.eval_shape(fl.racs(0.1).init, shaped(tree))
    assert {shape for path, shape in routes(tree).items() if not path.endswith("/w")} == {None}
    assert [shape for path, shape in routes(tree).items() if path.endswith("/w")] in ([], [(6, 8, 8)])


def test_names_like_those_of_vectors_and_heads_may_be_of_matrices():
    names = ("lora_a", "lora_b", "final_dense", "post_attention", "rescale_w", "by_head")
    attention = {name: {"kernel": (8, 4)} for name in ("heads", "score", "output_projection", "out_proj", "fc", "output")}
    tree = {"layers_0": {"attention": attention} | dict.fromkeys(names, (8, 4)), "fc": {"kernel": (8, 4)}, "heads": (8, 4)}
    assert set(routes(tree).values()) == {(8, 4)}


UNKNOWN = {
    "mix": {"kernel": (8, 2, 3)},  # without a bias
    "query": {"kernel": (6, 8, 8)},  # scanned, or of heads: there is no "out" to compare with
    "attention": {"query": {"kernel": (8, 3, 2, 4)}, "out": {"kernel": (2, 3, 4, 8)}},  # scanned along another axis
    "conv": {"kernel": (3, 3, 1, 8), "bias": (8,)},  # depthwise, or of one channel
    "eqx_conv": {"weight": (8, 3, 3, 3), "bias": (8, 1, 1)},  # outputs first
}


def test_what_is_unknown_goes_to_adam_with_one_warning():
    params, tx = jax.tree.map(lambda x: jnp.ones(x.shape), shaped(UNKNOWN)), fl.muon(0.1)
    with pytest.warns(UserWarning, match="muon: nothing tells which axes are inputs") as caught:
        state = tx.init(params)
    message = str(caught[0].message)
    assert len(caught) == 1
    assert all(f"'{path}'" in message for path in ("mix/kernel", "query/kernel", "conv/kernel", "attention/out/kernel"))
    assert "fl.Axes(-2, -1)" in message
    assert "flax_axes" in message
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        updates, _ = jax.eval_shape(tx.update, params, state, params)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
    assert set(routes(UNKNOWN).values()) == {None}
    assert set(routes(UNKNOWN, route=lambda path, leaf: len(leaf.shape) > 2).values()) == {None, (8, 1, 1)}
    with pytest.raises(ValueError, match=r"as_matrix: nothing tells .* of 'mix/kernel' of shape \(8, 2, 3\)"):
        fl.as_matrix(optax.identity()).init(params["mix"] and {"mix": params["mix"]})


def test_declared_axes_and_the_answer_for_flax_are_enough():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tx = fl.muon(0.1, axes=fl.flax_axes)
        jax.eval_shape(tx.init, shaped({"attention": {"query": {"kernel": (8, 2, 3)}}}))
    assert routes({"query": {"kernel": (8, 2, 3)}}, axes=fl.flax_axes) == {"query/kernel": (8, 6)}
    assert routes({"key": {"kernel": (5, 8, 2, 3)}}, axes=fl.flax_axes) == {"key/kernel": (5, 8, 6)}
    assert routes({"out": {"kernel": (5, 2, 3, 8)}}, axes=fl.flax_axes) == {"out/kernel": (5, 6, 8)}
    declared = {"mix": {"kernel": optax.contrib.MuonDimensionNumbers(0, (1, 2))}}
    assert routes({"mix": {"kernel": (8, 2, 3)}}, axes=declared) == {"mix/kernel": (8, 6)}


def test_matrices_sees_convolutions_as_the_full_chains_do():
    """`fl.matrices` used to show its direction nine matrices of 2 x 4."""
    conv = jax.random.normal(jax.random.key(0), (3, 3, 2, 4))
    tx = fl.matrices(fl.scale_by_racs())
    routed, _ = tx.update({"conv": conv}, tx.init({"conv": conv}))
    direction = fl.scale_by_racs()
    by_hand, _ = direction.update(conv.reshape(18, 4), direction.init(conv.reshape(18, 4)))
    np.testing.assert_allclose(routed["conv"].reshape(18, 4), by_hand, rtol=1e-6)


@pytest.mark.parametrize("name", ["lars", "lamb", "adafactor"])
def test_optimizers_that_route_nothing_see_the_same_matrices(name):
    """An attention kernel had a ratio for each of its inputs. Without evidence it still has, with a warning."""
    make, G = getattr(fl, name), jax.random.normal(jax.random.key(0), (6, 2, 4))
    attention = {"query": {"kernel": G}, "out": {"kernel": G.transpose(1, 2, 0)}}
    merged = jax.tree.map(lambda x: x.reshape(-1, 8) if x.shape[0] == 6 else x.reshape(8, -1), attention)
    moved, by_hand = (jax.jit(make(0.1).update)(tree, make(0.1).init(tree), tree)[0] for tree in (attention, merged))
    for ours, expected in zip(jax.tree.leaves(moved), jax.tree.leaves(by_hand), strict=True):
        np.testing.assert_allclose(ours.reshape(expected.shape), expected, rtol=1e-5)
    with pytest.warns(UserWarning, match=f"{name}: nothing tells.*'mix'.*Until then each index") as caught:
        jax.eval_shape(make(0.1).init, {"mix": G})
    assert len(caught) == 1


@pytest.mark.parametrize("given", [{"w": {"x": True}}, [True], {"w": True, "v": {"a": True}}])
def test_a_tree_of_another_structure_is_refused_by_us(given):
    params = {"w": jnp.ones((3, 4)), "v": jnp.ones((3, 4))}
    with pytest.raises(ValueError, match=r"muon: the given tree has no entry for parameter"):
        fl.muon(0.1, route=given).init(params)
    axes = jax.tree.map(lambda _: fl.Axes(0, 1), given)
    with pytest.raises(ValueError, match=r"as_matrix: the given tree has no entry for parameter"):
        fl.muon(0.1, axes=axes).init(params)

"""Which leaves a method takes, and how each is seen as a matrix."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_optax import NAMES, named

import fimlens as fl

SHAPES = {
    "embedding": (11, 6),
    "layers": [
        {"attention": {"query": {"kernel": (6, 2, 3)}, "out": {"kernel": (2, 3, 6)}}, "mlp": {"kernel": (6, 9), "bias": (9,)}}
    ],
    "conv": {"kernel": (3, 3, 2, 4)},
    "lm_head": {"kernel": (6, 11)},
    "temperature": (),
    "row": (1, 5),
    "column": (5, 1),
    "empty": (0, 3),
}


def tree(seed, shapes=SHAPES):
    leaves, treedef = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return treedef.unflatten([jax.random.normal(k, shape) for k, shape in zip(keys, leaves, strict=True)])


def first_step(tx, G, weights=None):
    """The first update and the state after it, as one program: eagerly, each operation on each shape is one."""
    return jax.jit(lambda G, weights: tx.update(G, tx.init(weights), weights))(G, G if weights is None else weights)


def taken(shapes=SHAPES, **options):
    """Paths of the leaves that go to the method."""
    tx = fl.matrices(optax.scale(2.0), optax.scale(1.0), **options)
    updates, _ = first_step(tx, jax.tree.map(np.ones, shapes, is_leaf=lambda x: isinstance(x, tuple)))
    paths = jax.tree_util.tree_leaves_with_path(jax.device_get(updates))
    return {jax.tree_util.keystr(path, simple=True, separator="/") for path, u in paths if u.size and (u == 2).all()}


ATTENTION = {"layers/0/attention/query/kernel", "layers/0/attention/out/kernel"}
INNER = ATTENTION | {"layers/0/mlp/kernel", "conv/kernel", "row", "column"}


def test_matrices_go_to_the_method_and_the_rest_to_adam():
    assert taken() == INNER
    assert taken(head=True) == INNER | {"lm_head/kernel"}


@pytest.mark.parametrize(
    "options", [{}, {"head": True}, {"route": "attention|mlp"}, {"route": lambda path, leaf: leaf.ndim == 4}]
)
def test_routes_say_beforehand_what_goes_to_the_method(options):
    shapes = jax.eval_shape(lambda: tree(0))
    assert {path for path, shape in fl.routes(shapes, **options).items() if shape} == taken(**options)


def test_routes_say_what_the_method_sees():
    axes = lambda path, leaf: fl.Axes(0, (1, 2)) if "query" in path else None  # noqa: E731
    seen = []
    fl.as_matrix(optax.GradientTransformation(seen.append, optax.identity().update), axes).init(tree(0))
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): x.shape for path, x in jax.tree.leaves_with_path(seen[0])}
    routes = fl.routes(tree(0), axes=axes)
    assert routes == {path: shape if path in INNER else None for path, shape in named.items()}
    assert routes["layers/0/attention/query/kernel"] == (6, 6)
    assert routes["conv/kernel"] == (18, 4)


def test_stacked_vectors_are_no_matrices():
    layers = {"norm": {"scale": (12, 64)}, "mlp": {"bias": (12, 32), "kernel": (12, 64, 32)}, "post_LayerNorm": {"w": (12, 64)}}
    layers["nnx"] = {"bias": {"value": (12, 32)}, "scaled": {"value": (12, 32, 8)}}
    assert taken(shapes={"layers": layers}) == {"layers/mlp/kernel", "layers/nnx/scaled/value"}


@pytest.mark.parametrize("path", ["normformer/query/kernel", "unnormalized_proj", "PreNorm_0/Dense_0/kernel", "norm/kernel"])
def test_a_word_that_only_contains_a_name_is_a_matrix(path):
    assert fl.routes({path: jnp.ones((4, 4))}) == {path: (4, 4)}


@pytest.mark.parametrize("path", ["norm1/w", "RMSNorm/w/value", "norms/0", "LayerNorm_0/g", "ln_f/g", "tok_emb/w"])
def test_norms_and_embeddings_are_known_by_name(path):
    assert fl.routes({path: jnp.ones((4, 4))}) == {path: None}


def test_the_rule_is_replaced_by_a_pattern_a_function_or_a_tree():
    assert taken(route="attention|mlp") == ATTENTION | {"layers/0/mlp/kernel"}
    assert taken(route=lambda path, leaf: leaf.ndim == 4) == {"conv/kernel"}
    chosen = jax.tree.map(lambda x: x.shape == (1, 5), tree(0))
    assert taken(route=chosen) == {"row"}
    assert taken(route=jax.tree.map(lambda chosen: "method" if chosen else "others", chosen)) == {"row"}
    assert taken(route=lambda path, leaf: "method" if leaf.ndim == 4 else "others") == {"conv/kernel"}
    assert taken(route=lambda path, leaf: np.bool_(leaf.ndim == 4)) == {"conv/kernel"}


@pytest.mark.parametrize(
    ("route", "message"),
    [
        ({"embedding": True}, "has no entry for parameter 'column'"),
        ({"embedding": "muon"}, "matrices: route answers for each leaf True or \"method\".*got 'muon'"),
        (lambda path, leaf: None, "matrices: route answers for each leaf.*got None"),
        (2, "matrices: route answers for each leaf.*got 2"),
        ("(", r"matrices: route '\(' is not a regular expression: .*unterminated"),
    ],
)
def test_routes_that_do_not_say_are_refused(route, message):
    with pytest.raises(ValueError, match=message):
        taken(route=route)


def test_a_module_of_bools_is_a_tree():
    """Equinox's modules are callable."""
    weights = eqx.filter(eqx.nn.MLP(2, 3, 4, 1, key=jax.random.key(0)), eqx.is_array)
    tx = fl.matrices(optax.scale(2.0), optax.scale(1.0), route=jax.tree.map(lambda x: x.ndim == 2, weights))
    updates, _ = first_step(tx, jax.tree.map(jnp.ones_like, weights))
    assert (updates.layers[0].weight == 2).all()
    assert (updates.layers[0].bias == 1).all()


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_takes_any_tree(name):
    """Ranks 0 to 4, thin, empty, and with gradients of zero."""
    tx, weights = named(name)(0.1), tree(0)
    state, update = jax.jit(tx.init)(weights), jax.jit(tx.update)
    for G in (tree(1), jax.tree.map(jnp.zeros_like, weights), tree(2)):
        updates, state = update(G, state, weights)
        assert all(bool(jnp.isfinite(u).all()) for u in jax.tree.leaves(updates))
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, weights)


@pytest.mark.parametrize("tx", [fl.scale_by_muon(), fl.scale_by_muon(root="exact", scale="rms"), fl.scale_by_swan()])
def test_directions_take_empty_leaves_and_numbers(tx):
    shapes = [(0,), (0, 3), (3, 0), (0, 0), (2, 0, 4), ()]
    G = tree(0, shapes)
    updates, _ = first_step(tx, G)
    assert [u.shape for u in updates] == shapes
    assert jnp.isfinite(updates[-1])


def as_seen_by_hand(shape, axes, forth, back, name="w"):
    """One declaration of axes gives what a reshape by hand gives."""
    G = jax.random.normal(jax.random.key(1), shape)
    direction = fl.scale_by_racs()
    tx = fl.as_matrix(direction, axes)
    ours, _ = first_step(tx, {name: G})
    by_hand = jax.jit(lambda G: back(first_step(direction, forth(G))[0]))(G)
    np.testing.assert_allclose(ours[name], by_hand, rtol=1e-5, atol=1e-7)


def test_attention_projections():
    """(d, heads, d_head) in, (heads, d_head, d) out."""
    as_seen_by_hand((6, 2, 3), fl.Axes(0, (1, 2)), lambda G: G.reshape(6, 6), lambda U: U.reshape(6, 2, 3))
    as_seen_by_hand((2, 3, 6), fl.Axes((0, 1), 2), lambda G: G.reshape(6, 6), lambda U: U.reshape(2, 3, 6))


def test_convolutions_are_reductions_over_all_but_the_last_axis():
    for axes in (None, fl.Axes((0, 1, 2), -1)):
        as_seen_by_hand((3, 3, 2, 4), axes, lambda G: G.reshape(18, 4), lambda U: U.reshape(3, 3, 2, 4), "conv")


def test_stacks_of_layers_are_mapped():
    """Not flattened: each layer has a limiter and factors of its own."""
    as_seen_by_hand((3, 4, 5), None, lambda G: G, lambda U: U, "layers")
    G = jax.random.normal(jax.random.key(1), (3, 4, 5))
    tx = fl.scale_by_racs()
    together, state = first_step(tx, G)
    alone, _ = first_step(tx, G[1])
    np.testing.assert_allclose(together[1], alone, rtol=1e-5)
    assert state[1].norms.shape == (3, 1, 1)


def test_a_stack_moves_as_its_layers_do_alone():
    """Also where the sizes of weights and updates count."""
    tx = fl.adafactor(0.1)
    W, G = (jnp.arange(1, 4)[:, None, None] * jax.random.normal(jax.random.key(k), (3, 8, 6)) for k in (0, 1))
    together, _ = first_step(tx, {"layers": G}, {"layers": W})
    alone, _ = first_step(tx, list(G), list(W))
    np.testing.assert_allclose(together["layers"], jnp.stack(alone), rtol=1e-5)


def test_axes_in_any_order_and_optaxs_own_declaration():
    def forth(G):
        return G.transpose(1, 0, 3, 2).reshape(3, 2, 20)  # axis 1 counts, 0 is summed over, 3 and 2 are outputs

    def back(U):
        return U.reshape(3, 2, 5, 4).transpose(1, 0, 3, 2)

    as_seen_by_hand((2, 3, 4, 5), fl.Axes(0, (3, 2), 1), forth, back)
    as_seen_by_hand((2, 3, 4, 5), optax.contrib.MuonDimensionNumbers(0, (3, 2)), forth, back)
    weights = {"query": jnp.ones((4, 2, 3)), "dense": jnp.ones((4, 5))}
    declared = {"query": optax.contrib.MuonDimensionNumbers(0, (1, 2)), "dense": None}
    state = fl.as_matrix(fl.scale_by_structure(fl.Rows(), b1=None), declared).init(weights)
    assert jax.tree.map(jnp.shape, state.averaged) == {"query": (4, 1), "dense": (4, 1)}


@pytest.mark.parametrize(("rows", "columns"), [(1, 3), (2, 1), (2, 3)])
def test_blocks_of_a_leaf_are_matrices_of_their_own(rows, columns):
    """Q, K and V side by side, heads of an output projection, and both."""

    def forth(G):
        return G.reshape(rows, 6 // rows, columns, 12 // columns).swapaxes(1, 2)

    def back(U):
        return U.swapaxes(1, 2).reshape(6, 12)

    as_seen_by_hand((6, 12), fl.Axes(rows=rows, columns=columns), forth, back)
    as_seen_by_hand(
        (2, 6, 3, 4),
        fl.Axes(1, (2, 3), rows=rows, columns=columns),
        lambda G: jnp.stack([forth(layer.reshape(6, 12)) for layer in G]),
        lambda U: jnp.stack([back(layer).reshape(6, 3, 4) for layer in U]),
    )


def test_blocks_that_do_not_divide_a_side_are_refused():
    with pytest.raises(ValueError, match=r"as_matrix: 'w' of shape \(4, 6\) is 4 x 6, which has no grid of 1 x 4"):
        fl.muon(0.1, axes=fl.Axes(columns=4)).init({"w": jnp.ones((4, 6))})


@pytest.mark.parametrize("axes", [fl.Axes(0, (0, 1)), fl.Axes(0, 7), fl.Axes((), (0, 1, 2)), fl.Axes(0, 1, ())])
def test_axes_that_are_not_named_once_are_refused(axes):
    with pytest.raises(ValueError, match="as_matrix: 'w' has shape"):
        fl.as_matrix(optax.identity(), axes).init({"w": jnp.ones((2, 3, 4))})


@pytest.mark.parametrize("axes", ["x", (0, 1), {"w": (0, 1)}, lambda path, leaf: (0, 1)])
def test_axes_of_another_kind_are_refused(axes):
    with pytest.raises(ValueError, match=r"as_matrix: axes are None or fl\.Axes\(reduction, output\)"):
        fl.as_matrix(optax.identity(), axes).init({"w": jnp.ones((2, 3, 4))})


def test_muon_with_declared_axes_is_optaxs():
    weights = {"query": jax.random.normal(jax.random.key(0), (6, 2, 4)), "bias": jnp.ones(3)}
    declared = {"query": optax.contrib.MuonDimensionNumbers(0, (1, 2)), "bias": None}
    ours = fl.muon(0.1, axes=declared)
    theirs = optax.contrib.muon(0.1, muon_weight_dimension_numbers=declared)
    updates = [first_step(tx, weights)[0] for tx in (ours, theirs)]
    for name in weights:
        np.testing.assert_allclose(updates[0][name], updates[1][name], rtol=1e-4, atol=1e-6)


def test_a_full_chain_takes_a_module():
    """Its labels are then a module too, which is callable, and is not to be called."""
    weights = eqx.filter(eqx.nn.MLP(2, 3, 4, 1, key=jax.random.key(0)), eqx.is_array)
    tx = fl.muon(0.1, weight_decay=0.1, mask=jax.tree.map(lambda x: x.ndim == 2, weights))
    updates, _ = first_step(tx, weights)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, weights)

"""Leaves of any number of axes seen as matrices."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, PyTree

from fimlens._validate import path_name, require_own_names, require_transform
from fimlens.transforms.axes import Axes, axes_rule
from fimlens.transforms.evidence import UNKNOWN, recognise
from fimlens.transforms.leaf_rules import Leaf, Rule


def as_matrix(
    tx: optax.GradientTransformation, axes: Axes | Rule | PyTree | None = None
) -> optax.GradientTransformationExtraArgs:
    """Show `tx` every leaf as matrices, and bring its updates back to the shapes of the leaves.

    Use it for attention projections and convolution kernels, whose leaves have more than two axes, with a `tx` that takes
    every leaf. `fl.matrices` and the full chains do the same, and give Adam what is no matrix.

    Where no axes are declared, a leaf of up to two axes stays as it is, and evidence must tell what the axes of others are.
    A leading axis that all leaves under one prefix share indexes layers on either of two conditions. The prefix is named
    "layers", "blocks", "experts" or "scan", or biases or norms under it have that axis too. Then two axes more are a matrix.
    One matrix each are the kernels of Flax's attention, kernels whose bias tells how many axes are outputs, and "conv" kernels,
    whose last axis is the output. So are leaves whose axes have names in Flax, such as ("layers", "embed", "heads",
    "head_dim"). No shape tells that a convolution has groups: declare fl.Axes((0, 1, 2), 3, columns=groups), so that each group
    is a matrix of its own.

    Args:
        tx: the method; it sees leaves of shape (*batch, m, n), where m is the product of the reduction axes and n that of the
            output axes.
        axes: `Axes`, or Optax's MuonDimensionNumbers, for all leaves; a function of path and leaf to either, or None; or
            a tree of them like the parameters. None, for a leaf or for all, leaves it to the evidence.

    Raises:
        TypeError: `tx` is no transform.
        ValueError: the axes of a leaf are unknown, are not all named once, or are not given as `Axes`; or two leaves have one
            name, such as "a/b".

    Examples:
        >>> import jax, jax.numpy as jnp, optax, fimlens as fl
        >>> tx = fl.as_matrix(fl.scale_by_structure(fl.Rows(), b1=None), fl.Axes(reduction=0, output=(1, 2)))
        >>> state = tx.init(jnp.ones((8, 2, 4)))  # an attention projection (d, heads, d_head)
        >>> state.averaged.shape
        (8, 1)
    """
    require_transform("as_matrix", "tx", tx)
    return as_matrices("as_matrix", tx, axes, strict=True)


def as_matrices(
    call: str, tx: optax.GradientTransformation, axes: Axes | Rule | PyTree | None, strict: bool = False
) -> optax.GradientTransformationExtraArgs:
    """`as_matrix` in the name of a call. A leaf of unknown axes is refused if `strict`; otherwise it stays, with a warning."""
    rule = axes_rule(axes)

    def views_of(tree: PyTree, warn: bool = False) -> Views:
        known, views, unknown = recognise(tree), {}, {}
        named = [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
        require_own_names(call, (name for name, _ in named))
        for name, leaf in named:
            shape = jnp.shape(leaf)
            view = view_of(name, leaf, rule, known[name])
            if view is None and len(shape) > 2:
                unknown[name] = shape
            views[name] = view or LeafView(shape)
        if unknown and strict:
            raise ValueError(f"{call}: {unknown_axes(unknown)}")
        if unknown and warn:
            warnings.warn(f"{call}: {unknown_axes(unknown)} Until then each index of the other axes has its own.", stacklevel=4)
        return views

    return per_layout(lambda tree: through_views(tx, views_of(tree)), lambda params: views_of(params, warn=True))


@dataclass(frozen=True)
class LeafView:
    """How one leaf becomes matrices of shape `matrix`: its axes in this `order`, then merged. No order: it stays as it is.

    `permuted` is the leaf's shape with the axes in that order, and `grid` the number of blocks along each side of what they
    merge to.
    """

    matrix: tuple[int, ...]
    order: tuple[int, ...] = ()
    permuted: tuple[int, ...] = ()
    grid: tuple[int, int] = (1, 1)

    def to_matrix(self, leaf: Leaf) -> Leaf:
        if not self.order:
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(self.matrix, leaf.dtype)
        return self._swapped(jnp.transpose(leaf, self.order), (0, 1, 2, 3)).reshape(self.matrix)

    def to_leaf(self, matrix: ArrayLike) -> ArrayLike:
        if not self.order:
            return matrix
        inverse = tuple(sorted(range(len(self.order)), key=self.order.__getitem__))
        return self._swapped(matrix, (0, 2, 1, 3)).reshape(self.permuted).transpose(inverse)

    def _swapped(self, x: Array, axes: tuple[int, ...]) -> Array:
        """The array with the row of each block beside the block itself, or the other way round; `axes` is how x has them."""
        if self.grid == (1, 1):
            return x
        sizes = self.grid[0], self.matrix[-2], self.grid[1], self.matrix[-1]
        return x.reshape(-1, *(sizes[axis] for axis in axes)).swapaxes(2, 3)


Views = dict[str, LeafView | None]  # by path; None for a leaf that `tx` does not see


def per_layout(
    make: Callable[[PyTree], optax.GradientTransformation], check: Callable[[PyTree], Any]
) -> optax.GradientTransformationExtraArgs:
    """The transform that depends on the tree of its leaves: make(tree) makes it, and each `init` begins with check(params).

    It is made once for all trees of one structure whose leaves have the same shapes and dtypes.
    """
    made: dict[Any, optax.GradientTransformationExtraArgs] = {}

    def transform_of(tree: PyTree) -> optax.GradientTransformationExtraArgs:
        leaves, treedef = jax.tree.flatten(tree)
        layout = treedef, *((jnp.shape(leaf), getattr(leaf, "dtype", None)) for leaf in leaves)
        if layout not in made:
            made[layout] = optax.with_extra_args_support(make(tree))
        return made[layout]

    def init(params: PyTree) -> Any:
        check(params)
        return transform_of(params).init(params)

    def update(updates: PyTree, state: Any, params: PyTree = None, **extra: Any) -> tuple[PyTree, Any]:
        return transform_of(updates).update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(init, update)


def through_views(tx: optax.GradientTransformation, views: Views) -> optax.GradientTransformation:
    """`tx` on the leaves as their views, given by path, show them; `tx` itself where all leaves stay as they are.

    The state is kept as the leaves are: what has a parameter's shape in it, such as a momentum, goes through the same views.
    """
    if not any(view is not None and view.order for view in views.values()):
        return tx
    tx = optax.with_extra_args_support(tx)

    def mapped(step: Callable[[LeafView, Any], Any], tree: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(lambda path, leaf: step(views[path_name(path)], leaf), tree)

    def mapped_state(step: Callable[[LeafView, Any], Any], like: PyTree, state: Any) -> Any:
        own = jax.tree_util.tree_map_with_path(lambda path, _: views[path_name(path)], like)
        absent = lambda x: x is None or isinstance(x, optax.MaskedNode)  # noqa: E731  (where `tx` is a partition itself)
        seen = lambda x, view: x if absent(x) else step(view, x)  # noqa: E731
        return optax.tree.map_params(tx, seen, state, own, is_leaf=absent)

    def init(params: PyTree) -> Any:
        return mapped_state(LeafView.to_leaf, params, tx.init(mapped(LeafView.to_matrix, params)))

    def update(updates: PyTree, state: Any, params: PyTree = None, **extra: Any) -> tuple[PyTree, Any]:
        seen = None if params is None else mapped(LeafView.to_matrix, params)
        state = mapped_state(LeafView.to_matrix, updates, state)
        moved, state = tx.update(mapped(LeafView.to_matrix, updates), state, seen, **extra)
        return mapped(LeafView.to_leaf, moved), mapped_state(LeafView.to_leaf, updates, state)

    return optax.GradientTransformationExtraArgs(init, update)


def view_of(path: str, leaf: Leaf, rule: Rule, known: Axes | str | None) -> LeafView | None:
    """The view of the leaf at this path, by the axes that the rule declares or else the known ones; None for no matrix.

    Raises:
        ValueError: its axes are not all named once, or blocks do not divide its sides.
    """
    shape, rank = jnp.shape(leaf), jnp.ndim(leaf)
    declared = rule(path, leaf)
    declared = known if declared is None else declared
    if declared is None or declared == UNKNOWN:
        return None
    reduction, output = (_axis_tuple(axes, rank) for axes in declared[:2])
    # Optax's declaration has neither a batch nor blocks.
    _, _, batch, *grid = declared if isinstance(declared, Axes) else Axes(*declared)
    unnamed = tuple(axis for axis in range(rank) if axis not in reduction + output)
    batch = unnamed if batch is None else _axis_tuple(batch, rank)
    order = batch + reduction + output
    if sorted(order) != list(range(rank)) or not reduction or not output:
        raise ValueError(
            f"as_matrix: {path!r} has shape {shape}; name each of its axes once, some as reduction and some as output; "
            f"got {declared}."
        )
    permuted = tuple(shape[axis] for axis in order)
    sizes = [math.prod(shape[axis] for axis in axes) for axes in (reduction, output)]
    if any(count < 1 or size % count for size, count in zip(sizes, grid, strict=True)):
        raise ValueError(
            f"as_matrix: {path!r} of shape {shape} is {sizes[0]} x {sizes[1]}, which has no grid of {grid[0]} x {grid[1]} "
            "equal blocks. Take rows and columns that divide its sides."
        )
    blocks = [count for count in grid if count > 1]
    matrix = (*permuted[: len(batch)], *blocks, *(size // count for size, count in zip(sizes, grid, strict=True)))
    return (
        LeafView(matrix) if matrix == shape and order == tuple(range(rank)) else LeafView(matrix, order, permuted, tuple(grid))
    )


def unknown_axes(shapes: dict[str, tuple[int, ...]]) -> str:
    """What to tell of leaves by path whose axes are unknown."""
    listed = ", ".join(f"{path!r} of shape {shape}" for path, shape in shapes.items())
    entries = ", ".join(f"{path!r}: fl.Axes(...)" for path in shapes)
    return (
        f"nothing tells which axes are inputs and which are outputs of {listed}. Declare them, as in axes=lambda path, leaf: "
        f"{{{entries}}}.get(path). Take fl.Axes(-2, -1) for matrices that the axes before stack, fl.Axes(-3, (-2, -1)) for "
        "(inputs, heads, head size), and fl.Axes((-3, -2), -1) for (heads, head size, outputs). Take fl.Axes((0, 1, 2), 3) for "
        "a convolution with its output last, or axes=fl.flax_axes for Flax's attention."
    )


def _axis_tuple(axes: int | tuple[int, ...], rank: int) -> tuple[int, ...]:
    """The axes counted from the front; one that the leaf does not have stays as it is, for the message to show."""
    return tuple(axis % rank if -rank <= axis < rank else axis for axis in ((axes,) if isinstance(axes, int) else axes))

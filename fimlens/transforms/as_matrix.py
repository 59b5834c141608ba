"""Leaves of any number of axes seen as matrices."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from fimlens._validate import path_name
from fimlens.transforms.leaf_rules import Leaf, Rule, leaf_rule


class Axes(NamedTuple):
    """Declare which axes of a leaf are a matrix's inputs, which its outputs, and which index several matrices.

    Give it as `axes` to `as_matrix` or to any full chain, for leaves of three axes or more. x @ W sums over the reduction axes,
    so the matrix has shape (inputs, outputs). Negative axes count from the end.

    Args:
        reduction: the axes of the inputs.
        output: the axes of the outputs.
        batch: the axes that index matrices. Default: all axes that are not named.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> rows = fl.scale_by_structure(fl.Rows(), b1=None)
        >>> heads = fl.as_matrix(rows, fl.Axes(reduction=(0, 1), output=2))  # (heads, d_head, d): one matrix, 8 x 6
        >>> stack = fl.as_matrix(rows, fl.Axes(reduction=-2, output=-1, batch=0))  # two matrices, 4 x 6
        >>> [tx.init(jnp.ones((2, 4, 6))).averaged.shape for tx in (heads, stack)]
        [(8, 1), (2, 4, 1)]
    """

    reduction: int | tuple[int, ...] = 0
    output: int | tuple[int, ...] = 1
    batch: int | tuple[int, ...] | None = None


def as_matrix(
    tx: optax.GradientTransformation, axes: Axes | Rule | PyTree | None = None
) -> optax.GradientTransformationExtraArgs:
    """Show `tx` every leaf as matrices, and bring its updates back to the shapes of the leaves.

    Use it for attention projections and convolution kernels, whose leaves have more than two axes.

    Args:
        tx: the method; it sees leaves of shape (*batch, m, n), where m is the product of the reduction axes and n that of the
            output axes.
        axes: `Axes`, or Optax's MuonDimensionNumbers, for all leaves; a function of path and leaf to either, or None; or
            a tree of them like the parameters. Where this is None, a leaf of up to two axes stays as it is, one of three axes
            is a stack of matrices, and one of four or more is a convolution kernel, whose last axis is the output.

    Raises:
        ValueError: the axes of a leaf are not all named once, or are not given as `Axes`.

    Examples:
        >>> import jax, jax.numpy as jnp, optax, fimlens as fl
        >>> tx = fl.as_matrix(fl.scale_by_structure(fl.Rows(), b1=None), fl.Axes(reduction=0, output=(1, 2)))
        >>> state = tx.init(jnp.ones((8, 2, 4)))  # an attention projection (d, heads, d_head)
        >>> state.averaged.shape
        (8, 1)
    """
    rule = axes_rule(axes)
    tx = optax.with_extra_args_support(tx)

    def views_of(tree: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(lambda path, leaf: view_of(path_name(path), leaf, rule), tree)

    def seen(views: PyTree, tree: PyTree) -> PyTree:
        return jax.tree.map(LeafView.to_matrix, views, tree)

    def mapped(views: PyTree, state: Any, view: Callable[[LeafView, Array], Array]) -> Any:
        """The state with what has the parameters' shapes, such as a momentum, seen otherwise: it is kept as the leaves are."""
        if not any(view.order for view in jax.tree.leaves(views)):
            return state
        seen_so = lambda x, own: x if x is None else view(own, x)  # noqa: E731
        return optax.tree.map_params(tx, seen_so, state, views, is_leaf=lambda x: x is None)

    def init(params: PyTree) -> Any:
        views = views_of(params)
        return mapped(views, tx.init(seen(views, params)), LeafView.to_leaf)

    def update(updates: PyTree, state: Any, params: PyTree = None, **extra: Any) -> tuple[PyTree, Any]:
        views = views_of(updates)
        state = mapped(views, state, LeafView.to_matrix)
        moved, state = tx.update(seen(views, updates), state, None if params is None else seen(views, params), **extra)
        return jax.tree.map(LeafView.to_leaf, views, moved), mapped(views, state, LeafView.to_leaf)

    return optax.GradientTransformationExtraArgs(init, update)


@dataclass(frozen=True)
class LeafView:
    """How one leaf becomes matrices of shape `matrix`: its axes in this `order`, then merged. No order: it stays as it is.

    `permuted` is the leaf's shape with the axes in that order.
    """

    matrix: tuple[int, ...]
    order: tuple[int, ...] = ()
    permuted: tuple[int, ...] = ()

    def to_matrix(self, leaf: Leaf) -> Leaf:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(self.matrix, leaf.dtype)
        return leaf.transpose(self.order).reshape(self.matrix) if self.order else leaf

    def to_leaf(self, matrix: Array) -> Array:
        if not self.order:
            return matrix
        inverse = tuple(sorted(range(len(self.order)), key=self.order.__getitem__))
        return matrix.reshape(self.permuted).transpose(inverse)


def view_of(path: str, leaf: Leaf, rule: Rule) -> LeafView:
    """The view of the leaf at this path, by the axes that the rule declares.

    Raises:
        ValueError: its axes are not all named once.
    """
    shape, rank = jnp.shape(leaf), jnp.ndim(leaf)
    declared = rule(path, leaf)
    if declared is None and rank < 4:
        return LeafView(shape)
    if declared is None:
        declared = Axes(tuple(range(rank - 1)), rank - 1, ())
    reduction, output = (_axis_tuple(axes, rank) for axes in declared[:2])
    batch = declared.batch if isinstance(declared, Axes) else None  # Optax's declaration has no batch
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
    return LeafView((*permuted[: len(batch)], *sizes), order, permuted)


def axes_rule(axes: Axes | Rule | PyTree | None) -> Rule:
    """The rule that gives the axes of a leaf, or None.

    Raises:
        ValueError: `axes` is of another kind.
    """
    if _is_axes(axes):
        return lambda path, leaf: axes if jnp.ndim(leaf) >= 2 else None
    return leaf_rule("as_matrix", axes, _is_axes, "axes are None or fl.Axes(reduction, output), such as fl.Axes(0, (1, 2))")


def _axis_tuple(axes: int | tuple[int, ...], rank: int) -> tuple[int, ...]:
    """The axes counted from the front; one that the leaf does not have stays as it is, for the message to show."""
    return tuple(axis % rank if -rank <= axis < rank else axis for axis in ((axes,) if isinstance(axes, int) else axes))


def _is_axes(x: Any) -> bool:
    return x is None or isinstance(x, Axes | optax.contrib.MuonDimensionNumbers)

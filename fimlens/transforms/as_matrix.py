"""Leaves of any number of axes seen as matrices."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from fimlens._validate import path_name
from fimlens.transforms.leaf_rules import Leaf, Rule, _said


class Axes(NamedTuple):
    """Which axes of a leaf are a matrix's inputs (`reduction`), its outputs, and which count more matrices (`batch`).

    x @ W sums over the reduction axes, so that the matrix has shape (inputs, outputs). `batch` may be left out: the
    axes not named. Negative axes count from the end.

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
    """Let `tx` see every leaf as matrices, and undo it.

    Args:
        tx: the method; it sees leaves of shape (*batch, m, n), with m the product of the reduction axes.
        axes: `Axes`, or Optax's MuonDimensionNumbers, for all leaves; a function of path and leaf to either, or None; or
            a tree of them like the parameters. Where they say None: leaves of up to two axes are as they are, three
            are a stack of matrices, four or more a convolution kernel, whose last axis is the output.

    Raises:
        ValueError: the axes of a leaf are not all named once, or are not given as `Axes`.

    Examples:
        >>> import jax, jax.numpy as jnp, optax, fimlens as fl
        >>> tx = fl.as_matrix(fl.scale_by_structure(fl.Rows(), b1=None), fl.Axes(reduction=0, output=(1, 2)))
        >>> state = tx.init(jnp.ones((8, 2, 4)))  # an attention projection (d, heads, d_head)
        >>> state.averaged.shape
        (8, 1)
    """
    rule = _viewing(axes)
    tx = optax.with_extra_args_support(tx)

    def seen(tree: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(lambda path, leaf: _View(path_name(path), leaf, rule).forth(leaf), tree)

    def init(params: PyTree) -> Any:
        return tx.init(seen(params))

    def update(updates: PyTree, state: Any, params: PyTree = None, **extra: Any) -> tuple[PyTree, Any]:
        moved, state = tx.update(seen(updates), state, None if params is None else seen(params), **extra)
        back = jax.tree_util.tree_map_with_path(lambda path, g, u: _View(path_name(path), g, rule).back(u), updates, moved)
        return back, state

    return optax.GradientTransformationExtraArgs(init, update)


class _View:
    """One leaf as (*batch, m, n), and back."""

    def __init__(self, path: str, leaf: Leaf, rule: Rule) -> None:
        rank = jnp.ndim(leaf)
        declared = rule(path, leaf)
        self.matrix = jnp.shape(leaf)
        self.untouched = declared is None and rank < 4
        if self.untouched:
            return
        if declared is None:
            declared = Axes(tuple(range(rank - 1)), rank - 1, ())
        reduction, output = (_tuple(axes, rank) for axes in declared[:2])
        batch = declared.batch if isinstance(declared, Axes) else None
        left = tuple(axis for axis in range(rank) if axis not in reduction + output)
        batch = left if batch is None else _tuple(batch, rank)
        self.order = batch + reduction + output
        if sorted(self.order) != list(range(rank)) or not reduction or not output:
            raise ValueError(
                f"as_matrix: {path!r} has shape {jnp.shape(leaf)}; its axes are to be named once each, some as reduction and "
                f"some as output; got {declared}."
            )
        self.shape = tuple(leaf.shape[axis] for axis in self.order)
        sizes = [math.prod(leaf.shape[axis] for axis in axes) for axes in (reduction, output)]
        self.matrix = (*self.shape[: len(batch)], *sizes)

    def forth(self, leaf: Array) -> Array:
        return leaf if self.untouched else leaf.transpose(self.order).reshape(self.matrix)

    def back(self, matrix: Array) -> Array:
        if self.untouched:
            return matrix
        inverse = tuple(sorted(range(len(self.order)), key=self.order.__getitem__))
        return matrix.reshape(self.shape).transpose(inverse)


def _tuple(axes: int | tuple[int, ...], rank: int) -> tuple[int, ...]:
    return tuple(axis % rank if -rank <= axis < rank else axis for axis in ((axes,) if isinstance(axes, int) else axes))


def _is_axes(x: Any) -> bool:
    return x is None or isinstance(x, Axes | optax.contrib.MuonDimensionNumbers)


def _viewing(axes: Axes | Rule | PyTree | None) -> Rule:
    """The axes of a leaf, or None."""
    if _is_axes(axes):
        return lambda path, leaf: axes if jnp.ndim(leaf) >= 2 else None
    return _said("as_matrix", axes, _is_axes, "axes are None or fl.Axes(reduction, output), such as fl.Axes(0, (1, 2))")

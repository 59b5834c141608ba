"""Trees of parameters seen as matrices: leaf by leaf, or stacked by shape."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float, PyTree

from fimlens.linalg.mesh import dividing
from fimlens.structure import Tree

Matrices = Float[Array, "*stack m n"]


def sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """(m, n) of the matrices in an array of this shape: its last two axes; a vector or a number is one column."""
    return shape[-2:] if len(shape) >= 2 else (math.prod(shape), 1)


def over(G: Matrices, f: Callable[..., Any]) -> Callable[..., Any]:
    """f of one matrix, mapped over the leading axes of G."""
    for _ in range(G.ndim - 2):
        f = jax.vmap(f)
    return f


def views(tree: PyTree, stacked: bool, by: PyTree = None) -> PyTree:
    """The matrices of a tree, in the dtype of their statistics: stacked by shape, or leaf by leaf (None where empty).

    With `by`, a tree with leaf for leaf as many matrices, it is their shapes that stacks go by.
    """
    if stacked:
        return _stacks(tree, tree if by is None else by)
    return jax.tree.map(lambda leaf: _matrices(leaf) if jnp.size(leaf) else None, tree)


def unview(seen: PyTree, like: PyTree, stacked: bool) -> PyTree:
    """Undo `views`, in the shapes and dtypes of a tree."""

    def own(leaf: Array, part: Array | None) -> Array:
        return leaf if part is None else part.reshape(jnp.shape(leaf)).astype(jnp.result_type(leaf))

    return shared_out(seen, like, own) if stacked else jax.tree.map(own, like, seen)


def shared_out(stacked: dict[str, Tree], like: PyTree, own: Callable[[Array, Tree], Tree]) -> PyTree:
    """own(leaf, its part of its stack) over the leaves of a tree, in their order; an empty leaf stays."""
    taken = dict.fromkeys(stacked, 0)

    def part(leaf: Array) -> Tree:
        name, G = _stack_of(leaf)
        if not len(G):
            return leaf
        first = taken[name]
        taken[name] = first + len(G)
        return own(leaf, jax.tree.map(lambda x: x[first : first + len(G)], stacked[name]))

    return jax.tree.map(part, like)


def _stacks(tree: PyTree, by: PyTree) -> dict[str, Float[Array, "k m n"]]:
    """The matrices of a tree, stacked in the order of the leaves, those together that are of one shape in the tree `by`."""
    groups: dict[str, list[Array]] = {}
    for leaf, like in zip(jax.tree.leaves(tree), jax.tree.leaves(by), strict=True):
        name, G = _stack_of(like)[0], _stack_of(leaf)[1]
        if len(G):
            groups.setdefault(name, []).append(G)
    return {name: _spread(jnp.concatenate(Gs) if len(Gs) > 1 else Gs[0]) for name, Gs in groups.items()}


def _spread(G: Float[Array, "k m n"]) -> Float[Array, "k m n"]:
    """Along the devices of the mesh in force (`jax.set_mesh`), so that each decomposes matrices of its own."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or any(kind != AxisType.Auto for kind in mesh.axis_types):
        return G
    return jax.lax.with_sharding_constraint(G, PartitionSpec(dividing(len(G), mesh) or None))


def stack_name(leaf: Array | jax.ShapeDtypeStruct) -> str:
    """Of the stack that the matrices of a leaf are in: "m x n", and their dtype unless float32."""
    m, n = sides(leaf.shape)
    dtype = jnp.promote_types(leaf.dtype, jnp.float32)
    return f"{m} x {n}" + ("" if dtype == jnp.float32 else f" {dtype}")


def _stack_of(leaf: Array) -> tuple[str, Float[Array, "k m n"]]:
    """The matrices of a leaf, and the name of their stack."""
    G = _matrices(leaf)
    return stack_name(G), G.reshape(-1, *G.shape[-2:]) if G.size else jnp.zeros((0, 1, 1), G.dtype)


def _matrices(leaf: Array) -> Matrices:
    leaf = jnp.asarray(leaf)
    leaf = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
    return leaf if leaf.ndim >= 2 else leaf.reshape(-1, 1)


def clip_for_squaring(G: Float[Array, "..."]) -> Float[Array, "..."]:
    """G within bounds whose products, summed, stay in its dtype; what is not finite becomes NaN, so that it is seen."""
    bound = float(jnp.finfo(G.dtype).max) ** 0.5 / 1e3
    return jnp.where(jnp.isfinite(G), jnp.clip(G, -bound, bound), jnp.nan)


def clip_squares(squares: Array) -> Array:
    """Sums of squares within what `clip_for_squaring` gradients have, so that their products stay in the dtype.

    Subnormal ones are zero, which CPUs make of them anyway: they have no inverse, and an accelerator would divide by them.
    """
    limits = jnp.finfo(squares.dtype)
    return jnp.where(jnp.abs(squares) < limits.tiny, 0, jnp.minimum(squares, float(limits.max) / 1e6))

"""Trees of parameters seen as matrices: leaf by leaf, or stacked by shape."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, ArrayLike, Float, PyTree

from fimlens.linalg.mesh import dividing
from fimlens.structure import Tree
from fimlens.transforms.dtypes import narrowed

Matrices = Float[Array, "*stack m n"]
Stack = Float[Array, "k m n"]


def sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """(m, n) of the matrices in an array of this shape: its last two axes; a vector or a number is one column."""
    return shape[-2:] if len(shape) >= 2 else (math.prod(shape), 1)


def stack_matrices(tree: PyTree, stacked: bool = True) -> PyTree:
    """The matrices of a tree, in float32 at least: a dict of one stack per shape, or leaf by leaf (None where empty)."""
    if not stacked:
        return jax.tree.map(lambda leaf: _matrices(leaf) if jnp.size(leaf) else None, tree)
    groups: dict[str, list[Array]] = {}
    for leaf in jax.tree.leaves(tree):
        G = _matrices(leaf)
        if G.size:
            groups.setdefault(stack_name(G), []).append(G.reshape(-1, *G.shape[-2:]))
    return {name: _spread(jnp.concatenate(Gs) if len(Gs) > 1 else Gs[0]) for name, Gs in groups.items()}


def matrix_shapes(tree: PyTree, stacked: bool = True) -> PyTree:
    """The shapes and dtypes of `stack_matrices(tree)`, for arrays or jax.ShapeDtypeStructs."""
    return jax.eval_shape(partial(stack_matrices, stacked=stacked), tree)


def unstack(matrices: PyTree, like: PyTree, stacked: bool = True) -> PyTree:
    """Undo `stack_matrices`, in the shapes and dtypes of a tree."""

    def own(leaf: Array, part: Array | None) -> Array:
        return leaf if part is None else narrowed(part.reshape(jnp.shape(leaf)), leaf)

    return split_stacks(matrices, like, own) if stacked else jax.tree.map(own, like, matrices)


def split_stacks(stacks: dict[str, Tree], like: PyTree, own: Callable[[Array, Tree], Tree]) -> PyTree:
    """own(leaf, its part of its stack) over the leaves of a tree, in their order; an empty leaf stays."""
    taken = dict.fromkeys(stacks, 0)

    def part(leaf: Array) -> Tree:
        if not jnp.size(leaf):
            return leaf
        name = stack_name(leaf)
        first, count = taken[name], math.prod(jnp.shape(leaf)[:-2])
        taken[name] = first + count
        return own(leaf, jax.tree.map(lambda x: x[first : first + count], stacks[name]))

    return jax.tree.map(part, like)


def _spread(G: Stack) -> Stack:
    """Along the devices of the mesh in force (`jax.set_mesh`), so that each decomposes matrices of its own."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or any(kind != AxisType.Auto for kind in mesh.axis_types):
        return G
    return jax.lax.with_sharding_constraint(G, PartitionSpec(dividing(len(G), mesh) or None))


def stack_name(leaf: Array | jax.ShapeDtypeStruct) -> str:
    """The name of the stack that the matrices of a leaf are in: "m x n", and their dtype unless float32."""
    m, n = sides(jnp.shape(leaf))
    dtype = jnp.promote_types(jnp.result_type(leaf), jnp.float32)
    return f"{m} x {n}" + ("" if dtype == jnp.float32 else f" {dtype}")


def _matrices(leaf: ArrayLike) -> Matrices:
    leaf = jnp.asarray(leaf)
    leaf = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
    return leaf if leaf.ndim >= 2 else leaf.reshape(-1, 1)


def clip_for_squaring(G: Float[Array, "..."]) -> Float[Array, "..."]:
    """G within bounds whose squares, summed over a matrix, pass `clip_squares`; what is not finite becomes NaN, so that it is
    seen. A covariance with its diagonal clipped, and not the rest of it, would have negative eigenvalues."""
    bound = (float(jnp.finfo(G.dtype).max) / 1e6 / max(1, math.prod(sides(G.shape)))) ** 0.5
    return jnp.where(jnp.isfinite(G), jnp.clip(G, -bound, bound), jnp.nan)


def clip_squares(squares: Array) -> Array:
    """Sums of squares within what `clip_for_squaring` gradients have, so that their products stay in the dtype.

    Subnormal ones are zero, which CPUs make of them anyway: they have no inverse, and an accelerator would divide by them.
    """
    limits = jnp.finfo(squares.dtype)
    return jnp.where(jnp.abs(squares) < limits.tiny, 0, jnp.minimum(squares, float(limits.max) / 1e6))

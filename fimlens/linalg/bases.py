"""Coordinates in orthonormal bases: what of them is rounding, which side comes first, and bases that move."""

from functools import reduce

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Int, PyTree


def above_rounding(x: Float[Array, "*stack m n"], *squares: Array, times: int = 8) -> Float[Array, "*stack m n"]:
    """Zero the entries of x that are no larger than the rounding error of the rotation that made x.

    In a null space such entries are all there is. Divided by their own root mean square they would become steps of full size
    along directions that mean nothing.

    Args:
        x: coordinates of a matrix in some bases.
        squares: squared norms of the factors that an entry is a product of, each broadcast against x.
        times: the error assumed, in eps times the largest of those norms.
    """
    known_to = times * jnp.finfo(x.dtype).eps * jnp.sqrt(reduce(jnp.maximum, squares))
    return jnp.where(jnp.abs(x) <= known_to, 0, x)


def tree_above_rounding(X: PyTree) -> PyTree:
    """Apply `above_rounding` to a tree of coordinates, judging the error by the coordinates alone.

    An error of the bases shows in the row and the column of an entry, so their norms bound it. An error spread over the whole
    matrix is bounded by its norm over the root of its longer side. The bound is 32 eps of these, as bases found from a
    covariance are known only to some eps times its condition number.
    """
    spread = optax.tree.norm(X, squared=True) / max(jax.tree.leaves(X)[0].shape)

    def above(x: Float[Array, "*stack m n"]) -> Float[Array, "*stack m n"]:
        rows, columns = jnp.sum(x**2, -1, keepdims=True), jnp.sum(x**2, -2, keepdims=True)
        return above_rounding(x, rows, columns, spread, times=32)

    return jax.tree.map(above, X)


def short_side_first(G: Float[Array, "..."], like: Array | None = None) -> Float[Array, "..."]:
    """Transpose the matrices of G if they have more rows than columns. With `like`, transpose G if those of `like` do.

    Leading axes index matrices; vectors and numbers stay as they are.

    So `short_side_first(U, like=G)` takes an update U that was computed for `short_side_first(G)` back to the shape of G.
    """
    shape = jnp.shape(G if like is None else like)
    return G.mT if len(shape) >= 2 and shape[-2] > shape[-1] else G


def cast_floating(tree: PyTree, dtype: DTypeLike | None) -> PyTree:
    """A tree with its floating-point arrays in another dtype; keys and counters stay, and None leaves all as it is."""
    if dtype is None:
        return tree
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def cayley(U: Float[Array, "m r"], z: Float[Array, "m r"]) -> Float[Array, "m r"]:
    """Move the orthonormal basis U along any z, with U itself at z = 0: the Cayley transform of the skew part of z U^T."""
    S = (z @ U.T - U @ z.T) / 2  # I - S is invertible for every skew S, so every z names a basis
    return _inverse(jnp.eye(len(U), dtype=U.dtype) - S) @ (U + S @ U)


@jax.custom_jvp
def _inverse(A: Float[Array, "m m"]) -> Float[Array, "m m"]:
    """Return A^{-1} by Gauss-Jordan elimination without pivots, which A = I - skew does not need.

    `jnp.linalg.solve` is no alternative: two batched calls side by side never return on the CPU of jax 0.10.2 with two cores.
    The derivative rule below keeps derivatives of every order plain products.
    """

    def eliminate(k: Int[ArrayLike, ""], A: Float[Array, "m m"]) -> Float[Array, "m m"]:
        pivot, row, column = A[k, k], A[k], A[:, k]
        A = A - jnp.outer(column, row / pivot)
        return A.at[k].set(row / pivot).at[:, k].set(-column / pivot).at[k, k].set(1 / pivot)

    return jax.lax.fori_loop(0, len(A), eliminate, A)


@_inverse.defjvp
def _inverse_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    X = _inverse(*primals)
    return X, -X @ tangents[0] @ X

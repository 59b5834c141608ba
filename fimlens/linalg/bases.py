"""Orthonormal bases: the eigenbasis of a covariance, how a basis moves, and what rounding leaves in its coordinates."""

from functools import reduce

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from fimlens.linalg.decompositions import eigh, orthonormal, svd


def eigenbasis(covariance: Float[Array, "m m"], rank: int | None = None) -> Float[Array, "m r"]:
    """Return the first `rank` eigenvectors (all by default), leading first, the same on every device (`complete_basis`)."""
    U, values = spectral(covariance)
    return complete_basis(U, values > rounding(covariance) * values[0])[:, :rank]


def singular_basis(A: Float[Array, "m n"], rank: int, *, right: bool = False) -> Float[Array, "m r"]:
    """Return the first `rank` left (or right) singular vectors of A, the same on every device (`complete_basis`)."""
    U, values, Vt = svd(A / unit_of(A))
    sure = values > 4 * rounding(A) * values[0]  # 16 eps: the noise of a 1024 x 1024 matrix reaches 5
    missing = max(rank - len(sure), 0)  # the thin svd has min(m, n) vectors
    vectors = Vt.T if right else U
    return complete_basis(jnp.pad(vectors, ((0, 0), (0, missing)))[:, :rank], jnp.pad(sure, (0, missing))[:rank])


def complete_basis(U: Float[Array, "m r"], sure: Bool[Array, " r"]) -> Float[Array, "m r"]:
    """Replace the last vectors of U, those that are not `sure`, by fixed vectors orthonormal to the others.

    In a null space eigh returns vectors that depend on rounding, so on the device and on the order of summation. An optimizer
    goes on using its basis when later gradients leave that null space, so the basis must not depend on them. For the same
    reason the signs are fixed: the largest entry of each vector is positive.
    """
    fixed = jax.random.normal(jax.random.PRNGKey(0), U.shape, U.dtype)
    # QR works from left to right: it changes the sure vectors, which come first, only by rounding and sign.
    return fix_signs(orthonormal(jnp.where(sure, U, fixed)))


def power_step(powered: Float[Array, "m r"], U: Float[Array, "m r"]) -> Float[Array, "m r"]:
    """Take one step of subspace iteration: orthonormalise `powered` = C U, keeping the vectors of U that C maps to zero."""
    sizes = jnp.linalg.norm(powered, axis=0)
    sure = sizes > rounding(powered) * sizes.max()  # a smaller column is rounding, and its direction noise
    return fix_signs(orthonormal(jnp.where(sure, powered, U)))


def complement(V: Float[Array, "m r"], which: Int[Array, " k"]) -> Float[Array, "m k"]:
    """Return the vectors numbered `which`, of 0 to m - r - 1, of an orthonormal basis of the complement of span(V).

    That basis is the last m - r columns of P = I - W M^{-1} W^T, the orthogonal matrix that maps E to V, with W = V - E and
    M = I - V^T E. E is zero outside its first r rows, and there minus the polar factor of V's first r rows: that makes the
    eigenvalues of M lie between 1 and 2, so that M^{-1} is safe. Only the columns asked for are built.
    """
    m, r = V.shape
    A, s, Bt = svd(V[:r])
    W = V.at[:r].add(A @ Bt)
    # Applied to unit vectors, P costs O(m r k): the (m, m) matrix is never formed.
    unit = jnp.zeros((m, len(which)), V.dtype).at[r + which, jnp.arange(len(which))].set(1)
    return unit - (W @ (Bt.T / (1 + s))) @ (Bt @ V[r + which].T)


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

    An error of the bases shows in the row and the column of an entry, so their norms bound it; an error spread over the whole
    matrix is bounded by its norm over the root of its longer side. The bound is 32 eps of these, as bases found from a
    covariance are known only to some eps times its condition number.
    """
    leaves = jax.tree.leaves(X)
    spread = sum(jnp.sum(x**2) for x in leaves) / max(leaves[0].shape)

    def above(x: Float[Array, "*stack m n"]) -> Float[Array, "*stack m n"]:
        rows, columns = (jnp.sum(x**2, axis, keepdims=True) for axis in (-1, -2))
        return above_rounding(x, rows, columns, spread, times=32)

    return jax.tree.map(above, X)


def unit_of(A: Float[Array, "*stack m n"], axis: int | tuple[int, ...] | None = None) -> Float[Array, "..."]:
    """Return max|A|, or 1 if A is zero. Squares of A / unit_of(A) stay within float32 at every scale of A.

    If `axis` is given, the maximum is over it alone and keeps it with length 1.
    """
    largest = jnp.abs(A).max(axis, keepdims=axis is not None, initial=0)
    return jnp.where(largest == 0, 1, largest)


def rounding(A: Float[Array, "m n"]) -> float:
    """Return the eigenvalue, relative to the largest, below which a covariance's spectrum may be rounding: 4 eps."""
    return 4 * float(jnp.finfo(A.dtype).eps)  # the error measured is 2 eps at every size


def spectral(covariance: Float[Array, "m m"]) -> tuple[Float[Array, "m m"], Float[Array, " m"]]:
    """Return eigenvectors, with the signs of `fix_signs`, and eigenvalues, leading first."""
    unit = unit_of(covariance)  # so that no product inside eigh leaves float32
    values, U = eigh(covariance / unit)
    return fix_signs(U[:, ::-1]), values[::-1] * unit


def square_root(covariance: Float[Array, "m m"]) -> Float[Array, "m m"]:
    """Return C with C C^T the covariance, without the eigenvalues that may be rounding."""
    U, values = spectral(covariance)
    return U * jnp.sqrt(jnp.where(values > rounding(covariance) * values[0], values, 0))


def fix_signs(U: Float[Array, "m r"]) -> Float[Array, "m r"]:
    """Flip the columns of U whose largest entry is negative."""
    largest = jnp.take_along_axis(U, jnp.abs(U).argmax(0)[None], 0)
    return U * jnp.where(largest < 0, -1, 1).astype(U.dtype)


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

    def eliminate(k: Array, A: Float[Array, "m m"]) -> Float[Array, "m m"]:
        pivot, row, column = A[k, k], A[k], A[:, k]
        A = A - jnp.outer(column, row / pivot)
        return A.at[k].set(row / pivot).at[:, k].set(-column / pivot).at[k, k].set(1 / pivot)

    return jax.lax.fori_loop(0, len(A), eliminate, A)


@_inverse.defjvp
def _inverse_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    X = _inverse(*primals)
    return X, -X @ tangents[0] @ X

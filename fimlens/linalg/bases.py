"""Orthonormal bases: the eigenbasis of a covariance, and how a basis moves."""

from functools import reduce

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from fimlens.linalg.decompositions import eigh, orthonormal, svd


def eigenbasis(covariance: Float[Array, "m m"], rank: int | None = None) -> Float[Array, "m r"]:
    """Eigenvectors, leading first (the first `rank` of them), with what eigh leaves open fixed: see `complete_basis`."""
    U, values = spectral(covariance)
    return complete_basis(U, values > rounding(covariance) * values[0])[:, :rank]


def singular_bases(
    A: Float[Array, "m n"], left: int | None = None, right: int | None = None
) -> tuple[Float[Array, "m r"], Float[Array, "n s"]]:
    """Singular vectors, leading first, as many as `left` and `right` say, with what svd leaves open fixed: see `complete_basis`."""
    U, values, Vt = svd(A / unit_of(A))
    sure = values > 4 * rounding(A) * values[0]  # of 1024 x 1024 matrices the noise is some 5 eps

    def first(W: Float[Array, "m k"], count: int) -> Float[Array, "m r"]:
        missing = max(count - len(sure), 0)
        return complete_basis(jnp.pad(W, ((0, 0), (0, missing)))[:, :count], jnp.pad(sure, (0, missing))[:count])

    m, n = A.shape
    return first(U, m if left is None else left), first(Vt.T, n if right is None else right)


def complete_basis(U: Float[Array, "m r"], sure: Bool[Array, " r"]) -> Float[Array, "m r"]:
    """The basis U with its last vectors, which are not `sure`, replaced by fixed ones made orthonormal to the others.

    In a null space eigh returns whatever rounding makes of it, and another device, or another order of summation, something
    else. An optimizer keeps its basis when later gradients leave that null space, so it is to be the same everywhere. Signs
    are fixed as well, the largest entry of each vector positive.
    """
    fixed = jax.random.normal(jax.random.PRNGKey(0), U.shape, U.dtype)
    return fix_signs(orthonormal(jnp.where(sure, U, fixed)))


def power_step(powered: Float[Array, "m r"], U: Float[Array, "m r"]) -> Float[Array, "m r"]:
    """C U made orthonormal, given that product and U: one step of subspace iteration. In a null space the old vectors stay."""
    sizes = jnp.linalg.norm(powered, axis=0)
    sure = sizes > rounding(powered) * sizes.max()
    return fix_signs(orthonormal(jnp.where(sure, powered, U)))


def complement(V: Float[Array, "m r"], which: Int[Array, " k"]) -> Float[Array, "m k"]:
    """Vectors `which` (of 0 to m - r - 1) of an orthonormal basis of what V leaves out; the others are not built.

    The basis is P's last m - r columns, P = I - W M^{-1} W^T the orthogonal matrix that takes E to V, where W = V - E and M =
    I - V^T E. E is zero but for its first r rows; there minus the polar factor of V's, so that M's eigenvalues are 1 to 2.
    """
    m, r = V.shape
    A, s, Bt = svd(V[:r])
    W = V.at[:r].add(A @ Bt)
    unit = jnp.zeros((m, len(which)), V.dtype).at[r + which, jnp.arange(len(which))].set(1)
    return unit - (W @ (Bt.T / (1 + s))) @ (Bt @ V[r + which].T)


def above_rounding(x: Float[Array, "*stack m n"], *squares: Array, times: int = 8) -> Float[Array, "*stack m n"]:
    """Coordinates in some bases, without entries that the rotation's rounding alone may have made.

    In a null space they are nothing else, and divided by their own root they would send the weights along whatever vectors
    the bases happen to have there. An entry is known to some `times` eps times the norms of what it is a product of: `squares`
    are those norms squared, each broadcast against x.
    """
    known_to = times * jnp.finfo(x.dtype).eps * jnp.sqrt(reduce(jnp.maximum, squares))
    return jnp.where(jnp.abs(x) <= known_to, 0, x)


def above_their_rounding(X: PyTree) -> PyTree:
    """The same of coordinates that are all there is: by the norms of row and column, in both of which an error of the bases
    shows, and by what a spread-out error of the whole would leave in an entry; 32 eps of them, as bases found from a
    covariance are known to some eps times its condition."""
    leaves = jax.tree.leaves(X)
    spread = sum(jnp.sum(x**2) for x in leaves) / max(leaves[0].shape)

    def above(x: Float[Array, "*stack m n"]) -> Float[Array, "*stack m n"]:
        rows, columns = (jnp.sum(x**2, axis, keepdims=True) for axis in (-1, -2))
        return above_rounding(x, rows, columns, spread, times=32)

    return jax.tree.map(above, X)


def unit_of(A: Float[Array, "*stack m n"], axis: int | tuple[int, ...] | None = None) -> Float[Array, "..."]:
    """max|A|, and 1 where A is zero: in these units no square leaves float32. Axes that are given are kept, of length 1."""
    largest = jnp.abs(A).max(axis, keepdims=axis is not None, initial=0)
    return jnp.where(largest == 0, 1, largest)


def rounding(A: Float[Array, "m n"]) -> float:
    """What of a covariance's spectrum, relative to its largest eigenvalue, rounding may have made: some 2 eps at any size."""
    return 4 * float(jnp.finfo(A.dtype).eps)


def spectral(covariance: Float[Array, "m m"]) -> tuple[Float[Array, "m m"], Float[Array, " m"]]:
    """Eigenvectors, in the gauge of `eigenbasis`, and eigenvalues, leading first."""
    unit = unit_of(covariance)
    values, U = eigh(covariance / unit)
    return fix_signs(U[:, ::-1]), values[::-1] * unit


def square_root(covariance: Float[Array, "m m"]) -> Float[Array, "m m"]:
    """C with C C^T the covariance, less eigenvalues that may be rounding."""
    U, values = spectral(covariance)
    return U * jnp.sqrt(jnp.where(values > rounding(covariance) * values[0], values, 0))


def fix_signs(U: Float[Array, "m r"]) -> Float[Array, "m r"]:
    """U with the largest entry of each column positive."""
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
    """An orthonormal basis for any z, U itself for z = 0: the Cayley transform of the skew part of z U^T."""
    S = (z @ U.T - U @ z.T) / 2
    return _inverse(jnp.eye(len(U), dtype=U.dtype) - S) @ (U + S @ U)


@jax.custom_jvp
def _inverse(A: Float[Array, "m m"]) -> Float[Array, "m m"]:
    """A^{-1} by Gauss-Jordan without pivots, which A = I - skew does not need.

    Two batched `jnp.linalg.solve` side by side never return on the CPU of jax 0.10.2 with two cores; and the rule below
    makes derivatives of every order plain products.
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

"""Eigenvectors, singular vectors and QR, batched so that they return, and on accelerators as exact as LAPACK's.

On the CPU a batch is decomposed one matrix at a time. The kernels of jaxlib 0.10 share a batch among the threads of their pool,
so two batches side by side can wait for each other for ever. LAPACK's own threads make up for the loop. Four 512 x 512 matrices
take 63 ms in eigh (89 ms as a batch), 140 ms in svd (218) and 35 ms in qr (31). On a mesh each device decomposes its own
matrices. On accelerators a batch stays one batch.

On accelerators eigh is followed by one orthogonal iteration, and GPUs find singular vectors by the QR algorithm. Without
that, jax 0.11 on an H100 (the one accelerator measured) left 500 eps of a rank-8 covariance's range in its null space. Its
singular vectors were orthonormal only to 140 eps; LAPACK stays within 10. The difference would pass for a gradient, and an
optimizer that divides by its root mean square would follow it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax.linalg import SvdAlgorithm
from jax.lax.linalg import svd as lax_svd
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Bool, Float, Inexact, Int

from fimlens.linalg.derivatives import eigh_derivative, qr_derivative, svd_derivative
from fimlens.linalg.mesh import dividing


def _batched_safely(
    decompose: Callable[[Array], Any], derivative: Callable[[Any, Array], Any], **accelerated: Callable[[Array], Any]
) -> Callable[[Array], Any]:
    """Give `decompose` a derivative, and for batches the rule that the head of this file describes; `accelerated` replaces it
    by platform."""
    elsewhere = {"default": decompose} | accelerated
    batches_elsewhere = {name: jax.vmap(each) for name, each in elsewhere.items()}

    @jax.custom_batching.custom_vmap
    def one(A: Array) -> Any:
        return jax.lax.platform_dependent(A, cpu=decompose, **elsewhere)

    one_by_one = partial(jax.lax.map, one)

    @one.def_vmap
    def _(size: int, batched: list[bool], A: Array) -> tuple[Any, Any]:
        mesh, on_cpu = jax.sharding.get_abstract_mesh(), one_by_one
        kinds = set(mesh.axis_types)
        if kinds == {AxisType.Auto}:  # each device loops over its own matrices only
            along = PartitionSpec(dividing(size, mesh) or None)
            on_cpu = jax.shard_map(one_by_one, in_specs=along, out_specs=along)
        elif AxisType.Explicit in kinds:  # JAX refuses to loop over an axis whose type says that it is sharded
            on_cpu = jax.vmap(decompose)
        out = jax.lax.platform_dependent(A, cpu=on_cpu, **batches_elsewhere)
        return out, jax.tree.structure(out).unflatten([True] * len(out))

    safely = jax.custom_jvp(one)

    @safely.defjvp
    def _(inputs: tuple[Array], tangents: tuple[Array]) -> tuple[Any, Any]:
        out = safely(*inputs)
        return out, jax.tree.structure(out).unflatten(derivative(tuple(out), *tangents))

    return safely


def iterated_eigh(A: Array) -> tuple[Array, Array]:
    """eigh, and one orthogonal iteration that removes what its null space holds of the range."""
    values, U = jnp.linalg.eigh(A)
    powered = jnp.matmul(A, U, precision="highest")[:, ::-1]  # leading first, as QR changes early columns least
    return values, jnp.linalg.qr(powered)[0][:, ::-1]


_eigh = _batched_safely(lambda A: tuple(jnp.linalg.eigh(A)), eigh_derivative, default=iterated_eigh)


_qr = _batched_safely(jnp.linalg.qr, qr_derivative)


# The thin svd by the QR algorithm is more exact on GPUs than their default.
svd_by_qr = partial(lax_svd, full_matrices=False, algorithm=SvdAlgorithm.QR)
_svd = _batched_safely(partial(lax_svd, full_matrices=False), svd_derivative, cuda=svd_by_qr, rocm=svd_by_qr)


def eigh(A: Float[Array, "m m"]) -> tuple[Float[Array, " m"], Float[Array, "m m"]]:
    """Return the eigenvalues of a positive semi-definite matrix, ascending, and its eigenvectors."""
    return _eigh(A)


def orthonormal(A: Float[Array, "m r"]) -> Float[Array, "m r"]:
    """Return Q of A = Q R."""
    return _qr(A)[0]


def svd(A: Float[Array, "m n"]) -> tuple[Float[Array, "m k"], Float[Array, " k"], Float[Array, "k n"]]:
    """Return U, the singular values, descending, and V^T; k = min(m, n)."""
    return tuple(_svd(A))


# --- bases: decompositions with what they leave open fixed ------------------------------------------------------


def eigenbasis(covariance: Float[Array, "m m"], rank: int | None = None) -> Float[Array, "m r"]:
    """Return the first `rank` eigenvectors (all by default), leading first, the same on every device (`complete_basis`)."""
    U, values = spectral(covariance)
    return complete_basis(U, values > rounding(covariance) * values[0])[:, :rank]


def singular_basis(A: Float[Array, "m n"], rank: int, *, right: bool = False) -> Float[Array, "k r"]:
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


def determined_basis(A: Float[Array, "m r"]) -> Float[Array, "m r"]:
    """Return Q of A = Q R with fixed vectors, at the end, in place of those that depend on rounding (`complete_basis`)."""
    Q, R = _qr(A)
    sizes = jnp.abs(jnp.diagonal(R))
    sure = sizes > 16 * rounding(A) * sizes.max()  # what is left of a dependent column is some eps of the whole matrix
    first = jnp.argsort(~sure)
    return complete_basis(Q[:, first], sure[first])


def power_step(powered: Float[Array, "m r"], U: Float[Array, "m r"]) -> Float[Array, "m r"]:
    """Take one step of subspace iteration: orthonormalise `powered` = C U, keeping the vectors of U that C maps to zero.

    QR makes each vector orthogonal to those before it. They enter by the eigenvalues that they stand for now, largest first:
    otherwise vectors whose eigenvalues have crossed mix for many steps. They leave in the order of U, which is that of whatever
    is averaged along them.
    """
    sizes = jnp.linalg.norm(powered, axis=0)
    sure = sizes > rounding(powered) * sizes.max()  # a smaller column is rounding, and its direction noise
    order = jnp.argsort(-jnp.sum(U * powered, axis=0))
    return fix_signs(orthonormal(jnp.where(sure, powered, U)[:, order])[:, jnp.argsort(order)])


def complement(V: Float[Array, "m r"], which: Int[Array, " k"]) -> Float[Array, "m k"]:
    """Return the vectors numbered `which`, of 0 to m - r - 1, of an orthonormal basis of the complement of span(V).

    That basis is the last m - r columns of P = I - W M^{-1} W^T, with W = V - E and M = I - V^T E. P is the orthogonal matrix
    that maps E to V. E is zero outside its first r rows, and there minus the polar factor of V's first r rows. That makes the
    eigenvalues of M lie between 1 and 2, so that M^{-1} is safe. Only the columns asked for are built.
    """
    m, r = V.shape
    A, s, Bt = svd(V[:r])
    W = V.at[:r].add(A @ Bt)
    # Applied to unit vectors, P costs O(m r k): the (m, m) matrix is never formed.
    unit = jnp.zeros((m, len(which)), V.dtype).at[r + which, jnp.arange(len(which))].set(1)
    return unit - (W @ (Bt.T / (1 + s))) @ (Bt @ V[r + which].T)


def unit_of(A: Inexact[Array, "*stack m n"], axis: int | tuple[int, ...] | None = None) -> Float[Array, "..."]:
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

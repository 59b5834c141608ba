"""Eigenvectors, singular vectors and orthonormal frames, so batched that they return.

On the CPU a batch is taken one matrix at a time: kernels of jaxlib 0.10 share a batch out among the threads of the pool that
they run on, and two side by side can wait for each other for ever. LAPACK's own threads make up for it (four 512 x 512
matrices: eigh 63 ms against 89 in a batch, svd 140 against 218, qr 35 against 31). On a mesh each device takes those of its
own. On accelerators a batch stays one.

On accelerators eigenvectors are iterated once more, and on GPUs singular vectors found by the QR algorithm, to be as good as
LAPACK's. On an H100, the one accelerator that was measured, jax 0.11's eigenvectors of a covariance of rank 8 had some
500 eps of its range in its null space, and singular vectors were orthonormal to 140 eps, where LAPACK's come to 10: enough
for an optimizer to take the difference for a gradient and to divide it by its own root.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax.linalg import SvdAlgorithm
from jax.lax.linalg import svd as svd_by
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float

from fimlens.linalg.mesh import dividing


def _returning(decompose: Callable[[Array], Any], **accelerated: Callable[[Array], Any]) -> Callable[[Array], Any]:
    """The decomposition, or on some platforms another, mapped over a batch as said above."""
    elsewhere = {"default": decompose} | accelerated

    @jax.custom_batching.custom_vmap
    def one(A: Array) -> Any:
        return jax.lax.platform_dependent(A, cpu=decompose, **elsewhere)

    @one.def_vmap
    def _(size: int, batched: list[bool], A: Array) -> tuple[Any, Any]:
        def in_turn(A: Array) -> Any:
            return jax.lax.map(one, A)

        mesh, on_cpu = jax.sharding.get_abstract_mesh(), in_turn
        kinds = set(mesh.axis_types)
        if kinds == {AxisType.Auto}:
            along = PartitionSpec(dividing(size, mesh) or None)
            on_cpu = jax.shard_map(in_turn, in_specs=along, out_specs=along)
        elif AxisType.Explicit in kinds:  # a loop over an axis that is sharded by its type is refused
            on_cpu = jax.vmap(decompose)
        out = jax.lax.platform_dependent(A, cpu=on_cpu, **{name: jax.vmap(each) for name, each in elsewhere.items()})
        return out, jax.tree.map(lambda _: True, out)

    return one


def _iterated_eigh(A: Array) -> tuple[Array, Array]:
    """And one orthogonal iteration, leading vectors first."""
    values, U = jnp.linalg.eigh(A)
    powered = jnp.matmul(A, U, precision="highest")[:, ::-1]
    return values, jnp.linalg.qr(powered)[0][:, ::-1]


def _svd_by_qr(A: Array) -> tuple[Array, Array, Array]:
    return tuple(svd_by(A, full_matrices=False, algorithm=SvdAlgorithm.QR))


_eigh = _returning(lambda A: tuple(jnp.linalg.eigh(A)), default=_iterated_eigh)


_orthonormal = _returning(lambda A: jnp.linalg.qr(A)[0])


_svd = _returning(lambda A: tuple(jnp.linalg.svd(A, full_matrices=False)), cuda=_svd_by_qr, rocm=_svd_by_qr)


def eigh(A: Float[Array, "m m"]) -> tuple[Float[Array, " m"], Float[Array, "m m"]]:
    """Eigenvalues of a positive semi-definite matrix, rising, and eigenvectors."""
    return _eigh(A)


def orthonormal(A: Float[Array, "m r"]) -> Float[Array, "m r"]:
    """Q of A = Q R."""
    return _orthonormal(A)


def svd(A: Float[Array, "m n"]) -> tuple[Float[Array, "m k"], Float[Array, " k"], Float[Array, "k n"]]:
    """U, the singular values, falling, and V^T; k = min(m, n)."""
    return _svd(A)

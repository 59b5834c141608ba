"""Checks of the arrays that a Fisher is made of: size, dtype and sign."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

DENSE_BYTES = 2**30  # bound on every mn x mn matrix that fimlens builds


def require_dense(call: str, remedy: str, shape: tuple[int, int], itemsize: int = 8, max_bytes: int = DENSE_BYTES) -> None:
    """Refuse to build an mn x mn matrix over `max_bytes`.

    Args:
        call: the public function that would build it, named in the message.
        remedy: what to do instead: the last sentence of the message.
        shape: (m, n) of the weight matrix.
        itemsize: bytes of one entry.
        max_bytes: the bound.

    Raises:
        ValueError: the matrix would be larger.
    """
    size = (shape[0] * shape[1]) ** 2 * itemsize
    if size > max_bytes:
        raise ValueError(
            f"{call}: a {shape[0]} x {shape[1]} matrix has a {shape[0] * shape[1]}-square Fisher of {size / 2**30:.3g} GiB, "
            f"over the bound of {max_bytes / 2**30:.3g} GiB. {remedy}"
        )


def require_real_array(call: str, array: Shaped[Array | np.ndarray, "..."]) -> None:
    """Refuse an array of complex numbers, or of anything that is no number."""
    if not jnp.issubdtype(array.dtype, jnp.number) and array.dtype != bool:
        raise TypeError(f"{call}: expected real numbers, got {array.dtype}. Make an array of floats, all of one shape.")
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(
            f"{call}: expected real numbers, got {array.dtype}. Make real and imaginary parts parameters of their own, "
            "and take the gradients by those."
        )


def require_finite(gradients: Float[Array, "N m n"]) -> None:
    """Refuse gradients of which one is not finite."""
    if not _all_finite(gradients):
        bad = np.flatnonzero(~np.isfinite(np.asarray(gradients)).all(axis=(1, 2)))
        raise ValueError(
            f"Fisher.from_gradients: {bad.size} of {len(gradients)} gradients are not finite (the first: number {bad[0]}). "
            "Drop them, or find the batch that made them: one would make every statistic NaN."
        )


_all_finite = jax.jit(lambda array: jnp.isfinite(array).all())


def require_positive_semidefinite(F: np.ndarray) -> None:
    """Refuse a matrix that is not finite, not symmetric or not positive semi-definite, up to rounding."""
    remedy = "A Fisher is E[g g^T]: build it from gradients, or project your matrix on the PSD cone first."
    if not np.isfinite(F).all():
        raise ValueError(f"Fisher.from_dense: F has entries that are not finite. {remedy}")
    # A matrix assembled in its own precision is symmetric and positive only up to rounding, which grows with its size.
    tolerance = 100 * len(F) * np.finfo(F.dtype).eps * np.abs(F).max(initial=0.0)
    asymmetry = np.abs(F - F.T).max(initial=0.0)
    if asymmetry > tolerance:
        raise ValueError(f"Fisher.from_dense: F is not symmetric: |F - F^T| reaches {asymmetry:.3g}. {remedy}")
    lowest = np.linalg.eigvalsh(F).min(initial=0.0)
    if lowest < -tolerance:
        raise ValueError(f"Fisher.from_dense: F is indefinite: its smallest eigenvalue is {lowest:.3g}. {remedy}")

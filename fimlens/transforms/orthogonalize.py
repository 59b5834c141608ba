"""The polar factor of each matrix by Newton-Schulz iteration, and the scales that Muon gives it."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from fimlens.linalg.bases import short_side_first
from fimlens.linalg.decompositions import unit_of
from fimlens.transforms.drop_in import with_auto_axes
from fimlens.transforms.norms import Matrix, matrix_norm
from fimlens.transforms.stacking import sides, stack_matrices, unstack


def orthogonalize(steps: Int[ArrayLike, ""] = 5, eps: Float[ArrayLike, ""] = 1e-8) -> optax.GradientTransformation:
    """Replace each matrix by its polar factor U V^T, approximately: singular values end between 0.7 and 1.2.

    A quintic Newton-Schulz iteration with the coefficients of Jordan (2024). Matrices of one shape, transposed or not, form
    one stack with the shorter side first.
    """
    a, b, c = 3.4445, -4.7750, 2.0315

    def iterate(_: Array, X: Matrix) -> Matrix:
        A = X @ X.mT
        return a * X + (b * A + c * A @ A) @ X

    def factor(G: Matrix) -> Matrix:
        unit = unit_of(G, (-2, -1))
        X = G / unit  # before the norm, whose squares would leave float32 for very large or small entries
        size = matrix_norm(X) + eps / unit
        X = X / jnp.where(size == 0, 1, size)
        # A traced number of steps, as under optax.inject_hyperparams, cannot be unrolled.
        return jax.lax.fori_loop(0, steps, iterate, X, unroll=True if isinstance(steps, int) else None)

    @jax.jit
    @with_auto_axes
    def factors(updates: PyTree) -> PyTree:
        with jax.default_matmul_precision("highest"):
            return unstack(jax.tree.map(factor, stack_matrices(updates)), updates)

    return with_short_side_first(optax.stateless(lambda updates, params: factors(updates)))


def with_short_side_first(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Give the stateless `tx` every matrix with its shorter side first, and transpose its updates back."""

    def update(updates: PyTree, params: PyTree) -> PyTree:
        del params
        given = jax.tree.map(short_side_first, updates)
        moved, _ = tx.update(given, tx.init(given))
        return jax.tree.map(short_side_first, moved, updates)

    return optax.stateless(update)


def scale_by_shape(scale: str = "width") -> optax.GradientTransformation:
    """Scale each polar factor by a function of its matrix's shape (m, n), as in x @ W.

    The norm of a polar factor depends on the shorter side alone; each scale restores a dependence on the other side.

    Args:
        scale: "width", sqrt(max(1, n/m)), as in Jordan's and Optax's Muon; "fisher", the root of the longer side, which makes
            the update Mat(F~^{-1/2} Vec(G)) ([G] Proposition 2); or "rms", 0.2 times that, which gives about the root mean
            square of Adam's updates (Liu et al., 2025).

    Raises:
        ValueError: the scale is none of these.
    """
    if scale not in ("width", "fisher", "rms"):
        raise ValueError(f'scale_by_shape: scale is "width", "fisher" or "rms"; got {scale!r}')

    def scaled(U: Array) -> Array:
        m, n = (max(1, side) for side in sides(U.shape))
        return U * {"width": max(1, n / m) ** 0.5, "fisher": max(m, n) ** 0.5, "rms": 0.2 * max(m, n) ** 0.5}[scale]

    return optax.stateless(lambda updates, params: jax.tree.map(scaled, updates))


def over_longer_side() -> optax.GradientTransformation:
    """Divide each matrix by the root of its longer side: this undoes the factor of `whiten`."""
    return optax.stateless(lambda updates, params: jax.tree.map(lambda U: U / max(1, *sides(U.shape)) ** 0.5, updates))

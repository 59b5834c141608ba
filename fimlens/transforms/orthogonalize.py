"""The polar factor of each matrix, by Newton-Schulz iteration."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from fimlens.linalg.bases import unit_of
from fimlens.transforms.norms import Matrix, _norm
from fimlens.transforms.stacking import sides, unview, views


def orthogonalize(steps: Int[ArrayLike, ""] = 5, eps: Float[ArrayLike, ""] = 1e-8) -> optax.GradientTransformation:
    """Each matrix's polar factor U V^T, nearly: a quintic Newton-Schulz iteration takes singular values to 0.7 to 1.2.

    With Jordan's coefficients (2024). Matrices of one shape, transposed or not, are one stack with the shorter side first.
    """
    a, b, c = 3.4445, -4.7750, 2.0315

    def iterate(_: Array, X: Matrix) -> Matrix:
        A = X @ X.mT
        return a * X + (b * A + c * A @ A) @ X

    def factor(G: Matrix) -> Matrix:
        unit = unit_of(G, (-2, -1))
        X = G / unit
        size = _norm(X) + eps / unit
        X = X / jnp.where(size == 0, 1, size)
        return jax.lax.fori_loop(0, steps, iterate, X, unroll=True if isinstance(steps, int) else None)

    def update(updates: PyTree, params: PyTree = None) -> PyTree:
        del params
        with jax.default_matmul_precision("highest"):
            factors = jax.tree.map(factor, views(updates, stacked=True))
        return unview(factors, updates, stacked=True)

    return shorter_side_first(optax.stateless(update))


def shorter_side_first(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Let `tx`, which keeps nothing, see every matrix with its shorter side first."""

    def update(updates: PyTree, params: PyTree) -> PyTree:
        del params
        lying = jax.tree.map(_lying, updates)
        moved, _ = tx.update(lying, tx.init(lying))
        return jax.tree.map(lambda G, U: U.mT if _tall(G) else U, updates, moved)

    return optax.stateless(update)


def scale_by_shape(scale: str = "width") -> optax.GradientTransformation:
    """Make up for the norm of a polar factor, which knows only the shorter side of its (m, n) matrix, x @ W.

    "width": sqrt(max(1, n/m)), as Jordan's and Optax's Muon; "fisher": the root of the longer side, with which the polar
    factor is Mat(F~^{-1/2} Vec(G)) ([G] Proposition 2); "rms": 0.2 times that, near Adam's root mean square (Liu et al., 2025).
    """
    if scale not in ("width", "fisher", "rms"):
        raise ValueError(f'scale_by_shape: scale is "width", "fisher" or "rms"; got {scale!r}')

    def scaled(U: Array) -> Array:
        m, n = (max(1, side) for side in sides(U.shape))
        return U * {"width": max(1, n / m) ** 0.5, "fisher": max(m, n) ** 0.5, "rms": 0.2 * max(m, n) ** 0.5}[scale]

    return optax.stateless(lambda updates, params: jax.tree.map(scaled, updates))


def over_longer_side() -> optax.GradientTransformation:
    """Each matrix over the root of its longer side."""
    return optax.stateless(lambda updates, params: jax.tree.map(lambda U: U / max(1, *sides(U.shape)) ** 0.5, updates))


def _tall(G: Array) -> bool:
    return G.ndim >= 2 and G.shape[-2] > G.shape[-1]


def _lying(G: Array) -> Array:
    return G.mT if _tall(G) else G

"""Compensations: the scale d_j that a low-rank update gives column j of the gradient, or of what its subspace leaves of it."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from fimlens.linalg.spectral_functions import inverse_root

Columns = Float[Array, "k 1 n"]


class Seen(NamedTuple):
    """What there is to go by: the lead sigma = U^T G, its update D, ||g_j||^2 less ||sigma_j||^2 and the tail's eigenvalue."""

    sigma: Float[Array, "k r n"]
    update: Float[Array, "k r n"]
    left: Columns
    eigenvalue: Columns | None


Compensation = Callable[[Seen], Columns | None]


def none(seen: Seen) -> None:
    """No compensation. GaLore."""
    return


def nearest(seen: Seen) -> Columns | None:
    """1 / sqrt(eigenvalue) of the complement: [G] Theorem 5.1, where d_j = sqrt((m - r) / p_j)."""
    return None if seen.eigenvalue is None else inverse_root(0.0)(seen.eigenvalue)


def column_ratios(seen: Seen) -> Columns:
    """||D_j|| / ||sigma_j||: Fira (Chen et al., 2024), Apollo (Zhu et al., 2024)."""
    return _ratio(_norm(seen.update, -2), _norm(seen.sigma, -2))


def matched_column_ratios(seen: Seen) -> Columns:
    """Those, made such that the compensation's norm is ||D||: [G]'s Fira+."""
    d = column_ratios(seen)
    norm = jnp.sqrt(jnp.sum(d**2 * seen.left, -1, keepdims=True))
    return d * _ratio(_norm(seen.update, (-2, -1)), norm)


def matrix_ratio(seen: Seen) -> Columns:
    """||D|| / ||sigma||, one for the matrix: Apollo-mini."""
    d = _ratio(_norm(seen.update, (-2, -1)), _norm(seen.sigma, (-2, -1)))
    return jnp.broadcast_to(d, seen.left.shape)


def _norm(x: Float[Array, "k r n"], axes: int | tuple[int, int]) -> Float[Array, "k 1 #n"]:
    return jnp.sqrt(jnp.sum(x**2, axes, keepdims=True))


def _ratio(a: Array, b: Array) -> Array:
    return jnp.where(b == 0, 0, a / jnp.where(b == 0, 1, b))

"""Compensations: the scale d_j that a low-rank update gives to column j outside the subspace, or to the whole column.

Each is a function of what one step measured; give it to `fl.scale_by_low_rank` as `compensation`. `polar` and `sign` give no
scale: they are functions of the matrix G - U U^T G.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from fimlens.linalg.spectral_functions import inverse_root
from fimlens.transforms.orthogonalize import orthogonalize

Columns = Float[Array, "k 1 n"]


class Seen(NamedTuple):
    """What one step measured: sigma = U^T G, its update D, the squares of what is compensated (||g_j||^2 - ||sigma_j||^2 where
    the lead takes all of the subspace), and the complement's eigenvalue."""

    sigma: Float[Array, "k r n"]
    update: Float[Array, "k r n"]
    left: Columns
    eigenvalue: Float[Array, "k p q"] | None  # one number a column; with both sides tracked, also one a row, or one


class Outside(NamedTuple):
    """A compensation that is a function of G - U U^T G, written out. What is left of a column by rounding is zero in it."""

    direction: Callable[[Float[Array, "k m n"]], Float[Array, "k m n"]]


Compensation = Callable[[Seen], Columns | None] | Outside


def none(seen: Seen) -> None:
    """No compensation: GaLore (Zhao et al., 2024)."""
    return


def nearest(seen: Seen) -> Float[Array, "k p q"] | None:
    """1 / sqrt(eigenvalue) of the complement: [G] Theorem 5.1, where d_j = sqrt((m - r) / p_j)."""
    return None if seen.eigenvalue is None else inverse_root(0.0)(seen.eigenvalue)


def column_ratios(seen: Seen) -> Columns:
    """||D_j|| / ||sigma_j||: Fira (Chen et al., 2024), Apollo (Zhu et al., 2024)."""
    return _ratio(_norm(seen.update, -2), _norm(seen.sigma, -2))


def matched_column_ratios(seen: Seen) -> Columns:
    """`column_ratios`, scaled so that the compensation's norm equals ||D||: [G]'s Fira+."""
    d = column_ratios(seen)
    norm = jnp.sqrt(jnp.sum(d**2 * seen.left, -1, keepdims=True))
    return d * _ratio(_norm(seen.update, (-2, -1)), norm)


def matrix_ratio(seen: Seen) -> Columns:
    """||D|| / ||sigma||, one ratio for the whole matrix: Apollo-mini."""
    d = _ratio(_norm(seen.update, (-2, -1)), _norm(seen.sigma, (-2, -1)))
    return jnp.broadcast_to(d, seen.left.shape)


def _polar(rest: Float[Array, "k m n"]) -> Float[Array, "k m n"]:
    factors, _ = orthogonalize(eps=0.0).update(rest, optax.EmptyState())
    return factors * max(rest.shape[1:]) ** 0.5


# The polar factor times the root of the longer side, as in a whitened gradient: COSMOS (Liu et al., 2025).
polar = Outside(_polar)


# The sign of each entry: FRUGAL (Zmushko et al., 2024).
sign = Outside(jnp.sign)


def _norm(x: Float[Array, "k r n"], axes: int | tuple[int, int]) -> Float[Array, "k 1 #n"]:
    return jnp.sqrt(jnp.sum(x**2, axes, keepdims=True))


def _ratio(a: Array, b: Array) -> Array:
    """a / b, and 0 where b is zero: a column without a lead gives no scale to compensate by."""
    return jnp.where(b == 0, 0, a / jnp.where(b == 0, 1, b))

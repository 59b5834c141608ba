"""How a basis moved, and what that makes of averages that were measured in the old one: one rule for all of them."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from fimlens.linalg.bases import above_rounding

MOMENTS = ("keep", "rotate", "reset")
RESET = 0.0  # the change of basis of a reset: as if the new basis had nothing in common with the old one
Turn = Float[Array, "*stack r r"] | float | None  # T = U_new^T U_old; RESET; or None, where averages stay as they are


def change_of_basis(old: Float[Array, "*stack m r"], new: Float[Array, "*stack m r"]) -> Float[Array, "*stack r r"]:
    """T, which turns coordinates in the old basis into those in the new one."""
    return above_rounding(new.mT @ old, jnp.ones([], new.dtype))


def turned(T: Turn, x: Float[Array, "*stack r k"]) -> Float[Array, "*stack r k"]:
    """T x: averages of coordinates, such as a momentum.

    A reset makes zeros, and not a product with zero, which would keep what is not finite.
    """
    if T is None:
        return x
    return jnp.zeros_like(x) if isinstance(T, float) else (T @ x.astype(T.dtype)).astype(x.dtype)


def turned_squares(T: Turn, V: Float[Array, "*stack p k"]) -> Float[Array, "*stack p k"]:
    """T^2 V, squared entry by entry: second moments, exact where those of the coordinates are uncorrelated.

    A mean over the whole side has one row. It is measured in no basis of that side, and stays, except at a reset.
    """
    if T is None or isinstance(T, float):
        return turned(T, V)
    return turned(T**2, V) if V.shape[-2] == T.shape[-1] else V


def turned_covariance(T: Turn, C: Float[Array, "*stack r r"]) -> Float[Array, "*stack r r"]:
    """T C T^T."""
    return turned(T, turned(T, C).mT).mT


class Move(NamedTuple):
    """G is now seen as L G R^T: `left` is L and `right` is R, each None where that side stayed.

    `rows` and `columns` are the means of the second moments along each row and each column of the new coordinates,
    where a covariance states them exactly; None elsewhere. Their weights may be those of another decay.
    """

    left: Float[Array, "m m"] | None = None
    right: Float[Array, "n n"] | None = None
    rows: Float[Array, "m 1"] | None = None
    columns: Float[Array, "1 n"] | None = None

    @property
    def wide(self) -> bool:
        """Whether G has no more rows than columns; where one side alone moves, it is the short one of a low-rank lead."""
        return self.left is None or self.right is None or self.left.shape[-1] <= self.right.shape[-1]

    def covariances(self, averages: Sequence[Array | None]) -> tuple[Array | None, Array | None]:
        """E[GG^T] and E[G^T G], None where a side has none."""
        left, right = (C if C is None else turned_covariance(T, C) for T, C in zip(self[:2], averages[:2], strict=True))
        return left, right

    def squares(self, V: Float[Array, "..."]) -> Float[Array, "..."]:
        """Second moments, on each axis that has an entry per row or per column; with `rows` and `columns` for means.

        Squares of the rotation alone treat old coordinates as uncorrelated, and spread large moments over small ones. Averages
        without these two axes stay.
        """
        if V.ndim != 2:
            return V
        V = turned_squares(self.right, turned_squares(self.left, V).T).T
        return _with_means(_with_means(V, self.rows, 1), self.columns, 0)


def _with_means(V: Float[Array, "#m #n"], means: Float[Array, "..."] | None, axis: int) -> Float[Array, "#m #n"]:
    """V, scaled along an axis to the ratios of `means`, which may be of another decay: by a factor of a hundred at most. V's
    sum stays.

    Small means may be rounding of a covariance, or forget sooner than a momentum does, which would then be divided by them.
    """
    own = V.mean(axis, keepdims=True)
    if means is None or means.shape != own.shape:
        return V
    wanted, found = _over(means, means.mean()), _over(own, own.mean())
    factor = jnp.clip(_over(wanted, found), 0.01, 100)
    total = jnp.mean(found * factor)  # 1 where no factor is clipped; 0 for zeros
    return V * jnp.where(total > 0, factor / jnp.where(total > 0, total, 1), 1)


def _over(a: Array, b: Array) -> Array:
    """a / b, and a where b is zero: at a small b in its place the derivative would be infinite."""
    return a / jnp.where(b > jnp.finfo(b.dtype).tiny, b, 1)  # a comparison with zero would let subnormal divisors pass

"""Folds of samples: each part of a Fisher's samples is held out once, and pairs of different samples measure ||F||^2."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int


@dataclass(frozen=True)
class Folds:
    """A division of N samples into folds, none of which divides a sampling unit.

    Attributes:
        fold: the fold of each sample.
        unit: the sampling unit of each sample, such as its document; samples of one unit are not independent.
        count: the number of folds.
    """

    fold: Int[np.ndarray, " N"]
    unit: Int[np.ndarray, " N"]
    count: int

    def inside(self, *folds: int) -> Int[np.ndarray, " k"]:
        """Return the samples of these folds, units together."""
        return self._sorted(np.isin(self.fold, folds))

    def outside(self, *folds: int) -> Int[np.ndarray, " k"]:
        """Return the samples of all other folds."""
        return self._sorted(~np.isin(self.fold, folds))

    def _sorted(self, chosen: Bool[np.ndarray, " N"]) -> Int[np.ndarray, " k"]:
        found = np.flatnonzero(chosen)
        return found[np.argsort(self.unit[found], kind="stable")]


def divide(folds: int, units: Int[np.ndarray, " N"], key: Array) -> Folds:
    """Divide samples into folds at random, with as many units in one fold as in another, up to one.

    Args:
        folds: the number of folds.
        units: the unit of each sample: any whole numbers.
        key: draws the division.
    """
    _, unit = np.unique(units, return_inverse=True)
    order = np.asarray(jax.random.permutation(key, unit.max() + 1))
    return Folds(order[unit] % folds, unit, folds)


def pair_sums(
    gram: Float[np.ndarray, "N N"], folds: Folds
) -> tuple[Float[np.ndarray, "folds folds"], Float[np.ndarray, "folds folds"]]:
    """Return the sums of <g, g'>^2 over pairs of samples of different units, fold by fold, and the numbers of those pairs.

    Their ratio has the mean ||F||^2, as E<g, g'>^2 = <F, F> for independent g and g'.

    Args:
        gram: <g, g'> of all pairs.
        folds: the division of the samples.
    """
    inside = [folds.inside(k) for k in range(folds.count)]

    def block(a: Int[np.ndarray, " a"], b: Int[np.ndarray, " b"]) -> tuple[float, int]:
        different = folds.unit[a][:, None] != folds.unit[b]
        return float(np.sum(gram[np.ix_(a, b)] ** 2, where=different, dtype=float)), int(np.sum(different))

    blocks = np.array([[block(a, b) for b in inside] for a in inside], float)
    return blocks[..., 0], blocks[..., 1]


def pseudo_values(statistic: Callable[[Bool[np.ndarray, " folds"]], float], folds: int) -> Float[np.ndarray, " folds"]:
    """Return the jackknife's pseudo-values K s - (K - 1) s_k of a statistic s of K folds, where s_k leaves out fold k.

    Their mean is the statistic corrected for bias, and their standard deviation over the root of K its standard error. What
    is linear in two statistics is linear in their pseudo-values, so that a difference is that of the pseudo-values.

    Args:
        statistic: maps the folds that are kept to a number.
        folds: K.
    """
    whole = statistic(np.ones(folds, bool))
    if not np.isfinite(whole):
        return np.full(folds, whole)
    return folds * whole - (folds - 1) * np.array([statistic(np.arange(folds) != k) for k in range(folds)])


def standard_error(pseudo: Float[np.ndarray, " folds"]) -> float:
    """Return the standard error of the mean of pseudo-values; NaN where they are not finite."""
    with np.errstate(invalid="ignore"):
        return float(np.std(pseudo, ddof=1) / np.sqrt(len(pseudo)))

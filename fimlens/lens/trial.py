"""A trial: structures are fitted to all folds of some samples but one, and tested on that one, each fold once."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fimlens.divergence import FROBENIUS, Divergence, excess
from fimlens.lens.estimates import Estimate, make_estimate
from fimlens.lens.fits import Fits
from fimlens.lens.folds import pseudo_values
from fimlens.lens.held_out import Adjustment, HeldOut, Moments, Units, held_out, scale_of
from fimlens.lens.split import Split
from fimlens.structure import EigenvalueBlock

SHARES = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.7, 1.0)  # the rho of (1 - rho) F~ + rho c I, to choose from


@dataclass(frozen=True)
class Trial:
    """What is asked of fits to folds: the arguments of `estimate`.

    Everything is in units of F, so that no square leaves float32.
    """

    split: Split
    divergence: Divergence
    best_scale: bool
    shrink: bool

    def row(self, fits: Fits) -> Estimate:
        """Return the estimate of a structure."""
        tests, shares = zip(*(self._fold(fits, k) for k in range(self.split.folds.count)), strict=True)
        linear, basis = (np.array([float(test[part]) for test in tests]) for part in range(2))

        def over(size: Callable[[Bool[np.ndarray, " folds"]], float], part: np.ndarray) -> np.ndarray:
            return pseudo_values(lambda kept: (_mean(part[kept]) + self._trace(kept)) / size(kept), self.split.folds.count)

        total = over(lambda kept: 1.0, linear).mean() * float(self._unit) ** (self.divergence.degree or 0)
        fitted_on = round(len(self.split.fisher) * (1 - 1 / self.split.folds.count))
        shrinkage = float(np.mean(shares)) if self.shrink else None
        errors = over(self._size, linear), over(self._size, basis)
        return make_estimate(*errors, float(total), self._plug_in(fits), fitted_on, shrinkage)

    def _fold(self, fits: Fits, k: int) -> tuple[HeldOut, float]:
        """Test a fit on the fold that it has not seen; return also the share of the identity."""
        share, folds = 0.0, self.split.folds
        if self.shrink:
            # The share may not see the fold of the test, so it is chosen on another, for a fit that has seen neither.
            other = (k + 1) % folds.count
            plain = self._adjustment(fits, 0.0, k, other)
            losses = jax.vmap(lambda x: self._test(fits, plain._replace(share=x), (other,), k, other).linear)
            share = SHARES[int(jnp.argmin(losses(jnp.array(SHARES))))]
        return self._test(fits, self._adjustment(fits, share, k), (k,), k), share

    def _adjustment(self, fits: Fits, share: float, *left_out: int) -> Adjustment:
        """Return what a fit becomes before it is tested."""
        chosen, scale = self.split.folds.outside(*left_out), 1.0
        if self.best_scale:
            params, fisher = fits.without(*left_out), self.split.fisher.take(chosen)
            scale = scale_of(fits.structure, self.divergence, params, fisher, self._units)
        return Adjustment(jnp.asarray(scale), jnp.asarray(share), jnp.asarray(self._level(chosen)))

    def _test(self, fits: Fits, adjustment: Adjustment, tested: tuple[int, ...], *left_out: int) -> HeldOut:
        """Test the fit without some folds on the samples of tested ones, or of all."""
        known, ratio = fits.wide.moments(tested, *left_out), self.split.fisher.unit / self._unit
        moments = Moments([ratio * V for V in known.means], [ratio**2 * x for x in known.variances])
        return held_out(fits.structure, self.divergence, fits.without(*left_out), moments, adjustment, self._units)

    def _plug_in(self, fits: Fits) -> float:
        """Return the error of the fit of all samples on the same samples."""
        every = self.split.folds.outside()
        linear = float(self._test(fits, self._adjustment(fits, 0.0), ()).linear)
        if self._square:
            trace = self._trace_of(self.split.norm_of_samples)
            return (linear + trace) / trace
        mean = self._level(every)
        return (linear - self._isotropic(mean, mean)) / self._per_entry(mean)

    # --- what all structures share --------------------------------------------------------------------

    @cached_property
    def _unit(self) -> Float[Array, ""]:
        return self.split.fisher.unit if self.divergence.degree is not None else jnp.ones_like(self.split.fisher.unit)

    @cached_property
    def _units(self) -> Units:
        """A rotated gradient is off by eps of its norm, which sets what rounding leaves of a second moment of zero."""
        eps, count = float(jnp.finfo(self.split.fisher.dtype).eps), math.prod(self.split.fisher.shape)
        return Units(self._unit, jnp.asarray(10 * eps**2 * count * self._means.mean(), self.split.fisher.dtype))

    @property
    def _square(self) -> bool:
        """Whether tr phi(F) is a multiple of ||F||^2, of which there is an estimate without bias."""
        return self.divergence.same_minima(FROBENIUS)

    @cached_property
    def _means(self) -> Float[np.ndarray, " N"]:
        """The mean square of each sample."""
        return self.split.mean_squares / float(self._unit)

    def _level(self, chosen: Int[np.ndarray, " k"]) -> float:
        """The mean eigenvalue of the Fisher of some samples."""
        return float(self._means[chosen].mean())

    def _isotropic(self, level: float, mean: float) -> float:
        """D(F, c I) - tr phi(F), with the level c, for an F whose mean eigenvalue is `mean`."""
        m, n = self.split.fisher.shape
        return float(excess([EigenvalueBlock(jnp.asarray(level), jnp.asarray(mean), m * n)], self.divergence))

    @cached_property
    def _folds_alone(self) -> tuple[Float[np.ndarray, " folds"], Float[np.ndarray, " folds"]]:
        """The mean eigenvalue of each fold, and D(F, c I) - tr phi(F) with the c of the others."""
        means = np.array([self._level(self.split.folds.inside(k)) for k in range(self.split.folds.count)])
        levels = [self._level(self.split.folds.outside(k)) for k in range(self.split.folds.count)]
        return means, np.array([self._isotropic(*pair) for pair in zip(levels, means, strict=True)])

    def _trace_of(self, norm: float) -> float:
        """tr phi(F) of an F of this ||F||^2, where phi is a square."""
        return norm * self._phi_of_one

    @cached_property
    def _phi_of_one(self) -> float:
        return float(self.divergence.phi(jnp.ones([])))

    def _trace(self, kept: Bool[np.ndarray, " folds"]) -> float:
        """tr phi(F), or minus D(F, c I) - tr phi(F), from which other divergences are measured."""
        if self._square:
            return self._trace_of(self.split.norm(kept))
        return -self._folds_alone[1][kept].mean()

    def _size(self, kept: Bool[np.ndarray, " folds"]) -> float:
        """What errors are relative to."""
        return self._trace(kept) if self._square else self._per_entry(self._folds_alone[0][kept].mean())

    def _per_entry(self, mean: float) -> float:
        """The number of entries, in units in which the mean eigenvalue is 1; twice that under LogDet, for nats."""
        m, n = self.split.fisher.shape
        return m * n * mean**2 * float(self.divergence.curvature(jnp.asarray(mean))) * (2 if self.divergence.degree == 0 else 1)


def _mean(parts: Float[np.ndarray, " folds"]) -> float:
    """Return the mean; inf if a part is, whatever the others are: a singular fit has -inf where no sample lies outside it."""
    return math.inf if np.any(parts == math.inf) else float(parts.mean())

"""Estimate how near structures are to the Fisher of a population, from samples of it: fitted on some, tested on others."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fimlens._validate import require_number
from fimlens.divergence import FROBENIUS, Divergence, excess, require_divergence
from fimlens.fisher.fisher import Fisher
from fimlens.fisher.sample_form import SampleFisher
from fimlens.lens.estimates import Estimate, Estimates, make_estimate
from fimlens.lens.folds import Folds, divide, pair_sums, pseudo_values, standard_error
from fimlens.lens.held_out import Adjustment, HeldOut, Sampled, held_out, scale_of
from fimlens.solver.fit import fit
from fimlens.structure import EigenvalueBlock, Params, Structure
from fimlens.structures.named import name_structures

SHARES = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.7, 1.0)  # the rho of (1 - rho) F~ + rho c I, to choose from


def estimate(
    structures: Mapping[str, Structure] | Iterable[Structure],
    gradients: Fisher | Float[Array, "N m n"] | Iterable[Float[Array, "k m n"]],
    *,
    divergence: Divergence = FROBENIUS,
    folds: int = 8,
    units: Int[np.ndarray, " N"] | None = None,
    best_scale: bool = False,
    shrink: bool = False,
    key: Array | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> Estimates:
    """Estimate how near structures are to the Fisher of the population that gradients are drawn from, with error bars.

    Use it in place of `compare` and `gap` wherever samples are few, as on every real layer: those measure how near a fit is
    to the Fisher of the samples that it was fitted to, which flatters large families. Here the samples are divided into folds.
    A structure is fitted to all folds but one and tested on that one, each once. The mean error of those fits is
    estimated: ||F||^2 by pairs of different samples, ratios corrected by the jackknife, errors by leaving out each fold.

    Args:
        structures: by name, or without names: then named as they print.
        gradients: a Fisher of samples, its gradients (N, m, n), or an iterable of blocks of them (k, m, n).
        divergence: in which sense; by default the Frobenius norm, whatever a structure's own is.
        folds: how many folds; each fit sees (folds - 1) / folds of the samples.
        units: whole numbers (N,), the sampling unit of each sample, such as its document: samples of a unit are not taken for
            independent. By default each sample is one.
        best_scale: multiply each fit by the scalar that is best on its own samples, as a tuned learning rate would.
        shrink: test (1 - rho) F~ + rho c I in place of F~, with rho chosen on the fit's own samples. It makes errors finite.
        key: draws the folds and random bases; jax.random.key(0) by default.
        progress: called with each structure's name when its row is done.

    Returns:
        `Estimates`, whose `rows` have an `Estimate` by name.

    Raises:
        TypeError: a structure, the Fisher or the divergence is none.
        ValueError: there are no structures, two have the same name, there are fewer units than folds, or a gradient is not
            finite.

    Warns:
        UserWarning: ||F||^2 is uncertain by more than half, as for heavy tails, so that relative errors mean nothing.

    Examples:
        >>> import jax, fimlens as fl
        >>> G = jax.random.normal(jax.random.key(0), (64, 3, 4)) * jax.numpy.array([1.0, 1.0, 3.0, 3.0])
        >>> estimates = fl.estimate([fl.Columns(), fl.Rows()], G)
        >>> estimates.ranked()
        ['Columns()', 'Rows()']
    """
    named = name_structures("estimate", structures)
    require_divergence("estimate", divergence)
    fisher = _samples(gradients)
    key_of_folds, key_of_fits = jax.random.split(jax.random.key(0) if key is None else key)
    trial = Trial(fisher, _folds(fisher, folds, units, key_of_folds), divergence, best_scale, shrink, key_of_fits)
    rows, unsuited = {}, {}
    for name, structure in named.items():
        try:
            rows[name] = trial.row(structure)
        except ValueError as error:  # such as a rank over the shorter side, or a divergence that has no minimum here
            unsuited[name] = str(error)
        progress(name)
    norm = trial.norm_squared
    count = len(fisher.samples)
    found = Estimates(rows, unsuited, str(divergence), fisher.shape, count, folds, norm)
    if divergence.same_minima(FROBENIUS) and not found.reliable:
        warnings.warn(
            f"estimate: ||F||^2 is {norm[0]:.2g} with a standard error of {norm[1]:.2g}, so that errors relative to it mean "
            "little: the gradients have heavy tails, or are too few. Take more, or divergence=fl.LogDet() or fl.VonNeumann().",
            stacklevel=2,
        )
    return found


def _samples(gradients: object) -> SampleFisher:
    """Return the gradients as a Fisher of samples."""
    if isinstance(gradients, Fisher):
        if not isinstance(gradients, SampleFisher):
            raise TypeError("estimate: a dense Fisher has no samples to hold out. Give gradients (N, m, n), or use compare.")
        return gradients
    if isinstance(gradients, np.ndarray | jax.Array):
        return Fisher.from_gradients(gradients)
    blocks = list(gradients)
    if not blocks:
        raise ValueError("estimate: there are no blocks of gradients. An iterator can be used only once: make it anew.")
    return Fisher.from_gradients(np.concatenate(blocks))


def _folds(fisher: SampleFisher, folds: int, units: object, key: Array) -> Folds:
    """Divide the samples, or say why that is not possible."""
    require_number("estimate", "folds", folds, 2, whole=True)
    N = len(fisher.samples)
    units = np.arange(N) if units is None else np.asarray(units)
    if units.shape != (N,) or not np.issubdtype(units.dtype, np.integer):
        raise ValueError(f"estimate: units are {N} whole numbers, one a sample; got {units.dtype} of shape {units.shape}")
    count = len(np.unique(units))
    if count < folds:
        raise ValueError(
            f"estimate: {count} sampling unit{'s' * (count > 1)} cannot be divided into {folds} folds. Take more gradients"
            + (f", or folds={count}." if count > 1 else ": one says nothing of others.")
        )
    return divide(folds, units, key)


@dataclass(frozen=True)
class Trial:
    """Samples and their division, on which structures are tried one after the other.

    Everything is in units of F, so that no square leaves float32.
    """

    fisher: SampleFisher
    folds: Folds
    divergence: Divergence
    best_scale: bool
    shrink: bool
    key: Array

    def row(self, structure: Structure) -> Estimate:
        """Return the estimate of a structure."""
        tests, shares = zip(*(self._fold(structure, k) for k in range(self.folds.count)), strict=True)
        linear, basis = (np.array([float(test[part]) for test in tests]) for part in range(2))

        def relative(part: Float[np.ndarray, " folds"]) -> Float[np.ndarray, " folds"]:
            return pseudo_values(lambda kept: (part[kept].mean() + self._trace(kept)) / self._size(kept), self.folds.count)

        fitted_on = round(len(self.folds.fold) * (1 - 1 / self.folds.count))
        shrinkage = float(np.mean(shares)) if self.shrink else None
        return make_estimate(relative(linear), relative(basis), self._plug_in(structure), fitted_on, shrinkage)

    def _fold(self, structure: Structure, k: int) -> tuple[HeldOut, float]:
        """Fit to all folds but one, test on that one, and return the share of the identity."""
        params, scale = self._fitted(structure, self.folds.outside(k))
        level, share = jnp.asarray(self._level(self.folds.outside(k))), 0.0
        if self.shrink:
            # rho may not see the fold of the test: another fold is held out of another fit to choose it.
            other = (k + 1) % self.folds.count
            fewer = self._fitted(structure, self.folds.outside(k, other))
            losses = [
                self._test(structure, fewer[0], self.folds.inside(other), Adjustment(fewer[1], jnp.asarray(x), level)).linear
                for x in SHARES
            ]
            share = SHARES[int(np.argmin(losses))]
        return self._test(structure, params, self.folds.inside(k), Adjustment(scale, jnp.asarray(share), level)), share

    def _fitted(self, structure: Structure, chosen: Int[np.ndarray, " k"]) -> tuple[Params, Float[Array, ""]]:
        """Return the fit of some samples, and the scale at which to test it."""
        fisher = self.fisher.take(chosen)
        params = fit(structure, fisher, key=self.key)
        one = jnp.ones([], fisher.dtype)
        return params, scale_of(structure, self.divergence, params, fisher, self._unit) if self.best_scale else one

    def _test(self, structure: Structure, params: Params, chosen: Int[np.ndarray, " k"], adjustment: Adjustment) -> HeldOut:
        unit = self.folds.unit[chosen]
        starts = np.append(True, unit[1:] != unit[:-1])
        pairs = len(unit) ** 2 - np.sum(np.unique(unit, return_counts=True)[1] ** 2)
        sampled = Sampled(self.fisher.take(chosen), jnp.asarray(starts), jnp.asarray(float(pairs)))
        return held_out(structure, self.divergence, params, sampled, adjustment, self._unit)

    def _plug_in(self, structure: Structure) -> float:
        """Return the error of the fit of all samples on the same samples."""
        every = np.arange(len(self.folds.fold))
        params, scale = self._fitted(structure, every)
        level = jnp.asarray(self._level(every))
        linear = self._test(structure, params, every, Adjustment(scale, jnp.zeros([]), level)).linear
        mean = self._level(every)
        if self._square:
            trace = self.divergence.trace(self.fisher, self._unit)
            return float((linear + trace) / trace)
        return float(linear - self._isotropic(mean, mean)) / self._per_entry(mean)

    # --- what all structures share --------------------------------------------------------------------

    @cached_property
    def _unit(self) -> Float[Array, ""]:
        return self.fisher.unit if self.divergence.degree is not None else jnp.ones_like(self.fisher.unit)

    @property
    def _square(self) -> bool:
        """Whether tr phi(F) is a multiple of ||F||^2, of which there is an estimate without bias."""
        return self.divergence.same_minima(FROBENIUS)

    @cached_property
    def _means(self) -> Float[np.ndarray, " N"]:
        """The mean square of each sample."""
        return np.asarray(jnp.mean(jnp.square(self.fisher.samples / jnp.sqrt(self._unit)), (1, 2)), float)

    def _level(self, chosen: Int[np.ndarray, " k"]) -> float:
        """The mean eigenvalue of the Fisher of some samples."""
        return float(self._means[chosen].mean())

    def _isotropic(self, level: float, mean: float) -> float:
        """D(F, c I) - tr phi(F), with the level c, for an F whose mean eigenvalue is `mean`."""
        m, n = self.fisher.shape
        return float(excess([EigenvalueBlock(jnp.asarray(level), jnp.asarray(mean), m * n)], self.divergence))

    @cached_property
    def _folds_alone(self) -> tuple[Float[np.ndarray, " folds"], Float[np.ndarray, " folds"]]:
        """The mean eigenvalue of each fold, and D(F, c I) - tr phi(F) with the c of the others."""
        means = np.array([self._level(self.folds.inside(k)) for k in range(self.folds.count)])
        levels = [self._level(self.folds.outside(k)) for k in range(self.folds.count)]
        return means, np.array([self._isotropic(*pair) for pair in zip(levels, means, strict=True)])

    @cached_property
    def _pairs(self) -> tuple[Float[np.ndarray, "folds folds"], Float[np.ndarray, "folds folds"]]:
        samples = self.fisher.samples / jnp.sqrt(self.fisher.unit)
        found = pair_sums(samples, jnp.asarray(self.folds.fold), jnp.asarray(self.folds.unit), self.folds.count)
        return tuple(np.asarray(x, float) for x in found)

    def _norm(self, kept: Bool[np.ndarray, " folds"]) -> float:
        """||F||^2 in units of F, from pairs of samples of these folds."""
        sums, counts = (x[kept][:, kept].sum() for x in self._pairs)
        return sums / counts

    def _trace(self, kept: Bool[np.ndarray, " folds"]) -> float:
        """tr phi(F), or minus D(F, c I) - tr phi(F), from which other divergences are measured."""
        if self._square:
            return self._norm(kept) * float(self.divergence.phi(jnp.ones([])))
        return -self._folds_alone[1][kept].mean()

    def _size(self, kept: Bool[np.ndarray, " folds"]) -> float:
        """What errors are relative to."""
        return self._trace(kept) if self._square else self._per_entry(self._folds_alone[0][kept].mean())

    def _per_entry(self, mean: float) -> float:
        """The number of entries, in units in which the mean eigenvalue is 1; twice that under LogDet, for nats."""
        m, n = self.fisher.shape
        return m * n * mean**2 * float(self.divergence.curvature(jnp.asarray(mean))) * (2 if self.divergence.degree == 0 else 1)

    @cached_property
    def norm_squared(self) -> tuple[float, float]:
        """||F||^2 and its standard error."""
        pseudo = pseudo_values(self._norm, self.folds.count) * float(self.fisher.unit) ** 2
        return float(np.mean(pseudo)), standard_error(pseudo)

"""Estimate how near structures are to the Fisher of a population, from samples of it: fitted on some, tested on others."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int, Shaped

from fimlens._validate import require_number, require_size
from fimlens.divergence import FROBENIUS, Divergence, require_divergence
from fimlens.fisher.fisher import Fisher
from fimlens.fisher.samples import Samples
from fimlens.fisher.stored_form import keep, samples_of
from fimlens.lens.estimates import Estimate, Estimates
from fimlens.lens.fits import Fits, WideFits, widest
from fimlens.lens.folds import Folds, divide
from fimlens.lens.split import Split
from fimlens.lens.trial import Trial
from fimlens.solver.fit import Unsuited
from fimlens.structure import Structure
from fimlens.structures.named import name_structures

MAX_BYTES = 2**29  # default bound on the memory of samples


def estimate(
    structures: Mapping[str, Structure] | Iterable[Structure],
    gradients: Fisher | Shaped[Array | np.ndarray, "..."] | Iterable[Any],
    *,
    divergence: Divergence = FROBENIUS,
    folds: int = 8,
    units: Int[np.ndarray, " samples"] | Sequence[int] | None = None,
    best_scale: bool = False,
    shrink: bool = False,
    max_bytes: int = MAX_BYTES,
    skip_nonfinite: bool = False,
    key: Array | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> Estimates:
    """Estimate how near structures are to the Fisher of the population that gradients are drawn from, with error bars.

    Use it in place of `compare` and `gap` wherever samples are few, as on every real layer. Those measure how near a fit is to
    the Fisher of the samples that it was fitted to, which flatters large families. Here the samples are divided into folds. A
    structure is fitted to all folds but one and tested on that one, each once. The mean error of those fits is estimated:
    ||F||^2 by pairs of different samples, ratios corrected by the jackknife, errors by leaving out each fold.

    Args:
        structures: by name, or without names: then named as they print.
        gradients: a Fisher of samples, its gradients (N, m, n), or an iterable of blocks of them (k, m, n).
        divergence: in which sense; by default the Frobenius norm, whatever a structure's own is.
        folds: how many folds; each fit sees (folds - 1) / folds of the samples.
        units: whole numbers (N,), the sampling unit of each sample, such as its document: samples of a unit are not taken for
            independent. By default each sample is one.
        best_scale: multiply each fit by the scalar that is best on its own samples, as a tuned learning rate would.
        shrink: test (1 - rho) F~ + rho c I in place of F~, with rho chosen on the fit's own samples. It makes errors finite.
        max_bytes: samples of up to this many bytes are held in memory, and copied up to twice. More of them are kept in a
            temporary file, and read a block at a time.
        skip_nonfinite: leave out gradients that are not finite, with a warning that names them.
        key: draws the folds and random bases; jax.random.key(0) by default.
        progress: called with each structure's name when its row is done.

    Returns:
        `Estimates`, whose `rows` have an `Estimate` by name.

    Raises:
        TypeError: a structure, the Fisher, the divergence or `folds` is of another type, or the Fisher is dense.
        ValueError: there are no structures, two have the same name, a fold leaves fewer than two units, a gradient is not
            finite, or float32 does not hold the squares of any.

    Warns:
        UserWarning: gradients were left out, or ||F||^2 is uncertain, as for heavy tails (`reliable`).

    Examples:
        >>> import jax, fimlens as fl
        >>> G = jax.random.normal(jax.random.key(0), (64, 3, 4)) * jax.numpy.array([1.0, 1.0, 3.0, 3.0])
        >>> estimates = fl.estimate([fl.Columns(), fl.Rows()], G)
        >>> estimates.ranked()
        ['Columns()', 'Rows()']
    """
    named = name_structures("estimate", structures)
    require_divergence("estimate", divergence)
    fisher, kept, given = _samples(gradients, max_bytes, skip_nonfinite)
    units = kept if units is None else _units(units, given)[kept]
    divided, key = folds_of(units, folds, jax.random.key(0) if key is None else key)
    split = Split(fisher, divided)
    found = estimate_each(named, split, {"": Trial(split, divergence, best_scale, shrink)}, key, progress)[""]
    if divergence.same_minima(FROBENIUS) and not found.reliable:
        warnings.warn(
            f"estimate: {found.doubt}, so that errors relative to ||F||^2 mean little: the gradients have heavy tails, or are "
            "too few. Take more, or divergence=fl.LogDet() or fl.VonNeumann().",
            stacklevel=2,
        )
    return found


def estimate_each(
    structures: Mapping[str, Structure], split: Split, trials: Mapping[str, Trial], key: Array, progress: Callable[[str], None]
) -> dict[str, Estimates]:
    """Return the estimates of several trials on the same samples, for which each structure is fitted once.

    Args:
        structures: by name.
        split: the samples.
        trials: of that split, by name.
        key: draws random bases.
        progress: called with each structure's name when its rows are done.
    """
    found: dict[str, dict[str, Estimate]] = {name: {} for name in trials}
    families = {name: widest(structure, split.fisher.shape) for name, structure in structures.items()}
    unsuited = {}
    for family in dict.fromkeys(families.values()):  # one after the other, as the bases of one may fill the memory
        wide = WideFits(family, split, key)
        for name in (name for name, own in families.items() if own == family):
            fits = Fits(structures[name], wide)
            try:
                for trial_name, trial in trials.items():
                    found[trial_name][name] = trial.row(fits)
            except Unsuited as error:
                unsuited[name] = str(error)
            progress(name)
    return {
        name: Estimates(
            rows={given: found[name][given] for given in structures if given in found[name]},
            unsuited=unsuited,
            structures=dict(structures),
            divergence=str(trial.divergence),
            shape=split.fisher.shape,
            samples=len(split.fisher),
            folds=split.folds.count,
            norm_squared=split.norm_squared,
            largest_share=split.largest_share,
        )
        for name, trial in trials.items()
    }


def _samples(gradients: object, max_bytes: int, skip: bool) -> tuple[Samples, Int[np.ndarray, " N"], int]:
    """Return the gradients as a Fisher of samples, the numbers of those that it has, and how many there were."""
    if isinstance(gradients, Fisher):
        if not isinstance(gradients, Samples):
            raise TypeError("estimate: a dense Fisher has no samples to hold out. Give gradients (N, m, n), or use compare.")
        if not gradients.mean_squares().any():
            raise ValueError("estimate: the Fisher is zero, or too small for float32. No error is relative to it.")
        return gradients, np.arange(len(gradients)), len(gradients)
    array = gradients if isinstance(gradients, np.ndarray | jax.Array) else keep("estimate", gradients, max_bytes)
    return *samples_of("estimate", array, max_bytes, skip), len(array)


def _units(units: object, count: int) -> Int[np.ndarray, " N"]:
    """Return the sampling units, or refuse what is not one whole number a sample."""
    found = np.asarray(units)
    if found.shape != (count,) or not np.issubdtype(found.dtype, np.integer):
        raise ValueError(f"estimate: units are {count} whole numbers, one a sample; got {found.dtype} of shape {found.shape}")
    return found


def folds_of(units: Int[np.ndarray, " N"], folds: int, key: Array) -> tuple[Folds, Array]:
    """Return the division of samples that `estimate` makes, and the key of its fits; raise ValueError if there is none."""
    require_size("estimate", "folds", folds)
    require_number("estimate", "folds", folds, 2, whole=True)
    count = len(np.unique(units))
    if count < folds or count - -(-count // folds) < 2:  # without a fold, a pair of units must be left
        remedy = f"Take more gradients, or folds={count}." if count > 2 else "Take more: one says nothing of others."
        many = f"{count} sampling unit{'s' * (count > 1)}"
        raise ValueError(f"estimate: {many} cannot be divided into {folds} folds, with two units outside each. {remedy}")
    key_of_folds, key_of_fits = jax.random.split(key)
    return divide(folds, units, key_of_folds), key_of_fits

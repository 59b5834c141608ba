"""What errors say, in words: what is nearest, what a second side and Adam's numbers are worth, and what is unclear."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fimlens._validate import require_some
from fimlens.lens.compare import Comparison
from fimlens.lens.estimates import Estimates
from fimlens.lens.nearness import DIVERGENCES, divergence_name
from fimlens.lens.row import EXACT, Row
from fimlens.structure import Claim

SMALL = 2.0  # a structure is small if it keeps at most this many times m + n numbers
PAIRS = {  # what a pair of structures tells: the second less the first
    "A second basis (SOAP over one-sided SOAP)": ("osoap", "soap"),
    "Adam's m n numbers over RACS' m + n": ("racs", "adam"),
    "Second moments in Shampoo's bases over its m + n (SOAP over Shampoo squared)": ("shampoo squared", "soap"),
}


class InSample(NamedTuple):
    """The errors of a `Comparison` in one divergence. They have no error bars: `clearly_nearer` is nearer."""

    shape: tuple[int, int]
    errors: Mapping[str, float]
    sizes: Mapping[str, int]

    def ranked(self) -> list[str]:
        return sorted(self.errors, key=self.errors.__getitem__)

    def error(self, name: str) -> float:
        return self.errors[name]

    def kept(self, name: str) -> int:
        return self.sizes[name]

    def clearly_nearer(self, first: str, second: str) -> bool:
        return self.errors[first] < self.errors[second]


Judged = Estimates | InSample


def conclude(estimates: Mapping[str, Estimates]) -> list[str]:
    """Return sentences about estimates of several matrices in one divergence.

    Args:
        estimates: by the name of the matrix.

    Raises:
        ValueError: there are none.
    """
    require_some("conclude", estimates, "estimates")
    found, count = list(estimates.values()), len(estimates)
    sentences = [
        f"In {divergence_name(found[0].divergence)}, nearest on held-out gradients: {_nearest(found)}.",
        *_worths(found),
    ]
    unclear = sum(len(one.rows) > 1 and _leader(one) is not None and not one.clearly_nearer(*one.ranked()[:2]) for one in found)
    if unclear:
        sentences.append(f"On {unclear} of {count} matrices the error bars do not tell the best two apart.")
    flattered = sum(_flattered(one) for one in found)
    if flattered:
        sentences.append(f"On {flattered} of {count} the plug-in error names another structure as nearest.")
    return sentences


def conclude_in_sample(comparisons: Sequence[Comparison]) -> list[str]:
    """Return sentences about comparisons of several matrices: some in each divergence, and then those about the claims.

    What is F itself, such as `fl.Dense()`, is left aside.

    Raises:
        ValueError: there are no comparisons.
    """
    require_some("conclude_in_sample", comparisons, "comparisons")
    sentences = []
    for d in DIVERGENCES:
        judged = [
            InSample(
                comparison.shape,
                {row.name: row.divergences[d].error for row in comparison.rows if row.relative > EXACT},
                {row.name: row.kept for row in comparison.rows},
            )
            for comparison in comparisons
        ]
        sentences += [f"In {d}, nearest on the gradients of the fit: {_nearest(judged)}.", *_worths(judged)]
    for claim in (Claim.ONE_STEP, Claim.BOUND):
        # The fits of the claim that the solver was beside.
        fits = [
            row for comparison in comparisons for row in comparison.rows if row.claim == claim.name and row.ratio is not None
        ]
        if fits:
            sentences.append(_loss(fits, claim))
    return sentences


def _nearest(found: Iterable[Judged]) -> str:
    """Return how often each name leads, such as "soap on 5, kronecker on 2"."""
    return _counted([_leader(one) or "none" for one in found])


def _leader(one: Judged) -> str | None:
    """Return the nearest structure; None where no error is finite."""
    return next((name for name in one.ranked() if math.isfinite(one.error(name))), None)


def _counted(names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    counts = {name: names.count(name) for name in sorted(set(names), key=lambda name: -names.count(name))}
    return ", ".join(f"{name} on {count}" for name, count in counts.items())


def _worths(found: Sequence[Judged]) -> list[str]:
    """Say what is nearest of the small, and what each pair tells."""
    smallest = [[name for name in one.ranked() if one.kept(name) <= SMALL * sum(one.shape)][:1] for one in found]
    leaders = [name for names in smallest for name in names]
    sentences = [f"Of those that keep at most {SMALL:g} (m + n) numbers: {_counted(leaders)}."] if leaders else []
    for words, (first, second) in PAIRS.items():
        known = [one for one in found if {first, second} <= set(one.ranked())]
        known = [one for one in known if math.isfinite(one.error(first)) and math.isfinite(one.error(second))]
        if known:
            sentences.append(f"{words}: {_worth(known, first, second)}")
    return sentences


def _worth(known: Sequence[Judged], first: str, second: str) -> str:
    """Say how much a pair differs over all matrices."""
    values = np.array([one.error(second) - one.error(first) for one in known])
    if len(known) == 1:
        return f"the error changes by {values[0]:+.3f}."
    gained = sum(one.clearly_nearer(second, first) for one in known)
    lost = sum(one.clearly_nearer(first, second) for one in known)
    clearly = "clearly " if isinstance(known[0], Estimates) else ""
    return (
        f"the error changes by {values.mean():+.3f} on average, from {values.min():+.3f} to {values.max():+.3f}; "
        f"{clearly}less on {gained} of {len(known)} matrices, {clearly}more on {lost}."
    )


def _loss(fits: Sequence[Row], claim: Claim) -> str:
    """Say how far the fits of a claim are from the optimum."""
    worst = max(fits, key=lambda row: row.ratio)
    return f"A fit of the claim {claim.name} has up to {worst.ratio:.3g} times the least error of its family ({worst.name})."


def _flattered(found: Estimates) -> bool:
    plug_in = min(found.rows, key=lambda name: found.rows[name].plug_in, default=None)
    return _leader(found) not in (None, plug_in)

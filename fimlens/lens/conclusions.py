"""What estimates say, in words: what is nearest, what a second side and Adam's numbers are worth, and what is unclear."""

import math
from collections.abc import Mapping

import numpy as np

from fimlens.lens.estimates import Estimates

SMALL = 2.0  # a structure is small if it keeps at most this many times m + n numbers
PAIRS = {  # what a pair of structures tells: the second less the first
    "A second basis (SOAP over one-sided SOAP)": ("osoap", "soap"),
    "Adam's m n numbers over RACS' m + n": ("racs", "adam"),
    "Second moments in Shampoo's bases over its m + n (SOAP over Shampoo squared)": ("shampoo squared", "soap"),
}


def conclude(estimates: Mapping[str, Estimates]) -> list[str]:
    """Return sentences about estimates of several matrices in one divergence.

    Args:
        estimates: by the name of the matrix.
    """
    divergence = next(iter(estimates.values())).divergence
    nearest = _count(found.ranked()[:1] for found in estimates.values())
    sentences = [f"In {divergence}, nearest on held-out gradients: {nearest}."]
    small = _count(_small(found)[:1] for found in estimates.values())
    sentences += [f"Of those that keep at most {SMALL:g} (m + n) numbers: {small}."] if small else []
    for words, (first, second) in PAIRS.items():
        known = [found for found in estimates.values() if {first, second} <= set(found.rows)]
        known = [found for found in known if math.isfinite(found.difference(second, first)[0])]
        if known:
            sentences.append(f"{words}: {_worth(known, first, second)}")
    unclear = [name for name, found in estimates.items() if _unclear(found)]
    if unclear:
        sentences.append(f"On {len(unclear)} of {len(estimates)} matrices the error bars do not tell the best two apart.")
    flattered = [name for name, found in estimates.items() if _flattered(found)]
    if flattered:
        sentences.append(f"On {len(flattered)} of {len(estimates)} the plug-in error names another structure as nearest.")
    return sentences


def _count(leaders: object) -> str:
    """Return how often each name leads, such as "soap on 5, kronecker on 2"."""
    names = [name for leader in leaders for name in leader]
    counts = {name: names.count(name) for name in sorted(set(names), key=lambda name: -names.count(name))}
    return ", ".join(f"{name} on {count}" for name, count in counts.items())


def _small(found: Estimates) -> list[str]:
    """The names of small structures, the nearest first."""
    return [name for name in found.ranked() if found.kept(name) <= SMALL * sum(found.shape)]


def _worth(known: list[Estimates], first: str, second: str) -> str:
    """Say how much a pair differs over all matrices."""
    values = np.array([found.difference(second, first)[0] for found in known])
    gained = sum(found.clearly_nearer(second, first) for found in known)
    lost = sum(found.clearly_nearer(first, second) for found in known)
    of = f"of {len(known)} matri{'x' if len(known) == 1 else 'ces'}"
    return (
        f"the error changes by {values.mean():+.3f} on average, from {values.min():+.3f} to {values.max():+.3f}; "
        f"clearly less on {gained} {of}, clearly more on {lost}."
    )


def _unclear(found: Estimates) -> bool:
    """Whether the nearest is not clearly nearer than the second."""
    return len(found.rows) > 1 and not found.clearly_nearer(*found.ranked()[:2])


def _flattered(found: Estimates) -> bool:
    plug_in = min(found.rows, key=lambda name: found.rows[name].plug_in, default=None)
    return bool(found.rows) and plug_in != found.ranked()[0]

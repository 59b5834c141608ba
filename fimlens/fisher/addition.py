"""The Fisher of two sets of gradients, from the Fishers of each."""

import re

import jax.numpy as jnp

from fimlens.fisher.dense_form import DenseFisher
from fimlens.fisher.fisher import Fisher
from fimlens.fisher.sample_form import SampleFisher

COUNTED = re.compile(r"(mean|sum) over (\d+) (.+)")


def add(a: Fisher, b: Fisher) -> Fisher:
    """The mean over all that two Fishers are means over, each weighted by its count; or the sum.

    Raises:
        ValueError: their shapes, kinds or normalisations differ, or a normalisation states no count.
    """
    counted = [COUNTED.fullmatch(fisher.normalisation) for fisher in (a, b)]
    like = [(fisher.shape, fisher.kind, found and found.group(1, 3)) for fisher, found in zip((a, b), counted, strict=True)]
    if like[0] != like[1] or None in counted:
        raise ValueError(
            f"Fisher: only Fishers of one shape, kind and normalisation add up, and the last states what it is over, as in "
            f"normalisation='mean over 8 gradients'. Got a {a!r} and a {b!r}."
        )
    how, unit = counted[0].group(1, 3)
    counts = [int(found.group(2)) for found in counted]
    weights = [count / sum(counts) if how == "mean" else 1.0 for count in counts]
    normalisation = f"{how} over {sum(counts)} {unit}"
    if not (isinstance(a, SampleFisher) and isinstance(b, SampleFisher)):
        F = sum(weight * fisher.dense() for weight, fisher in zip(weights, (a, b), strict=True))
        return DenseFisher(a.kind, normalisation, F, a.shape)
    # F is the mean over samples, so each part of them is scaled by its weight over its share.
    N = len(a.samples) + len(b.samples)
    parts = (f.samples * (w * N / len(f.samples)) ** 0.5 for w, f in zip(weights, (a, b), strict=True))
    return a.changed(normalisation=normalisation, samples=jnp.concatenate(list(parts)))

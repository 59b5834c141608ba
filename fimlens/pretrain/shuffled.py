"""The order of the data: batch k of shuffled examples, for every k."""

from collections.abc import Sequence
from typing import Any

import grain
import jax
import numpy as np
from jaxtyping import PyTree


class Shuffled:
    """Batch k of shuffled examples, for every k >= 0. Each epoch has every example once, in an order of its own.

    Args:
        sources: what has a length and an example k, one after the other. An example is a tree of arrays, of the same shapes in
            all.
        batch: examples in a batch.
        seed: determines the order.
    """

    def __init__(self, sources: Sequence[Any], *, batch: int, seed: int) -> None:
        # Grain's map datasets give element i by a pseudo-random permutation, without going through the elements before it.
        datasets = [grain.MapDataset.source(source) for source in sources]
        self.batch, self.examples = batch, grain.MapDataset.concatenate(datasets).seed(seed).shuffle().repeat()
        self.shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), np.asarray(leaf).dtype), sources[0][0])

    def __call__(self, k: int, rows: slice = slice(None)) -> PyTree:
        """Return batch k, or only the given rows of it: arrays whose first axis is that of the rows."""
        examples = [self.examples[k * self.batch + row] for row in range(*rows.indices(self.batch))]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *examples)

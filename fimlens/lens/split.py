"""Samples and their division into folds, and what every structure and every divergence needs of them: computed once."""

from dataclasses import dataclass, replace
from functools import cached_property

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from fimlens.fisher.samples import Samples
from fimlens.lens.folds import Folds, pair_sums, pseudo_values, standard_error


@dataclass(frozen=True, eq=False)
class Split:
    """Samples, and the fold of each.

    Attributes:
        fisher: the samples.
        folds: their division.
    """

    fisher: Samples
    folds: Folds

    @cached_property
    def mean_squares(self) -> Float[np.ndarray, " N"]:
        """The mean square of the entries of each sample."""
        return np.asarray(self.fisher.mean_squares(), float)

    @cached_property
    def _products(self) -> tuple[Float[np.ndarray, "folds folds"], Float[np.ndarray, "folds folds"], float]:
        """What `pair_sums` returns in units of F, and ||F||^2 of the Fisher of all samples."""
        gram = np.asarray(self.fisher.gram() / self.fisher.unit)  # the samples are read once, whatever asks for it
        return *pair_sums(gram, self.folds), float(np.sum(gram**2, dtype=float)) / len(gram) ** 2

    def norm(self, kept: Bool[np.ndarray, " folds"]) -> float:
        """Return ||F||^2 of the population in units of F, from pairs of samples of these folds."""
        sums, counts = (x[kept][:, kept].sum() for x in self._products[:2])
        return sums / counts

    @property
    def norm_of_samples(self) -> float:
        """||F||^2 of the Fisher of all samples, in units of F."""
        return self._products[2]

    @cached_property
    def largest_share(self) -> float:
        """The share of the largest sample in the sum of ||g||^4, which ||F||^2 rests on where the tails are heavy."""
        fourth = (self.mean_squares / self.mean_squares.max()) ** 2
        return float(1 / fourth.sum())

    @cached_property
    def norm_squared(self) -> tuple[float, float]:
        """||F||^2 of the population and its standard error."""
        pseudo = pseudo_values(self.norm, self.folds.count) * float(self.fisher.unit) ** 2
        return float(np.mean(pseudo)), standard_error(pseudo)

    def without(self, *folds: int, covariances: bool) -> Samples:
        """Return the samples of all other folds, on request with their covariances: means over those of folds."""
        fisher = self.fisher.take(self.folds.outside(*folds))
        if not covariances:
            return fisher
        parts = [part for k, part in enumerate(self._covariances) if k not in folds]
        return replace(fisher, covariances=jax.tree.map(lambda *sums: sum(sums) / len(fisher), *parts))

    @cached_property
    def _covariances(self) -> list[tuple[Float[Array, "m m"], Float[Array, "n n"]]]:
        """The sums of GG^T and of G^T G over the samples of each fold."""
        return [_covariance_sums(self.fisher.take(self.folds.inside(k))) for k in range(self.folds.count)]


@jax.jit
def _covariance_sums(fisher: Samples) -> tuple[Float[Array, "m m"], Float[Array, "n n"]]:
    with jax.default_matmul_precision("highest"):
        return len(fisher) * fisher.left(), len(fisher) * fisher.right()

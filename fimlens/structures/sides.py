"""A Fisher seen from one side of its matrix, and what is averaged for the bases of both sides."""

from typing import Any, NamedTuple

from jaxtyping import Array, Float

from fimlens.fisher.fisher import Fisher
from fimlens.fisher.sample_form import SampleFisher
from fimlens.linalg.decompositions import singular_basis, square_root

Basis = Float[Array, "m r"]
Average = Float[Array, "..."] | None  # of (k, k) matrices


class Side(NamedTuple):
    """A Fisher seen from one side of its matrix: as it is, or transposed."""

    fisher: Fisher
    right: bool = False

    def covariance(self) -> Float[Array, "m m"]:
        """E[GG^T]."""
        return self.fisher.right() if self.right else self.fisher.left()

    def root(self) -> Float[Array, "m k"]:
        """H with H H^T = E[GG^T]: the samples side by side."""
        if not isinstance(self.fisher, SampleFisher):
            return square_root(self.covariance())
        G = self.fisher.samples.mT if self.right else self.fisher.samples
        return G.swapaxes(0, 1).reshape(G.shape[1], -1) / len(G) ** 0.5

    def singular(self, rank: int) -> Basis:
        """The leading left singular vectors of H."""
        if rank == self.fisher.shape[self.right]:
            return self.fisher.right_singular() if self.right else self.fisher.left_singular()
        return singular_basis(self.root(), rank)

    def projected(self, U: Basis) -> "Side":
        """The same of U^T G."""
        return Side(self.fisher.map(lambda G: G @ U if self.right else U.T @ G), self.right)


class SideAverages(NamedTuple):
    """What is averaged for the left and for the right basis, and for the bases of the structure within."""

    left: Average
    right: Average
    inner: Any

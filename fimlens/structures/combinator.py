"""What structures have in common that take another structure: its divergence, and whether its claim is about that one alone."""

from fimlens.divergence import Divergence
from fimlens.structure import Structure


class Combinator(Structure):
    """Base of `Rotated`, `LowRank` and `Blocks`."""

    inner: Structure

    @property
    def divergence(self) -> Divergence:
        return self.inner.divergence

    @property
    def holds_in_every_divergence(self) -> bool:
        return self.inner.holds_in_every_divergence

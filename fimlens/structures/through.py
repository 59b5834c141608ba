"""Through: the eigenvalues of one spectrum, in bases that are found through those of another."""

from dataclasses import dataclass

from jaxtyping import Array, Float

from fimlens.divergence import Divergence
from fimlens.fisher.fisher import Fisher
from fimlens.structure import Claim, Params, Statistics, Symmetry, Tree
from fimlens.structures.move import Move
from fimlens.structures.spectra import Spectrum


@dataclass(frozen=True)
class Through(Spectrum):
    """The eigenvalues of `values`; inside `Rotated`, the side covariances are seen through the factors of `weights`.

    Use it for free eigenvalues in the bases of a Kronecker product: KL-SOAP is
    Rotated(Through(Diagonal(), Marginals(LogDet())), "LR"). Averages hold the statistics of both.

    Args:
        values: the spectrum of F~.
        weights: the spectrum whose `side_weights` the covariances take.

    Raises:
        TypeError: one of them is no spectrum.

    Examples:
        >>> import jax, fimlens as fl
        >>> fisher = fl.Fisher.from_gradients(jax.random.normal(jax.random.key(0), (20, 3, 4)))
        >>> free = fl.Rotated(fl.Through(fl.Diagonal(), fl.Marginals(fl.LogDet())), "LR")
        >>> product = fl.Kronecker(fl.LogDet())
        >>> gaps = [fl.gap(x, fl.fit(x, fisher), fisher, divergence=fl.VonNeumann()).total for x in (free, product)]
        >>> bool(gaps[0] < gaps[1])  # the bases are the same
        True
    """

    values: Spectrum
    weights: Spectrum

    def __post_init__(self) -> None:
        for part in (self.values, self.weights):
            if not isinstance(part, Spectrum):
                raise TypeError(f"Through: expected two spectra, such as fl.Diagonal(); got {part!r}. Classes need ().")

    @property
    def claim(self) -> Claim:
        return self.values.claim

    @property
    def rotated_claim(self) -> Claim:
        return self.values.claim.in_given_basis

    @property
    def divergence(self) -> Divergence:
        return self.values.divergence

    @property
    def holds_in_every_divergence(self) -> bool:
        return self.values.holds_in_every_divergence

    @property
    def symmetry(self) -> tuple[Symmetry, Symmetry]:
        both = zip(self.values.symmetry, self.weights.symmetry, strict=True)
        left, right = (a if a == b else a and b and "permutation" for a, b in both)
        return left, right

    def stats(self, fisher: Fisher, member: Params) -> Statistics:
        parts = zip((self.values, self.weights), self._coords(member), strict=True)
        seen = (part.stats(fisher, Params(member.frame, coords)).spectrum for part, coords in parts)
        return Statistics(None, tuple(seen))

    def _coords(self, member: Params) -> tuple[Tree, Tree]:
        return (None, None) if member.coords is None else member.coords

    def side_weights(self, fisher: Fisher, member: Params) -> tuple[Float[Array, "m 1"], Float[Array, "1 n"]] | None:
        return self.weights.side_weights(fisher, Params(member.frame, self._coords(member)[1]))

    def moments(self, V: Float[Array, "m n"]) -> tuple[Tree, Tree]:
        return self.values.moments(V), self.weights.moments(V)

    def project(self, moments: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
        return self.values.project(moments[0]), self.weights.project(moments[1])

    def expand(self, coords: tuple[Tree, Tree], shape: tuple[int, int]) -> Float[Array, "#m #n"]:
        return self.values.expand(coords[0], shape)

    def transport(self, stats: Statistics, move: Move) -> Statistics:
        moments, seen = (Statistics(None, part) for part in stats.spectrum)
        unweighted = move._replace(rows=None, columns=None)  # covariances seen through the factors state other means
        return Statistics(
            None, (self.values.transport(moments, unweighted).spectrum, self.weights.transport(seen, move).spectrum)
        )

"""Products of the row and column means of second moments: rank-one spectra that average m + n numbers."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from fimlens.divergence import Divergence, VonNeumann, require_degree
from fimlens.fisher.fisher import Fisher
from fimlens.linalg.spectral_functions import root
from fimlens.structure import Claim, Params, Statistics
from fimlens.structures.move import Move
from fimlens.structures.rank_one import RankOne, RowColumn, over
from fimlens.structures.spectra import Columns, Matrix, Rows, Spectrum


@dataclass(frozen=True)
class _RowAndColumnMeans(RankOne):
    """Spectra that keep the row means r and the column means c of V: m + n numbers."""

    def moments(self, V: Matrix) -> tuple[Float[Array, "m 1"], Float[Array, "1 n"]]:
        return Rows().moments(V), Columns().moments(V)

    def project(self, moments: tuple[Array, Array]) -> tuple[Array, Array]:
        return moments

    def transport(self, stats: Statistics, move: Move) -> Statistics:
        parts = zip((Rows(), Columns()), stats.spectrum, strict=True)
        return Statistics(None, tuple(mean.transport(Statistics(None, part), move).spectrum for mean, part in parts))


@dataclass(frozen=True)
class Marginals(_RowAndColumnMeans):
    """The product of the marginals, r c^T / mean: Adafactor. Use it for a rank-one spectrum that averages m + n numbers.

    It is the rank-one q s^T nearest to V under von Neumann; rotated on both sides, the nearest Kronecker product, Shampoo
    squared. In another divergence r and c are weighted means. Each is the mean of V seen through the other factor, the last one
    fitted, with the weights of `RowColumn`'s fixed point. Its fit is then that of `RowColumn`, which averages all m n numbers;
    rotated on both sides it is that of `Kronecker`, KL-Shampoo's under LogDet. The factor that the other is seen through has
    the mean 1, so that r and c hold the scale of F.

    Args:
        divergence: the sense in which the product is nearest, of degree 0 to 2. Default: VonNeumann, which needs no weights.
        clamp: bound on 1/sqrt(x), for the entries x of a factor that the other is seen through; at most the factor's length,
            and at least 10. Default: None, no bound.

    Raises:
        ValueError: the divergence has no degree between 0 and 2.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> fisher = fl.Fisher.from_gradients(jnp.array([[[10.0, 20.0], [30.0, 40.0]]]))
        >>> params = fl.fit(fl.Marginals(), fisher)
        >>> [means.tolist() for means in params.coords]  # of rows and of columns of [[100, 400], [900, 1600]]
        [[[250.0], [1250.0]], [[500.0, 1000.0]]]
        >>> print(fl.Marginals().eigenvalues(params).round())
        [[ 167.  333.]
         [ 833. 1667.]]
    """

    divergence: Divergence = VonNeumann()
    clamp: Float[ArrayLike, ""] | None = None

    def __post_init__(self) -> None:
        require_degree("Marginals", self.divergence)

    @property
    def claim(self) -> Claim:
        return Claim.EXACT if self.divergence.degree == 1 else Claim.LIMIT

    @property
    def rotated_claim(self) -> Claim:
        return self.claim  # the traces over the other side, weighted by it, are the nearest product's factors

    def stats(self, fisher: Fisher, member: Params) -> Statistics:
        weights = self.side_weights(fisher, member)
        if weights is None:
            return super().stats(fisher, member)
        V, (rows, columns) = fisher.second_moment(), weights
        return Statistics(None, (Rows().moments(V * columns), Columns().moments(V * rows)))

    def side_weights(self, fisher: Fisher, member: Params) -> tuple[Float[Array, "m 1"], Float[Array, "1 n"]] | None:
        if self.divergence.degree == 1:
            return None
        rows, columns = member.coords or RowColumn(divergence=self.divergence).project(fisher.second_moment())
        return self._weights(rows), self._weights(columns)

    def transport(self, stats: Statistics, move: Move) -> Statistics:
        """Known means count within a factor of a hundred of the turned ones: weights make rounding of a covariance large."""
        return super().transport(stats, move) if self.divergence.degree == 1 else Spectrum.transport(self, stats, move)

    def _weights(self, x: Array) -> Array:
        """x^(b-1) / mean x^b, for the factor x scaled to the mean 1; ones before anything is seen."""
        mean = x.mean()
        x = jnp.where(mean == 0, 1, over(x, mean))
        if self.clamp is not None:  # a direction hardly seen before would else be all that the other factor sees
            x = jnp.maximum(x, jnp.maximum(10, jnp.minimum(x.size, self.clamp)) ** -2.0)
        weight = self.divergence.weight(x)
        return weight / jnp.mean(weight * x)

    def factors(self, coords: tuple[Array, Array]) -> tuple[Array, Array]:
        r, c = coords
        mean = root(r.mean()) * root(c.mean())  # each holds the scale of F
        return over(r, mean), c

    def dense(self, params: Params) -> Float[Array, "mn mn"]:
        r, c = params.coords
        m, n = params.frame.shape
        total = jnp.sqrt(m * r.sum() * n * c.sum())
        return jnp.kron(jnp.diag(m * c[0]), jnp.diag(n * r[:, 0])) / jnp.where(total > 0, total, 1)


@dataclass(frozen=True)
class GeometricMarginals(_RowAndColumnMeans):
    """The geometric mean of the two marginals, sqrt(r c^T). Rotated on both sides: Shampoo. [G] Theorem 3.1.

    The theorem bounds ||F~ - F|| by a function that grows with the gaps of Diag(r) (x) I and I (x) Diag(c), each of
    which the marginals minimise. It is *not* Frobenius-optimal: even where F is a Kronecker product, this is
    not F.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> fisher = fl.Fisher.from_gradients(jnp.array([[[1.0, 1.0], [7.0, 7.0]]]))
        >>> params = fl.fit(fl.GeometricMarginals(), fisher)
        >>> print(fl.GeometricMarginals().eigenvalues(params).round())  # not the product that E[G^2] is: [[1, 1], [49, 49]]
        [[ 5.  5.]
         [35. 35.]]
    """

    claim: ClassVar[Claim] = Claim.BOUND

    def factors(self, coords: tuple[Array, Array]) -> tuple[Array, Array]:
        r, c = coords
        return root(r), root(c)

    def objective(self, params: Params, fisher: Fisher) -> Float[Array, ""]:
        rows, columns = params.coords
        return Rows().objective(Params(params.frame, rows), fisher) + Columns().objective(Params(params.frame, columns), fisher)

    def dense(self, params: Params) -> Float[Array, "mn mn"]:
        r, c = params.coords
        return jnp.kron(jnp.diag(c[0] ** 0.5), jnp.diag(r[:, 0] ** 0.5))

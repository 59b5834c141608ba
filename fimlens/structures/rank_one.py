"""Eigenvalues that are a product of one factor per row and one per column: the nearest to all second moments."""

import abc
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from fimlens.divergence import Divergence, Frobenius, require_degree
from fimlens.edges import zero_block
from fimlens.fisher.fisher import Fisher
from fimlens.linalg.fixed_point import fixed_point
from fimlens.linalg.perron import perron
from fimlens.linalg.spectral_functions import inverse_root
from fimlens.structure import Claim, Params, Symmetry, Tree
from fimlens.structures.spectra import Matrix, Spectrum


@dataclass(frozen=True)
class RankOne(Spectrum):
    """Base of the eigenvalues that are a product of one factor a row and one a column."""

    symmetry: ClassVar[tuple[Symmetry, Symmetry]] = ("permutation", "permutation")

    @abc.abstractmethod
    def factors(self, coords: Tree) -> tuple[Float[Array, "m 1"], Float[Array, "1 n"]]:
        """The two factors."""

    def expand(self, coords: Tree, shape: tuple[int, int]) -> Matrix:
        del shape
        rows, columns = self.factors(coords)
        return rows * columns

    def no_minimum(self, params: Params, fisher: Fisher, divergence: Divergence) -> str | None:
        return zero_block(fisher.second_moment(), fisher) if divergence.degree == 0 else None

    def precondition(self, params: Params, X: Matrix, eps: Float[ArrayLike, ""]) -> Matrix:
        """Without eps the root is a product too: m + n roots and divisions, and not m n."""
        if not isinstance(eps, float) or eps != 0:
            return super().precondition(params, X, eps)
        rows, columns = self.factors(params.coords)
        return X * inverse_root(0.0)(rows) * inverse_root(0.0)(columns)


@dataclass(frozen=True)
class RowColumn(RankOne):
    """Diag(s) (x) Diag(q): the best rank-one q s^T of V = E[G^2]. RACS, Adafactor and SinkGD are three divergences of it.

    In every divergence of a degree b the best factors are q = V s^(b-1) / sum s^b and s = V^T q^(b-1) / sum q^b. Frobenius: the
    leading singular pair of V (Perron), RACS, [G] Proposition 3. VonNeumann: the product of the marginals, Adafactor. LogDet:
    all rows and columns of V / q s^T have the mean 1, and a sweep is a round of SinkGD.

    Without `sweeps` the fit is exact, and where V falls into blocks it is zero outside the leading one. Use sweeps and a cap
    where V is one gradient's. Each row step is then the nearest factor with which no row of V / q s^T has a mean over `cap`. A
    last step does the same for the columns. So no entry of V exceeds cap min(m, n) times its eigenvalue. The cap changes
    nothing where V is near rank one, and counts in sparse and heavy-tailed gradients.

    Args:
        sweeps: alternations between the factors, from ones along the shorter side; [G]'s Algorithm 1 takes five. By default
            the fit converges.
        divergence: the sense in which the product is nearest, of degree 0 to 2. Default: Frobenius, as in [G].
        cap: largest mean of V / q s^T along a row or a column; None for no limit, as in [G].

    Raises:
        ValueError: a cap is given without sweeps, or the divergence has no degree between 0 and 2.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> fisher = fl.Fisher.from_gradients(jnp.array([[[10.0, 20.0], [30.0, 40.0]]]))
        >>> q, s = fl.fit(fl.RowColumn(), fisher).coords
        >>> print((q * s).round())  # of rank one, and nearest to [[100, 400], [900, 1600]]
        [[ 191.  350.]
         [ 880. 1611.]]
    """

    sweeps: Int[ArrayLike, ""] | None = None
    cap: Float[ArrayLike, ""] | None = None
    divergence: Divergence = Frobenius()
    claim: ClassVar[Claim] = Claim.LIMIT

    @property
    def rotated_claim(self) -> Claim:
        # Under von Neumann the traces over the other side are the nearest product's factors, in every basis.
        return self.claim if self.divergence.degree == 1 else super().rotated_claim

    def __post_init__(self) -> None:
        if self.sweeps is None and self.cap is not None:
            raise ValueError("RowColumn: a cap limits sweeps, and the fit without them is exact. Give both, as in sweeps=5.")
        require_degree("RowColumn", self.divergence)

    def moments(self, V: Matrix) -> Matrix:
        return V

    def project(self, moments: Matrix) -> tuple[Float[Array, "m 1"], Float[Array, "1 n"]]:
        if self.sweeps is not None and len(moments) > moments.shape[1]:
            s, q = self.project(moments.T)
            return q.T, s.T
        largest = moments.max()
        V = over(moments, largest)  # so that no square leaves float32

        def sweep(pair: tuple[Array, Array]) -> tuple[Array, Array]:
            s = nearest_factor(self.divergence, V, pair[0])
            return capped_factor(self.divergence, V.T, s, self.cap), s

        q, s = jnp.ones(V.shape[0], V.dtype), jnp.ones(V.shape[1], V.dtype)
        if self.sweeps is not None:
            q, s = jax.lax.fori_loop(0, self.sweeps, lambda _, pair: sweep(pair), (q, s))
        elif self.divergence.degree == 2:  # linear half steps: found faster, and to rounding
            s = jnp.abs(perron(lambda s: V @ s, lambda q: q @ V, s))
            q = nearest_factor(self.divergence, V.T, s)
        else:
            q, s = fixed_point(sweep, (q, s))
        if self.cap is not None:
            s = jnp.maximum(s, least_factor(V, q, self.cap))  # once is enough: with capped rows no block vanishes in the sweeps
        s = s * largest
        return q[:, None], s[None]

    def factors(self, coords: tuple[Array, Array]) -> tuple[Array, Array]:
        return coords

    def no_minimum(self, params: Params, fisher: Fisher, divergence: Divergence) -> str | None:
        # A number of sweeps gives a member in any case.
        return super().no_minimum(params, fisher, divergence) if self.sweeps is None else None

    def dense(self, params: Params) -> Float[Array, "mn mn"]:
        q, s = params.coords
        return jnp.kron(jnp.diag(s[0]), jnp.diag(q[:, 0]))


def nearest_factor(divergence: Divergence, V: Matrix, q: Float[Array, " m"]) -> Float[Array, " n"]:
    """The s of the q s^T nearest to V, for this q: half a sweep."""
    weight = divergence.weight(q)
    return over(weight @ V, weight @ q)


def least_factor(V: Matrix, q: Float[Array, " m"], cap: Float[ArrayLike, ""]) -> Float[Array, " n"]:
    """The s with which each column of V / q s^T has the mean `cap`, for this q: 1 / cap of the nearest in LogDet."""
    return over(jnp.ones_like(q), q) @ V / (len(q) * cap)


def capped_factor(
    divergence: Divergence, V: Matrix, q: Float[Array, " m"], cap: Float[ArrayLike, ""] | None
) -> Float[Array, " n"]:
    """The nearest s, for this q, of those with which no column of V / q s^T has a mean over `cap`.

    The error has one minimum in each entry of s, so where that is too small, the least entry allowed is nearest.
    """
    nearest = nearest_factor(divergence, V, q)
    return nearest if cap is None else jnp.maximum(nearest, least_factor(V, q, cap))


def over(x: Array, size: Array) -> Array:
    """x / size, and 0 where size is."""
    return x / jnp.where(size == 0, 1, size)

"""Nearest products A (x) B, with B full, in a divergence of degree b: what `Kronecker` and `DiagonalKronecker` share.

The nearest product is a fixed point of two half steps, each factor seen through the other:

    A = E[G^T B^(b-1) G] / tr B^b            B = E[G A^(b-1) G^T] / tr A^b

Under LogDet (b = 0) this is KL-Shampoo's. Under von Neumann (b = 1) one step is enough: the product of the marginals, Shampoo
squared. In the Frobenius norm (b = 2) the half steps are linear, and (A, B) is the leading singular pair of the rearranged F
(Van Loan and Pitsianis, 1993). All keep the PSD cone. One update of the basis is one half step of each factor, at first from
the identity.
"""

import abc
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fimlens._validate import require_size
from fimlens.divergence import FROBENIUS, Divergence, require_degree
from fimlens.edges import rank, zero_block, zero_sides
from fimlens.fisher.fisher import Fisher
from fimlens.linalg.bases import cayley
from fimlens.linalg.decompositions import spectral
from fimlens.linalg.fixed_point import fixed_point
from fimlens.linalg.perron import perron
from fimlens.structure import BasisStep, Claim, Frame, Params, Statistics, Structure
from fimlens.structures.move import Move, turned_covariance, turned_squares
from fimlens.structures.rank_one import over

Matrix = Float[Array, "m n"]


class Bases(NamedTuple):
    """B = U_L diag(b) U_L^T and A = U_R diag(a) U_R^T (U_R is None where A is diagonal), each on a scale of its own."""

    left: Float[Array, "m m"]
    b: Float[Array, " m"]
    right: Float[Array, "n n"] | None
    a: Float[Array, " n"]


class Weighted(NamedTuple):
    """E[G A G^T] and E[G^T B G] (its diagonal where A is diagonal): each factor, seen through the other."""

    left: Float[Array, "m m"]
    right: Float[Array, "n n"] | Float[Array, " n"]


@dataclass(frozen=True)
class Product(Structure):
    """What both products share; a subclass says what its right factor is."""

    divergence: Divergence = FROBENIUS
    sweeps: int | None = None
    claim: ClassVar[Claim] = Claim.LIMIT

    def __post_init__(self) -> None:
        require_degree(type(self).__name__, self.divergence)
        if self.sweeps is not None:
            require_size(type(self).__name__, "sweeps", self.sweeps)

    @abc.abstractmethod
    def _right(self, fisher: Fisher, B: Float[Array, "m m"]) -> Array:
        """E[G^T B G], or its diagonal."""

    @abc.abstractmethod
    def _least(self, m: int, n: int) -> int:
        """The number of generic gradients from which on LogDet has one minimum."""

    @abc.abstractmethod
    def _split(self, A: Array) -> tuple[Float[Array, "n n"] | None, Float[Array, " n"]]:
        """A basis of A (None where A is diagonal) and its eigenvalues."""

    def to_eigenbasis(self, frame: Frame, G: Matrix) -> Matrix:
        left, _, right, _ = frame.bases
        return left.T @ G if right is None else left.T @ G @ right

    def from_eigenbasis(self, frame: Frame, X: Matrix) -> Matrix:
        left, _, right, _ = frame.bases
        return left @ X if right is None else left @ X @ right.T

    def eigenvalues(self, params: Params) -> Matrix:
        b, a = params.coords
        return b * a

    def stats(self, fisher: Fisher, member: Params) -> Statistics:
        left, b, right, a = member.frame.bases
        return Statistics(None, Weighted(fisher.left(self._weight(right, a)), self._right(fisher, self._weight(left, b))))

    def _weight(self, U: Float[Array, "k k"] | None, values: Float[Array, " k"]) -> Float[Array, "k k"] | Float[Array, " k"]:
        """X^(b-1) / tr X^b of the factor X with these eigenvectors and eigenvalues; its diagonal where U is None."""
        weights = self.divergence.weight(values)
        weights = weights / (weights @ values)
        return weights if U is None else (U * weights) @ U.T

    def update_basis(self, stats: Statistics, frame: Frame, fisher: Fisher, step: BasisStep) -> tuple[Frame, Statistics]:
        seen = jax.tree.map(step.mix, stats.spectrum, self.stats(fisher, Params(frame, None)).spectrum)
        return self._frame(seen, frame.shape), stats

    def transport(self, stats: Statistics, move: Move) -> Statistics:
        left, right = stats.spectrum
        follow = turned_covariance if right.ndim == 2 else lambda T, a: turned_squares(T, a[:, None])[:, 0]
        return Statistics(None, Weighted(turned_covariance(move.left, left), follow(move.right, right)))

    def _frame(self, weighted: Weighted, shape: tuple[int, int]) -> Frame:
        left, b = spectral(weighted.left)
        right, a = self._split(weighted.right)
        return Frame(Bases(left, unit(self.divergence, b), right, unit(self.divergence, a)), shape)

    def converged_basis(self, fisher: Fisher, key: Array) -> Frame:
        m, n = fisher.shape
        start = jnp.eye(n, dtype=fisher.dtype) if self.frame(m, n).bases.right is not None else jnp.ones(n, fisher.dtype)
        limit = {} if self.sweeps is None else {"steps": self.sweeps}
        if self.divergence.degree == 2:  # linear half steps: found faster, and to rounding
            A = perron(fisher.left, lambda B: self._right(fisher, B), start, **limit)
            return self._frame(Weighted(fisher.left(A), A), (m, n))

        def left_factor(A: Array) -> Array:
            right, a = self._split(A)
            return fisher.left(self._weight(right, unit(self.divergence, a)))

        def step(A: Array) -> Array:
            left, b = spectral(left_factor(A))
            A = self._right(fisher, self._weight(left, unit(self.divergence, b)))
            return over(A, jnp.abs(A).max())  # a norm has squares, which float32 may not hold

        A = fixed_point(step, start, **limit)
        return self._frame(Weighted(left_factor(A), A), (m, n))

    def fit(self, stats: Statistics, frame: Frame) -> Params:
        left, b, right, _ = frame.bases
        rows = jnp.einsum("ij,ik,kj->j", left, stats.spectrum.left, left)
        columns = stats.spectrum.right
        columns = columns if right is None else jnp.einsum("ij,ik,kj->j", right, columns, right)
        weights = self.divergence.weight(b)
        total = weights @ rows / (weights @ b)  # both parts hold the scale of F
        columns = jnp.maximum(columns, 0) / jnp.where(total > 0, total, 1)
        return Params(frame, (jnp.maximum(rows, 0)[:, None], columns[None]))

    def no_minimum(self, params: Params, fisher: Fisher, divergence: Divergence) -> str | None:
        if divergence.degree != 0:
            return None
        left, right = _singular(fisher)
        right = None if params.frame.bases.right is None else right
        V = fisher.second_moment(partial(self.to_eigenbasis, params.frame))
        least, N = self._least(*fisher.shape), rank(fisher)
        few = f"it has {N} independent gradients, and fewer than {least} leave the minimum unbounded or not unique"
        return zero_sides(fisher, left, right) or zero_block(V, fisher) or (few if least > N else None)

    def retract(self, frame: Frame, z: Frame) -> Frame:
        left, b, right, a = frame.bases
        turned = None if right is None else cayley(right, z.bases.right)
        return Frame(Bases(cayley(left, z.bases.left), b, turned, a), frame.shape)

    def dense(self, params: Params) -> Float[Array, "mn mn"]:
        left, _, right, _ = params.frame.bases
        b, a = params.coords
        A = jnp.diag(a[0]) if right is None else right @ jnp.diag(a[0]) @ right.T
        return jnp.kron(A, left @ jnp.diag(b[:, 0]) @ left.T)


@jax.jit  # eagerly, this takes longer than a small fit
def _singular(fisher: Fisher) -> tuple[Float[Array, "m m"], Float[Array, "n n"]]:
    return fisher.left_singular(), fisher.right_singular()


def unit(divergence: Divergence, x: Float[Array, " k"]) -> Float[Array, " k"]:
    """x on the cone with sum x^b = 1, for b from 1 to 2; the identity's direction where it vanishes.

    Then the weights x^(b-1) have no denominator, and averages that were measured with them under von Neumann stay F's.
    """
    largest = x.max()
    x = jnp.where(largest > 0, jnp.maximum(x, 0) / jnp.where(largest > 0, largest, 1), 1)  # so that no square leaves float32
    if divergence.degree < 1:  # the weights would amplify what eigh leaves of a zero
        x = jnp.where(x > len(x) * jnp.finfo(x.dtype).eps, x, 0)
    return x / jnp.linalg.norm(x, max(1, divergence.degree))

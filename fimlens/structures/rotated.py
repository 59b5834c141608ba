"""Rotated: any structure, seen in the eigenbases of the gradient's covariances."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from fimlens._validate import require_size
from fimlens.divergence import Divergence
from fimlens.fisher.fisher import Fisher
from fimlens.linalg.bases import cayley
from fimlens.linalg.spectral_functions import root
from fimlens.structure import (
    BasisStep,
    Claim,
    Frame,
    Params,
    Statistics,
    Structure,
    Symmetry,
    Tree,
    require_structure,
    update_basis_until_converged,
)
from fimlens.structures.combinator import Combinator, moved_bases, observed
from fimlens.structures.move import Move, Turn
from fimlens.structures.trackers import Eigen, Side, SideAverages, Tracker, require_tracker

Matrix = Float[Array, "m n"]
SIDES = ("L", "R", "LR", "short")


class Bases(NamedTuple):
    """U_L (m, m) and U_R (n, n), None on a side that is not rotated, and the inner structure's own frame."""

    left: Float[Array, "m m"] | None
    right: Float[Array, "n n"] | None
    inner: Frame


@dataclass(frozen=True)
class Rotated(Combinator):
    """(U_R (x) U_L) inner (U_R (x) U_L)^T, with U_L, U_R the eigenbases of E[GG^T] and E[G^T G].

    Use it to give a spectrum the gradient's own directions: one-sided SOAP is Rotated(Diagonal(), "L"), SOAP
    Rotated(Diagonal(), "LR"), Shampoo Rotated(GeometricMarginals(), "LR"), Muon Rotated(Rows(), "L"). Source: [G]
    Theorems 3.2 and 3.3.

    Args:
        inner: the structure in the rotated coordinates.
        sides: "L", "R", "LR", or "short" for the shorter side of each matrix.
        tracker: how an optimizer finds and follows the bases. The fit of a given Fisher does not depend on it.
        max_dim: a side longer than this is not rotated. Default: None, no limit.

    Raises:
        TypeError: `inner` is not a Structure instance.
        ValueError: `sides` is none of these, or max_dim is not a positive whole number.

    Examples:
        >>> import jax, fimlens as fl
        >>> fisher = fl.Fisher.from_gradients(jax.random.normal(jax.random.key(0), (8, 3, 4)))
        >>> soap = fl.Rotated(fl.Diagonal(), "LR")
        >>> params = fl.fit(soap, fisher)
        >>> params.frame.bases.left.shape, params.frame.bases.right.shape, params.coords.shape
        ((3, 3), (4, 4), (3, 4))
        >>> soap.claim.name, fl.Rotated(fl.Rows(), "L").claim.name
        ('ONE_STEP', 'EXACT')
    """

    inner: Structure
    sides: str = "LR"
    tracker: Tracker = Eigen()
    max_dim: int | None = None

    def __post_init__(self) -> None:
        require_structure("Rotated", self.inner)
        require_tracker("Rotated", self.tracker, orthonormal=True)
        if self.sides not in SIDES:
            raise ValueError(f"Rotated: sides is one of {', '.join(map(repr, SIDES))}; got {self.sides!r}")
        if self.max_dim is not None:
            require_size("Rotated", "max_dim", self.max_dim)

    @property
    def claim(self) -> Claim:
        return self.inner.rotated_claim

    @property
    def rotated_claim(self) -> Claim:
        # A second rotation sees its sides without the weights of a structure within the first.
        claim = self.inner.rotated_claim
        return claim.in_given_basis if claim is Claim.LIMIT else claim

    @property
    def symmetry(self) -> tuple[Symmetry, Symmetry]:
        left, right = self.inner.symmetry
        if self.max_dim is not None:  # what holds at every shape, rotated or not
            return left, right
        return "orthogonal" if "L" in self.sides else left, "orthogonal" if "R" in self.sides else right

    def _inner(self, params: Params) -> Params:
        return Params(params.frame.bases.inner, params.coords)

    def _rotates(self, wide: bool, sizes: Sequence[int]) -> list[bool]:
        """Whether the left and the right side have a basis."""
        chosen = (wide, not wide) if self.sides == "short" else ("L" in self.sides, "R" in self.sides)
        return [side and (self.max_dim is None or size <= self.max_dim) for side, size in zip(chosen, sizes, strict=True)]

    def frame(self, m: int, n: int) -> Frame:
        left, right = self._rotates(m <= n, (m, n))
        return Frame(Bases(jnp.eye(m) if left else None, jnp.eye(n) if right else None, self.inner.frame(m, n)), (m, n))

    def to_eigenbasis(self, frame: Frame, G: Matrix) -> Tree:
        return self.inner.to_eigenbasis(frame.bases.inner, rotate(frame, G))

    def from_eigenbasis(self, frame: Frame, X: Tree) -> Matrix:
        left, right, inner = frame.bases
        G = self.inner.from_eigenbasis(inner, X)
        G = G if left is None else left @ G
        return G if right is None else G @ right.T

    def eigenvalues(self, params: Params) -> Tree:
        return self.inner.eigenvalues(self._inner(params))

    def precondition(self, params: Params, X: Tree, eps: Float[ArrayLike, ""]) -> Tree:
        return self.inner.precondition(self._inner(params), X, eps)

    def stats(self, fisher: Fisher, member: Params) -> Statistics:
        rotated = fisher.map(partial(rotate, member.frame))
        within = self.inner.stats(rotated, self._inner(member))
        averages = observed(self.tracker, member.frame.bases, self._sides(fisher, rotated, member))
        return Statistics(SideAverages(*averages, within.basis), within.spectrum)

    def _sides(self, fisher: Fisher, rotated: Fisher, member: Params) -> tuple[Side, Side]:
        """The Fisher from both sides, each seen through the inner structure's weights of the other."""
        weights = self.inner.side_weights(rotated, self._inner(member))
        if weights is None:
            return Side(fisher), Side(fisher, right=True)
        left, right, _ = member.frame.bases
        rows, columns = map(root, weights)
        return (
            Side(fisher.map(lambda G: (G if right is None else G @ right) * columns)),
            Side(fisher.map(lambda G: (G if left is None else left.T @ G) * rows), right=True),
        )

    def update_basis(self, stats: Statistics, frame: Frame, fisher: Fisher, step: BasisStep) -> tuple[Frame, Statistics]:
        moved, turns, carried = self._moved(stats, frame, fisher, step)
        averages, (left, right, within) = stats.basis, moved.bases
        m, n = frame.shape
        known = self.tracker.averages_covariance
        rows = _moments(averages.left, left)[:, None] / n if known and left is not None else None
        columns = _moments(averages.right, right)[None] / m if known and right is not None else None
        inner = self.inner.transport(Statistics(averages.inner, stats.spectrum), Move(*turns, rows, columns))
        within, inner = self.inner.update_basis(inner, within, fisher.map(partial(rotate, moved)), step)
        frame = Frame(moved.bases._replace(inner=within), frame.shape)
        return frame, Statistics(carried._replace(inner=inner.basis), inner.spectrum)

    def _moved(
        self, stats: Statistics, frame: Frame, fisher: Fisher, step: BasisStep
    ) -> tuple[Frame, list[Turn], SideAverages]:
        """The bases of both sides as the tracker moves them, how they turned, and the tracker's averages."""
        sides = self._sides(fisher, fisher.map(partial(rotate, frame)), Params(frame, step.coords))
        moved, turns, averages = moved_bases(self.tracker, stats.basis, frame.bases, sides, step)
        return Frame(Bases(*moved, frame.bases.inner), frame.shape), turns, averages

    def transport(self, stats: Statistics, move: Move) -> Statistics:
        """Covariances follow, and coordinates in their eigenbases stay what they are; a side without a basis follows the
        inner's own rule. Means that are known are not those of the inner coordinates, and are not handed on."""
        left, right = self._rotates(move.wide, [0 if turn is None else turn.shape[-1] for turn in move[:2]])
        within = Move(None if left else move.left, None if right else move.right)
        inner = self.inner.transport(Statistics(stats.basis.inner, stats.spectrum), within)
        averages = move.covariances(stats.basis) if self.tracker.averages_covariance else stats.basis[:2]
        return Statistics(SideAverages(*averages, inner.basis), inner.spectrum)

    def converged_basis(self, fisher: Fisher, key: Array) -> Frame:
        frame = jax.tree.map(lambda U: U.astype(fisher.dtype), self.frame(*fisher.shape))
        stats = self.stats(fisher, Params(frame, None))
        moved, *_ = self._moved(stats, frame, fisher, BasisStep(key, first=True))
        rotated = fisher.map(partial(rotate, moved))
        found = Frame(moved.bases._replace(inner=self.inner.converged_basis(rotated, key)), frame.shape)
        coupled = self.inner.side_weights(rotated, self._inner(Params(found, None))) is not None
        return update_basis_until_converged(self, found, fisher, key) if coupled else found

    def fit(self, stats: Statistics, frame: Frame) -> Params:
        return Params(frame, self.inner.fit(Statistics(stats.basis.inner, stats.spectrum), frame.bases.inner).coords)

    def retract(self, frame: Frame, z: Frame) -> Frame:
        turned = jax.tree.map(cayley, frame.bases[:2], z.bases[:2])
        return Frame(Bases(*turned, self.inner.retract(frame.bases.inner, z.bases.inner)), frame.shape)

    def no_minimum(self, params: Params, fisher: Fisher, divergence: Divergence) -> str | None:
        return self.inner.no_minimum(self._inner(params), fisher.map(partial(rotate, params.frame)), divergence)

    def objective(self, params: Params, fisher: Fisher) -> Float[Array, ""]:
        return self.inner.objective(self._inner(params), fisher.map(partial(rotate, params.frame)))

    def dense(self, params: Params) -> Float[Array, "mn mn"]:
        m, n = params.frame.shape
        left, right, _ = params.frame.bases
        B = jnp.kron(jnp.eye(n) if right is None else right, jnp.eye(m) if left is None else left)
        return B @ self.inner.dense(self._inner(params)) @ B.T


def rotate(frame: Frame, G: Matrix) -> Matrix:
    """U_L^T G U_R."""
    left, right, _ = frame.bases
    G = G if left is None else left.T @ G
    return G if right is None else G @ right


def _moments(C: Float[Array, "m m"], U: Float[Array, "m m"]) -> Float[Array, " m"]:
    """The second moments that C states along the columns of U."""
    return jnp.maximum(jnp.sum(U * (C @ U), axis=0), 0)

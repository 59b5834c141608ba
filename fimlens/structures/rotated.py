"""Rotated: any structure, seen in the eigenbases of the gradient's covariances."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from fimlens.fisher.fisher import Fisher
from fimlens.linalg.bases import cayley
from fimlens.structure import Claim, Frame, Params, Structure, Symmetry, Tree, require_structure
from fimlens.structures.spectra import Spectrum
from fimlens.structures.trackers import Eigen, Tracker

Matrix = Float[Array, "m n"]


SIDES = ("L", "R", "LR", "short")


class Bases(NamedTuple):
    """U_L (m, m) and U_R (n, n), None on a side that is not rotated, and the inner structure's own frame."""

    left: Float[Array, "m m"] | None
    right: Float[Array, "n n"] | None
    inner: Frame


class Covariances(NamedTuple):
    """E[GG^T] and E[G^T G], None where not rotated or not tracked by it, and the inner statistics in the basis."""

    left: Float[Array, "m m"] | None
    right: Float[Array, "n n"] | None
    inner: Tree


@dataclass(frozen=True)
class Rotated(Structure):
    """(U_R (x) U_L) inner (U_R (x) U_L)^T, with U_L, U_R the eigenbases of E[GG^T] and E[G^T G].

    `sides` is "L", "R", "LR", or "short": the smaller side of whatever shape comes. One-sided SOAP is
    Rotated(Diagonal(), "L"), SOAP Rotated(Diagonal(), "LR"), Shampoo Rotated(GeometricMarginals(), "LR"), Muon
    Rotated(Rows(), "L"). [G] Theorems 3.2 and 3.3. `tracker` is how an optimizer follows the bases; the fit of a given
    Fisher is the same whichever it is.

    Raises:
        TypeError: `inner` is not a Structure instance.
        ValueError: `sides` is none of these.

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

    def __post_init__(self) -> None:
        require_structure("Rotated", self.inner)
        if self.sides not in SIDES:
            raise ValueError(f"Rotated: sides is one of {', '.join(map(repr, SIDES))}; got {self.sides!r}")

    @property
    def claim(self) -> Claim:
        return self.inner.rotated_claim

    @property
    def rotated_claim(self) -> Claim:
        return self.inner.rotated_claim

    @property
    def symmetry(self) -> tuple[Symmetry, Symmetry]:
        left, right = self.inner.symmetry
        return "orthogonal" if "L" in self.sides else left, "orthogonal" if "R" in self.sides else right

    def _rotated(self, m: int, n: int) -> tuple[bool, bool]:
        if self.sides == "short":
            return m <= n, m > n
        return "L" in self.sides, "R" in self.sides

    def _inner(self, params: Params) -> Params:
        return Params(params.frame.bases.inner, params.coords)

    def frame(self, m: int, n: int) -> Frame:
        left, right = self._rotated(m, n)
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

    def stats(self, fisher: Fisher, frame: Frame) -> Covariances:
        left, right, inner = frame.bases
        averages = self.tracker.averages
        return Covariances(
            fisher.left() if averages and left is not None else None,
            fisher.right() if averages and right is not None else None,
            self.inner.stats(fisher.map(partial(rotate, frame)), inner),
        )

    def serves_turn(self, stats: Covariances) -> Covariances:
        left, right = (None if C is None else True for C in stats[:2])
        return Covariances(left, right, self.inner.serves_turn(stats.inner))

    def start(self, stats: Covariances, frame: Frame, fisher: Fisher, key: Array) -> Frame:
        return self._moved(self.tracker.start, self.inner.start, stats, frame, fisher, key)

    def update_basis(self, stats: Covariances, frame: Frame, fisher: Fisher, key: Array) -> Frame:
        return self._moved(self.tracker.update_basis, self.inner.update_basis, stats, frame, fisher, key)

    def _moved(
        self,
        own: Callable[..., Float[Array, "k k"]],
        inner: Callable[..., Frame],
        stats: Covariances,
        frame: Frame,
        fisher: Fisher,
        key: Array,
    ) -> Frame:
        """The bases as the tracker's method has them; then the inner structure's, by its own, in their coordinates."""
        left, right, within = frame.bases
        left = None if left is None else own(stats.left, left, fisher.left_singular)
        right = None if right is None else own(stats.right, right, fisher.right_singular)
        moved = Frame(Bases(left, right, within), frame.shape)
        return _with_inner(moved, inner(stats.inner, within, fisher.map(partial(rotate, moved)), key))

    def converged_basis(self, fisher: Fisher, key: Array) -> Frame:
        frame = jax.tree.map(lambda U: U.astype(fisher.dtype), self.frame(*fisher.shape))
        started = self.start(self.stats(fisher, frame), frame, fisher, key)
        return _with_inner(started, self.inner.converged_basis(fisher.map(partial(rotate, started)), key))

    def carry(self, stats: Covariances, old: Frame, new: Frame) -> Covariances:
        """Where the covariances determine the inner statistics in the new basis, those; else the inner's own."""
        if not isinstance(self.inner, Spectrum):
            return stats._replace(inner=self.inner.carry(stats.inner, old.bases.inner, new.bases.inner))
        (left, right, _), (m, n) = new.bases, new.shape
        rows = None if stats.left is None else _moments(stats.left, left)[:, None] / n
        columns = None if stats.right is None else _moments(stats.right, right)[None] / m
        return stats._replace(inner=self.inner.measured_again(stats.inner, rows, columns))

    def carried_by(self, left: Float[Array, "m m"], right: Float[Array, "n n"] | None, stats: Covariances) -> Covariances:
        """Covariances follow, and coordinates in their eigenbases stay what they are; without any, the inner's own rule."""
        if stats.left is None and stats.right is None:
            return stats._replace(inner=self.inner.carried_by(left, right, stats.inner))
        pairs = zip((left, right), stats[:2], strict=True)
        return Covariances(*(C if None in (T, C) else T @ C @ T.T for T, C in pairs), stats.inner)

    def fit(self, stats: Covariances, frame: Frame) -> Params:
        return Params(frame, self.inner.fit(stats.inner, frame.bases.inner).coords)

    def retract(self, frame: Frame, z: Frame) -> Frame:
        turned = jax.tree.map(cayley, frame.bases[:2], z.bases[:2])
        return Frame(Bases(*turned, self.inner.retract(frame.bases.inner, z.bases.inner)), frame.shape)

    def objective(self, params: Params, fisher: Fisher) -> Float[Array, ""]:
        return self.inner.objective(self._inner(params), fisher.map(partial(rotate, params.frame)))

    def dense(self, params: Params) -> Float[Array, "mn mn"]:
        m, n = params.frame.shape
        left, right, _ = params.frame.bases
        B = jnp.kron(jnp.eye(n) if right is None else right, jnp.eye(m) if left is None else left)
        return B @ self.inner.dense(self._inner(params)) @ B.T


def _with_inner(frame: Frame, inner: Frame) -> Frame:
    return Frame(frame.bases._replace(inner=inner), frame.shape)


def _moments(C: Float[Array, "m m"], U: Float[Array, "m m"]) -> Float[Array, " m"]:
    """The second moments that C states along the columns of U."""
    return jnp.maximum(jnp.sum(U * (C @ U), axis=0), 0)


def rotate(frame: Frame, G: Matrix) -> Matrix:
    """U_L^T G U_R."""
    left, right, _ = frame.bases
    G = G if left is None else left.T @ G
    return G if right is None else G @ right

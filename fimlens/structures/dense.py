"""Dense: every PSD matrix. The oracle, and the floor of every table."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from fimlens.fisher.fisher import Fisher, unvec, vec
from fimlens.fisher.limits import require_dense
from fimlens.structure import BasisStep, Claim, Frame, Params, Statistics, Structure, Symmetry
from fimlens.structures.move import Move
from fimlens.structures.rotated import Rotated
from fimlens.structures.spectra import Diagonal

_COLUMN = Rotated(Diagonal(), "L")  # Vec(G) as a matrix of one column, in the eigenbasis of E[g g^T] = F


@dataclass(frozen=True)
class Dense(Structure):
    """All PSD matrices, F~ = F: (mn)^2 numbers, so only for small matrices.

    Raises:
        ValueError: (at a matrix) an mn x mn matrix would be over the memory bound.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> fisher = fl.Fisher.from_gradients(jnp.array([[[1.0, 2.0], [3.0, 4.0]]]))
        >>> params = fl.fit(fl.Dense(), fisher)
        >>> bool(jnp.allclose(fl.Dense().dense(params), fisher.dense(), atol=1e-4))
        True
        >>> fl.state_size(fl.Dense(), (2, 2)), fl.state_size(fl.Diagonal(), (2, 2))  # a basis, F, and the eigenvalues
        (36, 4)
    """

    claim: ClassVar[Claim] = Claim.EXACT
    holds_in_every_divergence: ClassVar[bool] = True

    @property
    def rotated_claim(self) -> Claim:
        return self.claim

    @property
    def symmetry(self) -> tuple[Symmetry, Symmetry]:
        return "orthogonal", "orthogonal"

    def frame(self, m: int, n: int) -> Frame:
        require_dense("Dense", "Take a smaller matrix, or blocks of it, as in Blocks(Dense(), columns=n).", (m, n))
        return Frame(_COLUMN.frame(m * n, 1), (m, n))

    def to_eigenbasis(self, frame: Frame, G: Float[Array, "m n"]) -> Float[Array, "mn 1"]:
        return _COLUMN.to_eigenbasis(frame.bases, vec(G)[:, None])

    def from_eigenbasis(self, frame: Frame, X: Float[Array, "mn 1"]) -> Float[Array, "m n"]:
        return unvec(_COLUMN.from_eigenbasis(frame.bases, X)[:, 0], frame.shape)

    def eigenvalues(self, params: Params) -> Float[Array, "mn 1"]:
        return params.coords

    def stats(self, fisher: Fisher, member: Params) -> Statistics:
        return _COLUMN.stats(_as_column(fisher), Params(member.frame.bases, member.coords))

    def update_basis(self, stats: Statistics, frame: Frame, fisher: Fisher, step: BasisStep) -> tuple[Frame, Statistics]:
        moved, stats = _COLUMN.update_basis(stats, frame.bases, _as_column(fisher), step)
        return Frame(moved, frame.shape), stats

    def transport(self, stats: Statistics, move: Move) -> Statistics:
        if move.left is None and move.right is None:
            return stats
        size = len(stats.basis.left)
        L, R = (jnp.eye(size // len(other)) if T is None else T for T, other in ((move.left, move.right), move[1::-1]))
        return _COLUMN.transport(stats, Move(jnp.kron(R, L)))  # Vec(L G R^T) = (R (x) L) Vec(G)

    def fit(self, stats: Statistics, frame: Frame) -> Params:
        return Params(frame, _COLUMN.fit(stats, frame.bases).coords)

    def retract(self, frame: Frame, z: Frame) -> Frame:
        return Frame(_COLUMN.retract(frame.bases, z.bases), frame.shape)

    def dense(self, params: Params) -> Float[Array, "mn mn"]:
        Q, lam = params.frame.bases.bases.left, params.coords[:, 0]
        return Q @ jnp.diag(lam) @ Q.T


def _as_column(fisher: Fisher) -> Fisher:
    """The Fisher of Vec(G), a matrix of one column."""
    return fisher.map(lambda G: vec(G)[:, None])

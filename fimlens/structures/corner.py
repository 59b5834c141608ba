"""Corner: any structure on the leading subspaces of both sides, and tied numbers for all that either leaves out."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from fimlens.fisher.fisher import Fisher
from fimlens.linalg.bases import cayley, eigenbasis
from fimlens.structure import Claim, EigenvalueBlock, Frame, Params, Structure, Symmetry, Tree, excess, require_structure
from fimlens.structures.low_rank import require_rank
from fimlens.structures.spectra import Diagonal

Matrix = Float[Array, "m n"]


class Bases(NamedTuple):
    """U (m, r1) and V (n, r2), and the inner structure's own frame over the (r1, r2) corner."""

    left: Float[Array, "m r1"]
    right: Float[Array, "n r2"]
    inner: Frame


class Parts(NamedTuple):
    """Things said of the corner U^T G V, of the rest of its rows (lead x tail), of its columns, and of the tail.

    None for what full ranks leave empty.
    """

    corner: Tree
    rows: Tree
    columns: Tree
    tail: Tree


class Seen(NamedTuple):
    """E[GG^T] and E[G^T G], and the statistics of the parts."""

    left: Float[Array, "m m"]
    right: Float[Array, "n n"]
    parts: Parts


@dataclass(frozen=True)
class Corner(Structure):
    """SOAP of low rank: free on U (x) V, one number a row of U beside it, one a column of V, and one for the rest.

    U (m, rank) and V (n, rank) lead the eigenvectors of E[GG^T] and E[G^T G] (a side shorter than the rank is taken whole).
    The eigenvalues are block means of the second moments, the nearest given the bases; no basis of a complement is
    built, as none of the tied eigenvalues depends on one. [G] leaves this to future work; docs/corner.md derives it.

    Raises:
        TypeError: `inner` is not a Structure instance, or the rank not a whole number.
        ValueError: the rank is not positive.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> fisher = fl.Fisher.from_gradients(jnp.diag(jnp.array([6.0, 4.0, 2.0]))[None])
        >>> params = fl.fit(fl.Corner(1), fisher)
        >>> [round(x.item()) for x in params.coords]  # corner, row, column, and the rest: (16 + 0 + 0 + 4) / 4
        [36, 0, 0, 5]
    """

    rank: int
    inner: Structure = Diagonal()

    def __post_init__(self) -> None:
        require_structure("Corner", self.inner)
        require_rank("Corner", self.rank)

    @property
    def claim(self) -> Claim:
        return Claim.ONE_STEP if self.inner.claim in (Claim.EXACT, Claim.LIMIT) else self.inner.claim

    @property
    def symmetry(self) -> tuple[Symmetry, Symmetry]:
        kind = None if None in self.inner.symmetry else "orthogonal"
        return kind, kind

    def _inner(self, params: Params) -> Params:
        return Params(params.frame.bases.inner, params.coords.corner)

    def frame(self, m: int, n: int) -> Frame:
        U, V = (jnp.eye(side, min(side, self.rank)) for side in (m, n))
        return Frame(Bases(U, V, self.inner.frame(U.shape[1], V.shape[1])), (m, n))

    def to_eigenbasis(self, frame: Frame, G: Matrix) -> Parts:
        U, V, inner = frame.bases
        A, B = U.T @ G, G @ V
        X = A @ V
        rows, columns = A - X @ V.T, B - U @ X
        return Parts(self.inner.to_eigenbasis(inner, X), rows, columns, G - U @ A - columns @ V.T)

    def from_eigenbasis(self, frame: Frame, X: Parts) -> Matrix:
        U, V, inner = frame.bases
        return U @ (self.inner.from_eigenbasis(inner, X.corner) @ V.T + X.rows) + X.columns @ V.T + X.tail

    def eigenvalues(self, params: Params) -> Parts:
        return params.coords._replace(corner=self.inner.eigenvalues(self._inner(params)))

    def _multiplicities(self, frame: Frame) -> Parts:
        """How many directions each tied number stands for."""
        (m, r1), (n, r2) = (U.shape for U in frame.bases[:2])
        return Parts(None, n - r2, m - r1, (m - r1) * (n - r2))

    def _means(self, fisher: Fisher, frame: Frame) -> Parts:
        """Of the second moments, over the directions that are tied; of the corner nothing."""
        V = fisher.second_moment(lambda G: self.to_eigenbasis(frame, G)._replace(corner=()))
        sums = Parts(None, V.rows.sum(1, keepdims=True), V.columns.sum(0, keepdims=True), V.tail.sum(keepdims=True))
        pairs = zip(sums, self._multiplicities(frame), strict=True)
        return Parts(*(total / count if count else None for total, count in pairs))

    def _corner(self, fisher: Fisher, frame: Frame) -> Fisher:
        U, V, _ = frame.bases
        return fisher.map(lambda G: U.T @ G @ V)

    def stats(self, fisher: Fisher, frame: Frame) -> Seen:
        corner = self.inner.stats(self._corner(fisher, frame), frame.bases.inner)
        return Seen(fisher.left(), fisher.right(), self._means(fisher, frame)._replace(corner=corner))

    def update_basis(self, stats: Seen, frame: Frame, fisher: Fisher, key: Array) -> Frame:
        U, V = (eigenbasis(C, old.shape[1]) for C, old in zip(stats[:2], frame.bases, strict=False))
        moved = Frame(Bases(U, V, frame.bases.inner), frame.shape)
        inner = self.inner.update_basis(stats.parts.corner, frame.bases.inner, self._corner(fisher, moved), key)
        return Frame(Bases(U, V, inner), frame.shape)

    def carry(self, stats: Seen, old: Frame, new: Frame) -> Seen:
        corner = self.inner.carry(stats.parts.corner, old.bases.inner, new.bases.inner)
        return stats._replace(parts=stats.parts._replace(corner=corner))

    def fit(self, stats: Seen, frame: Frame) -> Params:
        corner = self.inner.fit(stats.parts.corner, frame.bases.inner).coords
        return Params(frame, stats.parts._replace(corner=corner))

    def retract(self, frame: Frame, z: Frame) -> Frame:
        U, V = (cayley(basis, dz) for basis, dz in zip(frame.bases[:2], z.bases[:2], strict=True))
        return Frame(Bases(U, V, self.inner.retract(frame.bases.inner, z.bases.inner)), frame.shape)

    def _tied(self, params: Params, fisher: Fisher) -> list[EigenvalueBlock]:
        frame = params.frame
        tied = zip(params.coords, self._means(fisher, frame), self._multiplicities(frame), strict=True)
        return [EigenvalueBlock(value, V, count) for value, V, count in tied if count]

    def eigenvalue_blocks(self, params: Params, fisher: Fisher) -> list[EigenvalueBlock]:
        return self.inner.eigenvalue_blocks(self._inner(params), self._corner(fisher, params.frame)) + self._tied(
            params, fisher
        )

    def objective(self, params: Params, fisher: Fisher) -> Float[Array, ""]:
        corner = self.inner.objective(self._inner(params), self._corner(fisher, params.frame))
        return corner + excess(self._tied(params, fisher))

    def dense(self, params: Params) -> Float[Array, "mn mn"]:
        U, V, _ = params.frame.bases
        _, rows, columns, tail = params.coords
        lift = jnp.kron(V, U)
        F = lift @ self.inner.dense(self._inner(params)) @ lift.T
        out_of_U, out_of_V = (jnp.eye(len(W)) - W @ W.T for W in (U, V))
        for value, right, left in ((rows, out_of_V, _spread(U, rows)), (columns, _spread(V, columns), out_of_U)):
            F = F if value is None else F + jnp.kron(right, left)
        return F if tail is None else F + tail[0, 0] * jnp.kron(out_of_V, out_of_U)


def _spread(U: Float[Array, "m r"], values: Any) -> Any:
    return None if values is None else U @ jnp.diag(values.ravel()) @ U.T

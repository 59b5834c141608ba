"""LowRank: any structure on the leading subspace of one side or of both, and tied eigenvalues for all that it leaves out."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fimlens._validate import require_rank
from fimlens.divergence import Divergence, excess
from fimlens.edges import zero_means
from fimlens.fisher.fisher import Fisher
from fimlens.linalg.bases import cayley, short_side_first
from fimlens.linalg.decompositions import eigenbasis
from fimlens.member import BasisStep, Claim, EigenvalueBlock, Frame, Params, Statistics, Symmetry
from fimlens.structure import Structure, require_structure
from fimlens.structures.combinator import Combinator, moved_bases, observed
from fimlens.structures.move import Move
from fimlens.structures.parts import Bases, Parts, spread
from fimlens.structures.spectra import Columns, Drop, Rows, Scalar, Spectrum
from fimlens.structures.trackers import Eigen, Side, SideAverages, Tracker, require_tracker

Matrix = Float[Array, "m n"]
SIDES = ("short", "LR")
TIED = Rows(), Columns(), Scalar()  # rows, columns and the tail, tied as finely as can be without a basis


@dataclass(frozen=True)
class LowRank(Combinator):
    """Any structure on a leading subspace, and eigenvalues tied over its complement, whose basis is never built.

    Use it where an optimizer's state must be small. LowRank(Diagonal(), r) is Alice's low-rank part plus its optimal
    compensation ([G] Theorem 5.1), as one F~. LowRank(Diagonal(), r, Drop()) is GaLore. LowRank(Diagonal(), r, sides="LR") is
    SOAP of low rank, which [G] leaves to future work (docs/corner.md derives it). The eigenvalues outside the lead are means of
    second moments over each tied part, the nearest given the bases.

    Args:
        inner: the structure on the lead, an (r, n) matrix, or (r, s) with sides="LR".
        rank: how many leading directions a side keeps. With sides="short" at most the shorter side; with "LR" a side
            shorter than the rank is taken whole.
        complement: how eigenvalues outside the lead are tied. Columns(): as finely as the bases allow, one number per
            column (with "LR" also one per row of the lead, and one for the tail). Scalar(): one number per part.
            Drop(): none; their eigenvalue is zero.
        sides: "short" for a subspace of the shorter side of each matrix, "LR" for one of each side.
        tracker: how an optimizer finds and follows the subspaces. The fit of a given Fisher does not depend on it.

    Raises:
        TypeError: `inner` is not a Structure instance, or the rank not a whole number.
        ValueError: the rank is not positive or (at a matrix) over its shorter side, or another option is unknown.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> fisher = fl.Fisher.from_gradients(jnp.diag(jnp.array([6.0, 4.0, 2.0]))[None])
        >>> alice = fl.fit(fl.LowRank(fl.Diagonal(), 1), fisher).coords
        >>> print(alice.lead.round(), alice.columns.round())  # the leading direction; each column's mean over the others
        [[36.  0.  0.]] [[0. 8. 2.]]
        >>> soap = fl.fit(fl.LowRank(fl.Diagonal(), 1, sides="LR"), fisher).coords
        >>> [round(x.item()) for x in soap]  # lead, rows, columns, and the tail: (16 + 0 + 0 + 4) / 4
        [36, 0, 0, 5]
    """

    inner: Structure
    rank: int
    complement: Spectrum = Columns()
    sides: str = "short"
    tracker: Tracker = Eigen()

    def __post_init__(self) -> None:
        require_structure("LowRank", self.inner)
        require_rank("LowRank", self.rank)
        require_tracker("LowRank", self.tracker)
        if not isinstance(self.complement, Columns | Scalar | Drop):
            raise ValueError(f"LowRank: complement is Columns(), Scalar() or Drop(): they need no basis; got {self.complement}")
        if self.sides not in SIDES:
            raise ValueError(f"LowRank: sides is one of {', '.join(map(repr, SIDES))}; got {self.sides!r}")

    @property
    def claim(self) -> Claim:
        return self.inner.claim.in_given_basis

    @property
    def symmetry(self) -> tuple[Symmetry, Symmetry]:
        kind = "permutation" if self.sides == "short" else "orthogonal"
        return (None, None) if None in self.inner.symmetry else (kind, kind)

    # --- the parts of a gradient ----------------------------------------------------------------------

    def seen(self, shape: tuple[int, int]) -> tuple[int, int]:
        """The shape of a matrix as the bases see it: with one side tracked, the shorter one comes first."""
        return tuple(sorted(shape)) if self.sides == "short" else shape

    def see(self, G: Float[Array, "*stack m n"], like: Array | None = None) -> Float[Array, "*stack short long"]:
        """G as the bases see it; with `like`, what was computed for `see(like)` in the shape of `like`."""
        return short_side_first(G, like) if self.sides == "short" else G

    def lead_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """The shape of the lead of a matrix of this shape."""
        (_, n), (r, s) = self.seen(shape), self.ranks(shape)
        return r, n if s is None else s

    def ranks(self, shape: tuple[int, int]) -> tuple[int, int | None]:
        """r and s for a matrix of this shape; None where the right side is taken whole."""
        m, n = self.seen(shape)
        return min(m, self.rank), None if self.sides == "short" else min(n, self.rank)

    def counts(self, shape: tuple[int, int]) -> Parts:
        """How many directions each tied number of a part stands for; 0 where there is no such number."""
        return Parts(None, 0, 0, 0) if isinstance(self.complement, Drop) else self._directions(shape)

    def _directions(self, shape: tuple[int, int]) -> Parts:
        """How many directions of each part no basis tells apart; 0 where there is no such part."""
        (m, n), (r, s) = self.seen(shape), self.ranks(shape)
        over_right = 0 if s is None else n - s
        return Parts(None, over_right, m - r, (m - r) * over_right)

    def tied(self, sums: Parts, counts: Parts) -> Parts:
        """Means over the tied directions of each part, from sums over those that no basis tells apart."""

        def mean(total: Array | None, count: int | None, spectrum: Spectrum) -> Array | None:
            if not count:
                return None
            return (self.complement if isinstance(self.complement, Scalar) else spectrum).moments(total / count)

        return Parts(None, *map(mean, sums[1:], counts[1:], TIED))

    def _sums(self, fisher: Fisher, frame: Frame) -> Parts:
        """Sums of the second moments of each part over the directions that no basis tells apart; of the lead nothing."""
        parts = fisher.second_moment(lambda G: self.to_eigenbasis(frame, G)._replace(lead=None))
        axes = Parts(None, 1, 0, (0, 1))
        return Parts(*(None if V is None else V.sum(axis, keepdims=True) for V, axis in zip(parts, axes, strict=True)))

    def _lead(self, fisher: Fisher, frame: Frame) -> Fisher:
        U, V, _ = frame.bases
        return fisher.map(lambda G: U.T @ self.see(G) if V is None else U.T @ G @ V)

    def _inner(self, params: Params) -> Params:
        coords = None if params.coords is None else params.coords.lead
        return Params(params.frame.bases.inner, coords)

    # --- the protocol ---------------------------------------------------------------------------------

    def frame(self, m: int, n: int) -> Frame:
        (short, long), (r, s) = self.seen((m, n)), self.ranks((m, n))
        if self.sides == "short" and self.rank > short:
            raise ValueError(
                f"LowRank: rank {self.rank} is over the shorter side of a {m} x {n} matrix. Take a rank of at most {short}, "
                "or give this matrix to another structure."
            )
        inner = self.inner.frame(*self.lead_shape((m, n)))
        return Frame(Bases(jnp.eye(short, r), None if s is None else jnp.eye(long, s), inner), (m, n))

    def to_eigenbasis(self, frame: Frame, G: Matrix) -> Parts:
        G, (U, V, inner) = self.see(G), frame.bases
        A = U.T @ G
        if V is None:
            return Parts(self.inner.to_eigenbasis(inner, A), None, G - U @ A, None)
        B, X = G @ V, A @ V
        columns = B - U @ X
        return Parts(self.inner.to_eigenbasis(inner, X), A - X @ V.T, columns, G - U @ A - columns @ V.T)

    def from_eigenbasis(self, frame: Frame, X: Parts) -> Matrix:
        U, V, inner = frame.bases
        lead = self.inner.from_eigenbasis(inner, X.lead)
        if V is None:
            G = U @ lead + X.columns
            return G if G.shape == frame.shape else G.T
        return U @ (lead @ V.T + X.rows) + X.columns @ V.T + X.tail

    def eigenvalues(self, params: Params) -> Parts:
        return params.coords._replace(lead=self.inner.eigenvalues(self._inner(params)))

    def stats(self, fisher: Fisher, member: Params) -> Statistics:
        frame = member.frame
        own = observed(self.tracker, frame.bases, self._sides(fisher))
        within = self.inner.stats(self._lead(fisher, frame), self._inner(member))
        means = self.tied(self._sums(fisher, frame), self.counts(frame.shape))
        return Statistics(SideAverages(*own, within.basis), means._replace(lead=within.spectrum))

    def _sides(self, fisher: Fisher) -> tuple[Side, Side]:
        seen = fisher.map(self.see) if self.seen(fisher.shape) != fisher.shape else fisher
        return Side(seen), Side(seen, right=True)

    def update_basis(self, stats: Statistics, frame: Frame, fisher: Fisher, step: BasisStep) -> tuple[Frame, Statistics]:
        moved, _, averages = moved_bases(self.tracker, stats.basis, frame.bases, self._sides(fisher), step)
        moved = Frame(Bases(*moved, frame.bases.inner), frame.shape)
        within = Statistics(stats.basis.inner, stats.spectrum.lead)
        inner, within = self.inner.update_basis(within, frame.bases.inner, self._lead(fisher, moved), step)
        stats = Statistics(averages._replace(inner=within.basis), stats.spectrum._replace(lead=within.spectrum))
        return Frame(moved.bases._replace(inner=inner), frame.shape), stats

    def transport(self, stats: Statistics, move: Move) -> Statistics:
        """Covariances follow, and what is measured in the subspaces stays; a side without one follows the inner's own rule."""
        short = self.sides == "short"
        move = move if move.wide or not short else Move(move.right, move.left)
        within = Move(right=move.right) if short else Move()
        inner = self.inner.transport(Statistics(stats.basis.inner, stats.spectrum.lead), within)
        averages = move.covariances(stats.basis) if self.tracker.averages_covariance else stats.basis[:2]
        columns = jax.tree.map(within.squares, stats.spectrum.columns)
        spectrum = stats.spectrum._replace(lead=inner.spectrum, columns=columns)
        return Statistics(SideAverages(*averages, inner.basis), spectrum)

    def converged_basis(self, fisher: Fisher, key: Array) -> Frame:
        """The leading eigenvectors of the covariances, whichever tracker an optimizer has."""
        frame = self.frame(*fisher.shape)
        pairs = zip(self._sides(fisher), frame.bases, strict=False)
        U, V = (None if W is None else eigenbasis(side.covariance(), W.shape[1]) for side, W in pairs)
        moved = Frame(Bases(U, V, frame.bases.inner), frame.shape)
        return Frame(Bases(U, V, self.inner.converged_basis(self._lead(fisher, moved), key)), frame.shape)

    def fit(self, stats: Statistics, frame: Frame) -> Params:
        lead = self.inner.fit(Statistics(stats.basis.inner, stats.spectrum.lead), frame.bases.inner).coords
        return Params(frame, stats.spectrum._replace(lead=lead))

    def retract(self, frame: Frame, z: Frame) -> Frame:
        U, V = (None if basis is None else cayley(basis, dz) for basis, dz in zip(frame.bases[:2], z.bases[:2], strict=True))
        return Frame(Bases(U, V, self.inner.retract(frame.bases.inner, z.bases.inner)), frame.shape)

    def _tied_blocks(self, params: Params, fisher: Fisher) -> list[EigenvalueBlock]:
        """Eigenvalue blocks of the parts outside the lead. Variation inside a tied part counts as basis error."""
        sums, counts = self._sums(fisher, params.frame), self._directions(params.frame.shape)
        blocks = zip(params.coords[1:], self.tied(sums, counts)[1:], sums[1:], counts[1:], strict=True)
        return [EigenvalueBlock(value, V, count * total.size / V.size) for value, V, total, count in blocks if count]

    def eigenvalue_blocks(self, params: Params, fisher: Fisher) -> list[EigenvalueBlock]:
        lead = self._inner(params), self._lead(fisher, params.frame)
        return self.inner.eigenvalue_blocks(*lead) + self._tied_blocks(params, fisher)

    def no_minimum(self, params: Params, fisher: Fisher, divergence: Divergence) -> str | None:
        lead = self._inner(params), self._lead(fisher, params.frame)
        return self.inner.no_minimum(*lead, divergence) or zero_means(self._tied_blocks(params, fisher), fisher)

    def objective(self, params: Params, fisher: Fisher) -> Float[Array, ""]:
        lead = self.inner.objective(self._inner(params), self._lead(fisher, params.frame))
        return lead + excess(self._tied_blocks(params, fisher), self.divergence)

    def dense(self, params: Params) -> Float[Array, "mn mn"]:
        U, V, _ = params.frame.bases
        (short, long), (m, n) = self.seen(params.frame.shape), params.frame.shape
        V = jnp.eye(long) if V is None else V
        _, rows, columns, tail = params.coords
        lift, out_of_U, out_of_V = jnp.kron(V, U), jnp.eye(short) - U @ U.T, jnp.eye(long) - V @ V.T
        F = lift @ self.inner.dense(self._inner(params)) @ lift.T
        F = F if rows is None else F + jnp.kron(out_of_V, spread(U, rows))
        F = F if columns is None else F + jnp.kron(spread(V, columns), out_of_U)
        F = F if tail is None else F + tail[0, 0] * jnp.kron(out_of_V, out_of_U)
        order = jnp.arange(m * n).reshape(m, n).T.reshape(-1)  # Vec(G) in Vec(G^T)
        return F if (m, n) == (short, long) else F[order][:, order]

"""LowRank: any structure on the leading subspace, and one tied block for all that the subspace leaves out."""

from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from fimlens.fisher.fisher import Fisher
from fimlens.linalg.bases import cayley, eigenbasis
from fimlens.structure import Claim, EigenvalueBlock, Frame, Params, Structure, Symmetry, Tree, excess, require_structure
from fimlens.structures.spectra import Columns, Scalar, Spectrum

Matrix = Float[Array, "m n"]


@dataclass(frozen=True)
class Drop(Spectrum):
    """A complement outside the range: eigenvalue 0, excluded by every f, as in GaLore.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> G = jnp.diag(jnp.array([3.0, 2.0, 1.0]))
        >>> galore = fl.LowRank(fl.Diagonal(), 1, fl.Drop())
        >>> params = fl.fit(galore, fl.Fisher.from_gradients(G[None]))
        >>> print(galore.apply(params, G, lambda x: x + 1).round())  # outside the subspace nothing is left, whatever f
        [[30.  0.  0.]
         [ 0.  0.  0.]
         [ 0.  0.  0.]]
    """

    claim: ClassVar[Claim] = Claim.EXACT

    def moments(self, V: Matrix) -> None:
        return None

    def project(self, moments: None) -> None:
        return None

    def expand(self, coords: None, shape: tuple[int, int]) -> None:
        return None


class Bases(NamedTuple):
    """U (m, r), of the shorter side, and the inner structure's own frame over the (r, n) lead."""

    lead: Float[Array, "m r"]
    inner: Frame


class LeadTail(NamedTuple):
    """A pair of things said of the lead U^T G, (r, n), and of the tail G - U U^T G, (m, n)."""

    lead: Tree
    tail: Tree


class Tracked(NamedTuple):
    """E[GG^T] of the shorter side, and the statistics of lead and tail."""

    covariance: Float[Array, "m m"]
    parts: LeadTail


@dataclass(frozen=True)
class LowRank(Structure):
    """U inner U^T on the lead, and eigenvalues tied over the complement of U, whose basis is never built.

    With G transposed at the door where m > n, U (m, r) the leading eigenvectors of E[GG^T], and `complement`
    Columns() (one number a column, Alice's optimal compensation: [G] Theorem 5.1), Scalar() (one number) or Drop() (none:
    GaLore). LowRank(Diagonal(), r, Columns()) is Alice's low-rank part plus its compensation, one F~. A full rank leaves no
    complement, whichever is given.

    Raises:
        TypeError: `inner` is not a Structure instance, or the rank not a whole number.
        ValueError: the rank is not positive or (at a matrix) over its shorter side, or the complement is none of these.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> fisher = fl.Fisher.from_gradients(jnp.diag(jnp.array([6.0, 4.0, 2.0]))[None])
        >>> lead, tail = fl.fit(fl.LowRank(fl.Diagonal(), 1), fisher).coords
        >>> print(lead.round(), tail.round())  # the leading direction; each column's mean over the other two
        [[36.  0.  0.]] [[0. 8. 2.]]
    """

    inner: Structure
    rank: int
    complement: Spectrum = Columns()

    def __post_init__(self) -> None:
        require_structure("LowRank", self.inner)
        require_rank("LowRank", self.rank)
        if not isinstance(self.complement, Columns | Scalar | Drop):
            raise ValueError(
                f"LowRank: complement is Columns(), Scalar() or Drop(), which need no basis there; got {self.complement}"
            )

    @property
    def claim(self) -> Claim:
        return Claim.ONE_STEP if self.inner.claim in (Claim.EXACT, Claim.LIMIT) else self.inner.claim

    @property
    def symmetry(self) -> tuple[Symmetry, Symmetry]:
        kind = "permutation" if None not in self.inner.symmetry else None
        return kind, kind

    def _tail(self, shape: tuple[int, int]) -> Spectrum:
        """The complement; nothing is left to it where the rank is full, and rounding is not a direction."""
        return Drop() if self.rank == min(shape) else self.complement

    def _inner(self, params: Params) -> Params:
        return Params(params.frame.bases.inner, params.coords.lead)

    def frame(self, m: int, n: int) -> Frame:
        short, long = sorted((m, n))
        if self.rank > short:
            raise ValueError(
                f"LowRank: rank {self.rank} is over the shorter side of a {m} x {n} matrix. Take a rank of at most {short}, "
                "or give this matrix to another structure."
            )
        return Frame(Bases(jnp.eye(short, self.rank), self.inner.frame(self.rank, long)), (m, n))

    def to_eigenbasis(self, frame: Frame, G: Matrix) -> LeadTail:
        G, (U, inner) = at_door(frame, G), frame.bases
        sigma = U.T @ G
        return LeadTail(self.inner.to_eigenbasis(inner, sigma), G - U @ sigma)

    def from_eigenbasis(self, frame: Frame, X: LeadTail) -> Matrix:
        U, inner = frame.bases
        return at_door(frame, U @ self.inner.from_eigenbasis(inner, X.lead) + X.tail)

    def eigenvalues(self, params: Params) -> LeadTail:
        shape = params.frame.shape
        tail = self._tail(shape).expand(params.coords.tail, shape)
        return LeadTail(self.inner.eigenvalues(self._inner(params)), tail)

    def stats(self, fisher: Fisher, frame: Frame) -> Tracked:
        G, U = fisher.map(lambda G: at_door(frame, G)), frame.bases.lead
        lead = self.inner.stats(G.map(lambda G: U.T @ G), frame.bases.inner)
        return Tracked(G.left(), LeadTail(lead, self._tail_moments(fisher, frame)))

    def _tail_moments(self, fisher: Fisher, frame: Frame) -> Tree:
        """Means over the complement: m entries a column of the residual stand for its m - r dimensions."""
        U = frame.bases.lead
        m, r = U.shape

        def residual(G: Matrix) -> Float[Array, "short long"]:
            G = at_door(frame, G)
            return G - U @ (U.T @ G)

        return self._tail(frame.shape).moments(fisher.second_moment(residual) * (m / max(m - r, 1)))

    def update_basis(self, stats: Tracked, frame: Frame, fisher: Fisher, key: Array) -> Frame:
        U = eigenbasis(stats.covariance, self.rank)
        lead = fisher.map(lambda G: U.T @ at_door(frame, G))
        return Frame(Bases(U, self.inner.update_basis(stats.parts.lead, frame.bases.inner, lead, key)), frame.shape)

    def carry(self, stats: Tracked, old: Frame, new: Frame) -> Tracked:
        lead = self.inner.carry(stats.parts.lead, old.bases.inner, new.bases.inner)
        return stats._replace(parts=stats.parts._replace(lead=lead))

    def fit(self, stats: Tracked, frame: Frame) -> Params:
        lead, tail = stats.parts
        inner = self.inner.fit(lead, frame.bases.inner)
        return Params(frame, LeadTail(inner.coords, self._tail(frame.shape).project(tail)))

    def retract(self, frame: Frame, z: Frame) -> Frame:
        U = cayley(frame.bases.lead, z.bases.lead)
        return Frame(Bases(U, self.inner.retract(frame.bases.inner, z.bases.inner)), frame.shape)

    def _parts(self, params: Params, fisher: Fisher) -> tuple[Fisher, list[EigenvalueBlock]]:
        """The Fisher of the lead, and the tail as one tied level: what it hides inside itself is basis error."""
        U = params.frame.bases.lead
        m, r = U.shape
        lead = fisher.map(lambda G: U.T @ at_door(params.frame, G))
        value, V = params.coords.tail, self._tail_moments(fisher, params.frame)
        return lead, [] if V is None else [EigenvalueBlock(value, V, (m - r) * max(params.frame.shape) / V.size)]

    def eigenvalue_blocks(self, params: Params, fisher: Fisher) -> list[EigenvalueBlock]:
        lead, tail = self._parts(params, fisher)
        return self.inner.eigenvalue_blocks(self._inner(params), lead) + tail

    def objective(self, params: Params, fisher: Fisher) -> Float[Array, ""]:
        lead, tail = self._parts(params, fisher)
        return self.inner.objective(self._inner(params), lead) + excess(tail)

    def dense(self, params: Params) -> Float[Array, "mn mn"]:
        U = params.frame.bases.lead
        short, long = len(U), max(params.frame.shape)
        lift = jnp.kron(jnp.eye(long), U)
        F = lift @ self.inner.dense(self._inner(params)) @ lift.T
        if params.coords.tail is not None:
            d = jnp.broadcast_to(params.coords.tail, (1, long))
            F = F + jnp.kron(jnp.diag(d[0]), jnp.eye(short) - U @ U.T)
        m, n = params.frame.shape
        order = jnp.arange(m * n).reshape(m, n).T.reshape(-1) if m > n else jnp.arange(m * n)  # Vec(G) in Vec(G^T)
        return F[order][:, order]


def require_rank(call: str, rank: Any) -> None:
    """Refuse a rank that is not a positive whole number.

    Raises:
        TypeError: it is not a whole number.
        ValueError: it is not positive.
    """
    if isinstance(rank, bool) or not isinstance(rank, Integral):
        raise TypeError(
            f"{call}: rank is a whole number; got {rank!r}. Round it; under optax.inject_hyperparams, name it in static_args."
        )
    if rank < 1:
        raise ValueError(f"{call}: rank is a positive number; got {rank}")


def at_door(frame: Frame, G: Matrix) -> Float[Array, "short long"]:
    """G with its shorter side first; its own inverse."""
    m, n = frame.shape
    return G if m <= n else G.T

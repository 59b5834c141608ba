"""Spectra: families that are diagonal in the coordinates they are given, and differ in which eigenvalues they allow.

F~ = Diag(vec L). With V = E[G^2], ||F~ - F||^2 = ||offdiag F||^2 + ||L - V||^2, so the nearest allowed L is
the projection of V. Each spectrum states what it averages (`moments`, linear in V), its `project`ion, and how to
`expand` coordinates into an L that broadcasts over (m, n). Put in a basis, it becomes another optimizer.
"""

import abc
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fimlens.fisher.fisher import Fisher, vec
from fimlens.structure import Claim, Frame, Params, Statistics, Structure, Symmetry, Tree
from fimlens.structures.move import Move

Matrix = Float[Array, "m n"]


@dataclass(frozen=True)
class Spectrum(Structure):
    """A structure that is diagonal where it stands: three sentences, and the rest follows.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> class Halves(fl.Spectrum):  # one number for the upper half of the rows, one for the lower
        ...     claim = fl.Claim.EXACT
        ...     def moments(self, V): return [half.mean(keepdims=True) for half in jnp.array_split(V, 2)]
        ...     def project(self, moments): return moments
        ...     def expand(self, coords, shape):
        ...         return jnp.concatenate([jnp.broadcast_to(c, h.shape) for c, h in zip(
        ...             coords, jnp.array_split(jnp.ones(shape), 2))])
        >>> fl.check(Halves(), shapes=[(4, 3)], laws=["application", "claim"]).ok
        True
    """

    @abc.abstractmethod
    def moments(self, V: Matrix) -> Tree:
        """What is averaged of the second moments V: linear in V."""

    @abc.abstractmethod
    def project(self, moments: Tree) -> Tree:
        """The coordinates of the allowed eigenvalues nearest to V."""

    @abc.abstractmethod
    def expand(self, coords: Tree, shape: tuple[int, int]) -> Float[Array, "#m #n"]:
        """The eigenvalues, non-negative, broadcasting over the (m, n) coordinates."""

    def frame(self, m: int, n: int) -> Frame:
        return Frame((), (m, n))

    def to_eigenbasis(self, frame: Frame, G: Matrix) -> Matrix:
        del frame
        return G

    def from_eigenbasis(self, frame: Frame, X: Matrix) -> Matrix:
        del frame
        return X

    def eigenvalues(self, params: Params) -> Float[Array, "#m #n"]:
        (m, n), values = params.frame.shape, self.expand(params.coords, params.frame.shape)
        if values.ndim != 2 or values.shape[0] not in (1, m) or values.shape[1] not in (1, n):
            raise ValueError(
                f"{self}: expand gave eigenvalues of shape {values.shape}, and they broadcast over the {m} x {n} matrix by two "
                f"axes, as ({m}, 1) for one a row. Keep both, as in V.mean(1, keepdims=True)."
            )
        return values

    def stats(self, fisher: Fisher, member: Params) -> Statistics:
        del member
        return Statistics(None, self.moments(fisher.second_moment()))

    def fit(self, stats: Statistics, frame: Frame) -> Params:
        return Params(frame, self.project(stats.spectrum))

    def transport(self, stats: Statistics, move: Move) -> Statistics:
        """Squares of the rotation, on each axis that has an entry per row or per column."""
        return Statistics(None, jax.tree.map(move.squares, stats.spectrum))

    def dense(self, params: Params) -> Float[Array, "mn mn"]:
        return jnp.diag(vec(jnp.broadcast_to(self.eigenvalues(params), params.frame.shape)))


@dataclass(frozen=True)
class Diagonal(Spectrum):
    """Diag(v): v = E[g^2]. Adam. [G] Proposition 1.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> fisher = fl.Fisher.from_gradients(jnp.array([[[1.0, 2.0], [3.0, 4.0]]]))
        >>> fl.fit(fl.Diagonal(), fisher).coords.tolist()  # the gradient's squares
        [[1.0, 4.0], [9.0, 16.0]]
    """

    claim: ClassVar[Claim] = Claim.EXACT
    holds_in_every_divergence: ClassVar[bool] = True
    symmetry: ClassVar[tuple[Symmetry, Symmetry]] = ("permutation", "permutation")

    def moments(self, V: Matrix) -> Matrix:
        return V

    def project(self, moments: Matrix) -> Matrix:
        return moments

    def expand(self, coords: Matrix, shape: tuple[int, int]) -> Matrix:
        del shape
        return coords


@dataclass(frozen=True)
class _Tied(Spectrum):
    """Eigenvalues equal along some axes: means of V along them. Linear in V, hence exact; and by Schur-Horn
    majorisation the eigenbasis of the covariances is the best basis for them, hence exact when rotated too."""

    claim: ClassVar[Claim] = Claim.EXACT
    holds_in_every_divergence: ClassVar[bool] = True
    axes: ClassVar[tuple[int, ...]]

    @property
    def rotated_claim(self) -> Claim:
        return Claim.EXACT

    def moments(self, V: Matrix) -> Float[Array, "#m #n"]:
        return V.mean(self.axes, keepdims=True)

    def project(self, moments: Float[Array, "#m #n"]) -> Float[Array, "#m #n"]:
        return moments

    def expand(self, coords: Float[Array, "#m #n"], shape: tuple[int, int]) -> Float[Array, "#m #n"]:
        del shape
        return coords


@dataclass(frozen=True)
class Rows(_Tied):
    """I_n (x) Diag(q), one number a row: q_i = E||G_i.||^2 / n. In the left eigenbasis: whitening, Muon ([G] Prop. 2).

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> fisher = fl.Fisher.from_gradients(jnp.array([[[1.0, 2.0], [3.0, 4.0]]]))
        >>> fl.fit(fl.Rows(), fisher).coords.tolist()
        [[2.5], [12.5]]
        >>> fl.Rotated(fl.Rows(), "L").claim.name  # of whitening
        'EXACT'
    """

    axes: ClassVar[tuple[int, ...]] = (1,)
    symmetry: ClassVar[tuple[Symmetry, Symmetry]] = ("permutation", "orthogonal")

    def transport(self, stats: Statistics, move: Move) -> Statistics:
        return super().transport(stats, move) if move.rows is None else Statistics(None, _of_sum(move.rows, stats.spectrum))

    def dense(self, params: Params) -> Float[Array, "mn mn"]:
        return jnp.kron(jnp.eye(params.frame.shape[1]), jnp.diag(params.coords[:, 0]))


@dataclass(frozen=True)
class Columns(_Tied):
    """Diag(s) (x) I_m, one number a column: s_j = E||g_j||^2 / m. Column normalisation. [G] Proposition 2.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> G = jnp.array([[1.0, 4.0], [1.0, -4.0]])
        >>> params = fl.fit(fl.Columns(), fl.Fisher.from_gradients(G[None]))
        >>> params.coords.tolist()
        [[1.0, 16.0]]
        >>> print(fl.Columns().apply(params, G, lambda x: x**-0.5).round())  # columns of one norm
        [[ 1.  1.]
         [ 1. -1.]]
    """

    axes: ClassVar[tuple[int, ...]] = (0,)
    symmetry: ClassVar[tuple[Symmetry, Symmetry]] = ("orthogonal", "permutation")

    def transport(self, stats: Statistics, move: Move) -> Statistics:
        return (
            super().transport(stats, move) if move.columns is None else Statistics(None, _of_sum(move.columns, stats.spectrum))
        )

    def dense(self, params: Params) -> Float[Array, "mn mn"]:
        return jnp.kron(jnp.diag(params.coords[0]), jnp.eye(params.frame.shape[0]))


@dataclass(frozen=True)
class Scalar(_Tied):
    """c I: c = tr F / (mn). Gradient descent scaled by one number, as in LARS.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> fisher = fl.Fisher.from_gradients(jnp.array([[[1.0, 2.0], [3.0, 4.0]]]))
        >>> fl.fit(fl.Scalar(), fisher).coords.tolist()  # ||G||^2 / 4
        [[7.5]]
    """

    axes: ClassVar[tuple[int, ...]] = (0, 1)
    symmetry: ClassVar[tuple[Symmetry, Symmetry]] = ("orthogonal", "orthogonal")

    def dense(self, params: Params) -> Float[Array, "mn mn"]:
        m, n = params.frame.shape
        return params.coords[0, 0] * jnp.eye(m * n)


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


def _of_sum(known: Float[Array, "..."], means: Float[Array, "..."]) -> Float[Array, "..."]:
    """The known means, scaled to the sum of others: a rotation keeps the trace, and the known ones may have other weights."""
    total = known.sum()
    return known * (means.sum() / jnp.where(total == 0, 1, total))

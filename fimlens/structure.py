"""A structure: a family H of positive semi-definite matrices, and the member nearest to a Fisher.

Read this file first. A member F~ of a family acts on Vec(G), where G is an (m, n) gradient and Vec stacks
columns. In its eigenbasis every member is diagonal:

    F~ Vec(G) = Vec( from_eigenbasis( eigenvalues * to_eigenbasis(G) ) )

A structure therefore says three things. Its *frame*, found slowly, is where its eigenbasis is. Its
*statistics*, linear in the Fisher, are what it averages there. Its *coordinates*, in closed form, are the
eigenvalues nearest to them. The optimizer, the gap, the solver and the laws are derived from these three.
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from fimlens._validate import OnlyFields
from fimlens.divergence import FROBENIUS, Divergence, excess
from fimlens.edges import zero_means
from fimlens.fisher.fisher import Fisher
from fimlens.linalg.spectral_functions import inverse_root, over_parts, root, scale
from fimlens.member import AVERAGES_ALONE
from fimlens.member import BasisStep as BasisStep
from fimlens.member import Claim as Claim
from fimlens.member import EigenvalueBlock as EigenvalueBlock
from fimlens.member import Frame as Frame
from fimlens.member import Mix as Mix
from fimlens.member import Params as Params
from fimlens.member import Statistics as Statistics
from fimlens.member import Symmetry as Symmetry
from fimlens.member import Tree as Tree


@dataclass(frozen=True)
class Structure(OnlyFields, abc.ABC):
    """Base class of every family H of PSD matrices; subclass it for a family with bases of its own.

    A structure is frozen, hashable and printable: its hyper-parameters are dataclass fields. A new family defines the
    abstract methods; the defaults of the others suit a family without bases. A family that is diagonal in the
    coordinates of the gradient is shorter as a `Spectrum`.

    Raises:
        TypeError: an instance has an attribute that is no compared field, so that nothing would tell it from another.

    Examples:
        >>> import jax, fimlens as fl
        >>> family = fl.Rotated(fl.Diagonal(), "L")
        >>> print(family, family.claim.name, family.symmetry)
        Rotated(Diagonal(), L) ONE_STEP ('orthogonal', 'permutation')
        >>> G = jax.random.normal(jax.random.key(0), (8, 2, 3))
        >>> member = fl.fit(family, fl.Fisher.from_gradients(G))
        >>> family.apply(member, G[0], lambda x: x**-0.5).shape  # square-root natural gradient descent
        (2, 3)
    """

    @property
    @abc.abstractmethod
    def claim(self) -> Claim:
        """What is true of `fit`, checked by the laws and by the lens."""

    @property
    def divergence(self) -> Divergence:
        """The divergence that `fit` minimises. Default: `Frobenius`."""
        return FROBENIUS

    @property
    def holds_in_every_divergence(self) -> bool:
        """Whether `claim` is true in every divergence: so it is where eigenvalues are means of second moments."""
        return False

    def claim_in(self, divergence: Divergence) -> Claim | None:
        """The claim, if it is about this divergence or about every one; otherwise None."""
        return self.claim if self.holds_in_every_divergence or divergence.same_minima(self.divergence) else None

    @property
    def symmetry(self) -> tuple[Symmetry, Symmetry]:
        """The invariance, left and right: for P and Q of these kinds, gradients P G Q turn F~ by Q^T (x) P."""
        return None, None

    @property
    def rotated_claim(self) -> Claim:
        """What stays true inside a basis that diagonalises the covariances E[GG^T], E[G^T G]."""
        return self.claim.in_given_basis

    # --- the eigenbasis -------------------------------------------------------------------------------

    @abc.abstractmethod
    def frame(self, m: int, n: int) -> Frame:
        """The first frame of an m x n matrix, before any gradient is seen."""

    @abc.abstractmethod
    def to_eigenbasis(self, frame: Frame, G: Float[Array, "m n"]) -> Tree:
        """The coordinates X of G, a tree of arrays: an isometry."""

    @abc.abstractmethod
    def from_eigenbasis(self, frame: Frame, X: Tree) -> Float[Array, "m n"]:
        """The adjoint of `to_eigenbasis`, so that from_eigenbasis(to_eigenbasis(G)) == G."""

    @abc.abstractmethod
    def eigenvalues(self, params: Params) -> Tree:
        """The eigenvalues over X: a prefix of its tree, each array broadcast over its part.

        None stands for a part outside the family's range: its eigenvalue is zero, and so is every f of it.
        """

    # --- the fit --------------------------------------------------------------------------------------

    @abc.abstractmethod
    def stats(self, fisher: Fisher, member: Params) -> Statistics:
        """What is averaged: linear in F. One gradient is a Fisher with N = 1; the caller averages.

        `member` is the last one fitted, in whose frame the statistics are measured; its coordinates are None before
        the first fit, and zero before the first average.
        """

    @abc.abstractmethod
    def fit(self, stats: Statistics, frame: Frame) -> Params:
        """The nearest member in this frame, in closed form."""

    def update_basis(self, stats: Statistics, frame: Frame, fisher: Fisher, step: BasisStep) -> tuple[Frame, Statistics]:
        """Move the bases, and express the averages in the new ones.

        `stats` are averages measured in `frame`; step.mix adds the current Fisher (in training, one gradient) to
        them where a basis follows their mixture. By default nothing moves.
        """
        del fisher, step
        return frame, stats

    def side_weights(self, fisher: Fisher, member: Params) -> tuple[Float[Array, "m 1"], Float[Array, "1 n"]] | None:
        """Weights of the rows in E[G^T G], and of the columns in E[GG^T], whose eigenbases `Rotated` takes.

        Where the sides are coupled, each is seen through the eigenvalues of the other. Weights are relative to the mean. As in
        `stats`, coordinates of None stand for those nearest to the Fisher. Default: None, no weights.
        """
        del fisher, member

    def transport(self, stats: Statistics, move: Any) -> Statistics:
        """Express statistics of G as statistics of L G R^T; `move` (`structures.Move`) holds L and R. Default: unchanged."""
        del move
        return stats

    def converged_basis(self, fisher: Fisher, key: Array) -> Frame:
        """The frame that `update_basis` no longer moves."""
        frame = jax.tree.map(lambda U: U.astype(fisher.dtype), self.frame(*fisher.shape))
        return update_basis_until_converged(self, frame, fisher, key) if jax.tree.leaves(frame) else frame

    # --- the second witness, and the solver's way in -----------------------------------------------------

    @abc.abstractmethod
    def dense(self, params: Params) -> Float[Array, "mn mn"]:
        """The member written out as the paper writes it.

        An independent witness: it must not call `to_eigenbasis`, `from_eigenbasis` or `apply`.
        """

    def retract(self, frame: Frame, z: Frame) -> Frame:
        """A frame for any z of the frame's layout; z = 0 gives `frame` itself. Redundancy is allowed."""
        del z
        return frame

    def chart(self, z: Params, params: Params) -> Params:
        """A member for any z of the layout of `params`; z = 0 gives `params` itself.

        Non-negative coordinates move as squares, (sqrt(c) + z)^2, so that no z leaves the PSD cone.
        """
        coords = jax.tree.map(lambda c, x: (root(c) + x) ** 2, params.coords, z.coords)
        return Params(self.retract(params.frame, z.frame), coords)

    # --- derived -----------------------------------------------------------------------------------------

    def apply(self, params: Params, G: Float[Array, "m n"], f: Callable[[Array], Array] = lambda x: x) -> Float[Array, "m n"]:
        """Mat( f(F~) Vec(G) ), in the dtype of G; f = 1/sqrt is square-root natural gradient descent."""
        X = self.to_eigenbasis(params.frame, G.astype(jnp.promote_types(G.dtype, jnp.float32)))
        return self.from_eigenbasis(params.frame, scale(f, self.eigenvalues(params), X)).astype(G.dtype)

    def precondition(self, params: Params, X: Tree, eps: Float[ArrayLike, ""]) -> Tree:
        """X / (sqrt(eigenvalue) + eps): what an optimizer makes of coordinates. See `inverse_root`."""
        return scale(inverse_root(eps), self.eigenvalues(params), X)

    def eigenvalue_blocks(self, params: Params, fisher: Fisher) -> list[EigenvalueBlock]:
        """Eigenvalues beside the second moments V of the Fisher in the member's own basis."""
        moments = fisher.second_moment(lambda G: self.to_eigenbasis(params.frame, G))

        def block(value: Array | None, V: Array) -> EigenvalueBlock:
            return EigenvalueBlock(None if value is None else jnp.broadcast_to(value, V.shape), V, 1.0)

        blocks = over_parts(block, self.eigenvalues(params), moments)
        return jax.tree.leaves(blocks, is_leaf=lambda x: isinstance(x, EigenvalueBlock))

    def no_minimum(self, params: Params, fisher: Fisher, divergence: Divergence) -> str | None:
        """The reason why a divergence that is infinite at 0 falls without bound in this frame; None where none is known.

        Default: a mean of second moments is zero. `fit` and `solve` refuse such a Fisher, where arrays are concrete.
        """
        del divergence
        return zero_means(self.eigenvalue_blocks(params, fisher), fisher) if self.holds_in_every_divergence else None

    def objective(self, params: Params, fisher: Fisher) -> Float[Array, ""]:
        """What `fit` minimises, up to a constant of the Fisher: D(F, F~) - tr phi(F) unless overridden."""
        return excess(self.eigenvalue_blocks(params, fisher), self.divergence)


def require_structure(call: str, inner: object) -> None:
    """Raise a TypeError, in the name of the call, for what is not a structure."""
    if not isinstance(inner, Structure):
        raise TypeError(f"{call}: expected a structure first, such as fl.Diagonal(); got {inner!r}. Classes need ().")


def update_basis_until_converged(
    structure: Structure, frame: Frame, fisher: Fisher, key: Array, most: int = 1000, mix: Mix = AVERAGES_ALONE
) -> Frame:
    """Update the bases against one Fisher, of which the averages hold mix.old, until they move by no more than rounding."""
    dtype = jnp.result_type(*jax.tree.leaves(frame))

    def moves(state: tuple[Frame, Array, Array]) -> Array:
        _, change, count = state
        return (count < most) & (change > 100 * jnp.finfo(dtype).eps)

    def update(state: tuple[Frame, Array, Array]) -> tuple[Frame, Array, Array]:
        old, _, count = state
        stats = jax.tree.map(lambda x: mix.old * x, structure.stats(fisher, Params(old, None)))
        new, _ = structure.update_basis(stats, old, fisher, BasisStep(jax.random.fold_in(key, count), mix))
        distances = [jnp.abs(a - b).max() for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)]
        return new, jnp.stack(distances).max(), count + 1

    return jax.lax.while_loop(moves, update, (frame, jnp.asarray(jnp.inf, dtype), 0))[0]

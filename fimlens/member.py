"""What structures hand around: a claim, a frame, a member, statistics, and how a basis is to move."""

import enum
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, ArrayLike, Bool, Float

Tree = Any  # a pytree of arrays whose layout is the structure's own
Symmetry = str | None  # "permutation", "orthogonal" or None


class Claim(enum.Enum):
    """What is true of a closed form, in the divergence of its structure.

    Examples:
        >>> import fimlens as fl
        >>> fl.Diagonal().claim is fl.Claim.EXACT
        True
        >>> fl.Rotated(fl.Diagonal(), "LR").claim.value  # SOAP
        'the exact eigenvalues, in a basis that solves an easier problem'
    """

    EXACT = "the global minimiser over the family"
    LIMIT = "the global minimiser, once a fixed-point iteration converges"
    ONE_STEP = "the exact eigenvalues, in a basis that solves an easier problem"
    BOUND = "the minimiser of an upper bound only"

    @property
    def in_given_basis(self) -> "Claim":
        """The claim that is left where the basis is given, and found by solving an easier problem."""
        return Claim.ONE_STEP if self in (Claim.EXACT, Claim.LIMIT) else self


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Frame:
    """The eigenbasis of a member: its bases (an empty tuple for a spectrum), and the shape of its matrix.

    Examples:
        >>> import fimlens as fl
        >>> fl.Diagonal().frame(2, 3)
        Frame(bases=(), shape=(2, 3))
        >>> fl.Rotated(fl.Diagonal(), "R").frame(2, 3).bases.right.shape
        (3, 3)
    """

    bases: Tree
    shape: tuple[int, int] = field(metadata={"static": True})


def bases_of(frame: Frame) -> Tree:
    """The bases of a frame and of the frames in it, without shapes: optimizers keep these, and any checkpoint holds them."""
    within = lambda x: bases_of(x) if isinstance(x, Frame) else x  # noqa: E731
    return jax.tree.map(within, frame.bases, is_leaf=lambda x: isinstance(x, Frame))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Params:
    """One member of a family: a frame, and non-negative coordinates of the eigenvalues in it.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> fisher = fl.Fisher.from_gradients(jnp.array([[[1.0, 2.0], [3.0, 4.0]]]))
        >>> params = fl.fit(fl.Rows(), fisher)
        >>> params.coords.tolist(), params.frame.shape
        ([[2.5], [12.5]], (2, 2))
        >>> fl.Rows().dense(params).diagonal().tolist()  # the member itself
        [2.5, 12.5, 2.5, 12.5]
    """

    frame: Frame
    coords: Tree


class Statistics(NamedTuple):
    """What a structure averages, linear in the Fisher: for its basis (None where it has none), and for its eigenvalues.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> family, G = fl.Rotated(fl.Diagonal(), "L"), jnp.array([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> stats = family.stats(fl.Fisher.from_gradients(G[None]), fl.Params(family.frame(2, 3), None))
        >>> stats.basis.left.tolist(), stats.spectrum.shape  # E[GG^T], and the second moments in the basis
        ([[9.0, 0.0], [0.0, 1.0]], (2, 3))
    """

    basis: Tree
    spectrum: Tree


class EigenvalueBlock(NamedTuple):
    """Eigenvalues of a member, the Fisher's second moments along the same directions, and how often each occurs.

    The eigenvalue None stands for directions outside the family's range, where it is zero.
    """

    eigenvalue: Float[Array, "..."] | None
    moment: Float[Array, "..."]
    multiplicity: float


class Mix(NamedTuple):
    """Weights of an average so far and of a new observation: average <- old * average + new * observation."""

    old: Float[ArrayLike, ""]
    new: Float[ArrayLike, ""]

    def __call__(self, average: Array, observation: Array) -> Array:
        return (self.old * average + self.new * observation).astype(average.dtype)


AVERAGES_ALONE = Mix(1.0, 0.0)


class BasisStep(NamedTuple):
    """How a basis is to move.

    It holds the key to draw from, the weights that mix averages with the Fisher, and whether it is the first step. It also
    holds the coordinates of the last member fitted, through which a Fisher that is added may be seen. These are None before any
    fit, and zero before the first average.

    Examples:
        >>> import jax, jax.numpy as jnp, fimlens as fl
        >>> family, fisher = fl.Rotated(fl.Rows(), "L"), fl.Fisher.from_gradients(jnp.array([[[0.0, 1.0], [2.0, 0.0]]]))
        >>> frame = family.frame(2, 2)
        >>> stats = family.stats(fisher, fl.Params(frame, None))
        >>> moved, _ = family.update_basis(stats, frame, fisher, fl.BasisStep(jax.random.key(0)))
        >>> print(abs(moved.bases.left))  # the second row is larger: its direction leads
        [[0. 1.]
         [1. 0.]]
    """

    key: Array
    mix: Mix = AVERAGES_ALONE
    first: Bool[ArrayLike, ""] = False
    coords: Tree = None

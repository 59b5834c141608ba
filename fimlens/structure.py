"""A structure: a family H of positive semi-definite matrices, and the member nearest to a Fisher.

The only file to read first. A member F~ of a family acts on Vec(G), where G is an (m, n) gradient and Vec
stacks columns. In suitable coordinates X every member is diagonal:

    F~ Vec(G) = Vec( out( eigenvalues * into(G) ) )

so a structure says where it looks (its *frame*: bases, found slowly), what it averages there (its
*statistics*, linear in the Fisher), and which eigenvalues are nearest to them (its *coordinates*, in closed
form). The optimizer, the gap, the solver and the laws are derived from these sentences.
"""

import abc
import enum
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from fimlens._validate import OnlyFields
from fimlens.fisher.fisher import Fisher, unvec
from fimlens.fisher.limits import require_dense
from fimlens.fisher.sample_form import SampleFisher
from fimlens.linalg.spectral_functions import inverse_root, root, scale, scale_with

Tree = Any  # a pytree of arrays whose layout is the structure's own


Symmetry = str | None  # "permutation", "orthogonal" or None


class Claim(enum.Enum):
    """What is true of a closed form.

    Examples:
        >>> import fimlens as fl
        >>> fl.Diagonal().claim is fl.Claim.EXACT
        True
        >>> fl.Rotated(fl.Diagonal(), "LR").claim.value  # SOAP
        'the exact eigenvalues, in a basis that solves an easier problem'
    """

    EXACT = "the global minimiser of ||F~ - F||_F over the family"
    LIMIT = "the global minimiser, once a fixed-point iteration converges"
    ONE_STEP = "the exact eigenvalues, in a basis that solves an easier problem"
    BOUND = "the minimiser of an upper bound only"
    OTHER = "the minimiser of another divergence"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Frame:
    """Where a structure looks: its bases (an empty tuple for a spectrum), and the shape of its matrix.

    Examples:
        >>> import fimlens as fl
        >>> fl.Diagonal().frame(2, 3)
        Frame(bases=(), shape=(2, 3))
        >>> fl.Rotated(fl.Diagonal(), "R").frame(2, 3).bases.right.shape
        (3, 3)
    """

    bases: Tree
    shape: tuple[int, int] = field(metadata={"static": True})


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


class EigenvalueBlock(NamedTuple):
    """Eigenvalues of a member, the Fisher's second moments along the same directions, and how often each occurs."""

    eigenvalue: Float[Array, "..."]
    moment: Float[Array, "..."]
    multiplicity: float


@dataclass(frozen=True)
class Structure(OnlyFields, abc.ABC):
    """A family H of PSD matrices. Frozen, hashable, printable: hyper-parameters are fields, never closures.

    A new family defines the abstract methods. The defaults of the others suit a family without bases; most
    such families are shorter still as a `Spectrum`.

    Raises:
        TypeError: an instance has an attribute that is no compared field, so that nothing would tell it from another.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> family = fl.Rotated(fl.Diagonal(), "L")
        >>> print(family, family.claim.name, family.symmetry)
        Rotated(Diagonal(), L) ONE_STEP ('orthogonal', 'permutation')
        >>> member = family.isotropic(2, 3, scale=0.25)  # I / 4
        >>> print(family.apply(member, jnp.ones((2, 3)), lambda x: x**-0.5).round())
        [[2. 2. 2.]
         [2. 2. 2.]]
    """

    @property
    @abc.abstractmethod
    def claim(self) -> Claim:
        """What is true of `fit`, checked by the laws and by the lens."""

    @property
    def symmetry(self) -> tuple[Symmetry, Symmetry]:
        """The invariance stated, left and right: F of P G Q has F~ turned alike, for P and Q of these kinds."""
        return None, None

    @property
    def rotated_claim(self) -> Claim:
        """What stays true inside a basis that diagonalises the covariances E[GG^T], E[G^T G]."""
        return Claim.ONE_STEP if self.claim in (Claim.EXACT, Claim.LIMIT) else self.claim

    def __str__(self) -> str:
        parts: list[str] = []
        for place, f in enumerate(fields(self)):
            value = getattr(self, f.name)
            if value != f.default:  # by name, once one before it was left out
                parts.append(str(value) if len(parts) == place else f"{f.name}={value}")
        return f"{type(self).__name__}({', '.join(parts)})"

    # --- where it looks -------------------------------------------------------------------------------

    @abc.abstractmethod
    def frame(self, m: int, n: int) -> Frame:
        """The first frame, before any gradient is seen: all that persists beside the statistics."""

    @abc.abstractmethod
    def to_eigenbasis(self, frame: Frame, G: Float[Array, "m n"]) -> Tree:
        """The coordinates X of G, a tree of arrays: an isometry."""

    @abc.abstractmethod
    def from_eigenbasis(self, frame: Frame, X: Tree) -> Float[Array, "m n"]:
        """The adjoint of `to_eigenbasis`, so that out(into(G)) == G."""

    @abc.abstractmethod
    def eigenvalues(self, params: Params) -> Tree:
        """The eigenvalues over X: a prefix of its tree, each array broadcast over its part.

        None stands for a part outside the family's range: its eigenvalue is zero, and so is every f of it.
        """

    # --- how it is fitted -----------------------------------------------------------------------------

    @abc.abstractmethod
    def stats(self, fisher: Fisher, frame: Frame) -> Tree:
        """What is averaged: linear in F. One gradient is a Fisher with N = 1; the caller averages."""

    @abc.abstractmethod
    def fit(self, stats: Tree, frame: Frame) -> Params:
        """The nearest member in this frame, in closed form."""

    def serves_turn(self, stats: Tree) -> Tree:
        """Which statistics serve `update_basis` alone: a tree of True and False over them. Those have a decay and a dtype apart."""
        return jax.tree.map(lambda _: False, stats)

    def start(self, stats: Tree, frame: Frame, fisher: Fisher, key: Array) -> Frame:
        """The first turn, where that differs from the others."""
        return self.update_basis(stats, frame, fisher, key)

    def update_basis(self, stats: Tree, frame: Frame, fisher: Fisher, key: Array) -> Frame:
        """Move the bases, given averaged statistics, the current Fisher (one gradient, in training) and a key."""
        del stats, fisher, key
        return frame

    def carry(self, stats: Tree, old: Frame, new: Frame) -> Tree:
        """What becomes of statistics that were measured in the old frame. By default they are kept."""
        del old, new
        return stats

    def carried_by(self, left: Float[Array, "m m"], right: Float[Array, "n n"] | None, stats: Tree) -> Tree:
        """What becomes of statistics of G when left G right^T is seen in its place, rotations or parts of them (None: the
        identity). By default they are kept."""
        del left, right
        return stats

    def converged_basis(self, fisher: Fisher, key: Array) -> Frame:
        """The frame at rest: turned until it no longer moves."""
        frame = jax.tree.map(lambda U: U.astype(fisher.dtype), self.frame(*fisher.shape))
        return turn_until_at_rest(self, frame, fisher, key) if jax.tree.leaves(frame) else frame

    # --- the second witness, and the solver's way in -----------------------------------------------------

    @abc.abstractmethod
    def dense(self, params: Params) -> Float[Array, "mn mn"]:
        """The member written out as the paper writes it. Never by way of `to_eigenbasis`, `from_eigenbasis` or `apply`."""

    def retract(self, frame: Frame, z: Frame) -> Frame:
        """The frame moved by any z of the frame's layout; z = 0 leaves it. Redundancy is allowed."""
        del z
        return frame

    def chart(self, z: Params, params: Params) -> Params:
        """Any z of the layout of `params` names a member; z = 0 names `params` itself.

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
        pairs = scale_with(lambda value, V: (jnp.broadcast_to(value, V.shape), V), self.eigenvalues(params), moments)
        return [EigenvalueBlock(value, V, 1.0) for value, V in jax.tree.leaves(pairs, is_leaf=lambda x: isinstance(x, tuple))]

    def objective(self, params: Params, fisher: Fisher) -> Float[Array, ""]:
        """What `fit` minimises, up to a constant of the Fisher: ||F~ - F||^2 - ||F||^2 unless overridden."""
        return excess(self.eigenvalue_blocks(params, fisher))

    def isotropic(self, m: int, n: int, scale: float | Array = 1.0) -> Params:
        """The member nearest to F = scale * I (which is that itself, on the family's range); for small matrices."""
        require_dense("isotropic", "Take a smaller matrix.", (m, n))
        units = jnp.sqrt(m * n * scale) * jax.vmap(lambda e: unvec(e, (m, n)))(jnp.eye(m * n))
        frame = self.frame(m, n)
        return self.fit(self.stats(SampleFisher("identity", "mean over unit matrices", units), frame), frame)


def require_structure(call: str, inner: object) -> None:
    """Refuse what is not a structure."""
    if not isinstance(inner, Structure):
        raise TypeError(f"{call}: expected a structure first, such as fl.Diagonal(); got {inner!r}. Classes need ().")


def excess(levels: list[EigenvalueBlock]) -> Float[Array, ""]:
    """||F~ - F||^2 - ||F||^2, from the levels of a member."""
    return sum((c * jnp.sum(value**2 - 2 * value * V) for value, V, c in levels), start=jnp.zeros([]))


def turn_until_at_rest(structure: Structure, frame: Frame, fisher: Fisher, key: Array, turns: int = 1000) -> Frame:
    """Turn the frame against one Fisher until its bases move by no more than rounding."""

    def moved(state: tuple[Frame, Array, Array]) -> Array:
        _, change, count = state
        dtype = jnp.result_type(*jax.tree.leaves(frame))
        return (count < turns) & (change > 100 * jnp.finfo(dtype).eps)

    def step(state: tuple[Frame, Array, Array]) -> tuple[Frame, Array, Array]:
        old, _, count = state
        new = structure.update_basis(structure.stats(fisher, old), old, fisher, jax.random.fold_in(key, count))
        distances = [jnp.abs(a - b).max() for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)]
        return new, jnp.stack(distances).max(), count + 1

    start = (frame, jnp.asarray(jnp.inf, jnp.result_type(*jax.tree.leaves(frame))), 0)
    return jax.lax.while_loop(moved, step, start)[0]

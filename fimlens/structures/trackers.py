"""Trackers: where a basis of one side of a matrix comes from, and how it is followed.

A tracker is a field of the structure whose basis it finds: r leading directions of a side of length m (all m for
`Rotated`). It names an average for the basis to follow, moves the basis, and alone draws random numbers. Here G stands
with the tracked side first, and U (m, r) is the basis.
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from fimlens._validate import require_decay
from fimlens.fisher.fisher import Fisher
from fimlens.fisher.sample_form import SampleFisher
from fimlens.linalg.decompositions import eigenbasis, power_step, singular_basis, square_root, unit_of
from fimlens.structure import BasisStep
from fimlens.structures.move import Turn

Basis = Float[Array, "m r"]


Average = Float[Array, "..."] | None  # of (k, k) matrices


class Side(NamedTuple):
    """A Fisher seen from one side of its matrix: as it is, or transposed."""

    fisher: Fisher
    right: bool = False

    def covariance(self) -> Float[Array, "m m"]:
        """E[GG^T]."""
        return self.fisher.right() if self.right else self.fisher.left()

    def root(self) -> Float[Array, "m k"]:
        """H with H H^T = E[GG^T]: the samples side by side."""
        if not isinstance(self.fisher, SampleFisher):
            return square_root(self.covariance())
        G = self.fisher.samples.mT if self.right else self.fisher.samples
        return G.swapaxes(0, 1).reshape(G.shape[1], -1) / len(G) ** 0.5

    def singular(self, rank: int) -> Basis:
        """The leading left singular vectors of H."""
        if rank == self.fisher.shape[self.right]:
            return self.fisher.right_singular() if self.right else self.fisher.left_singular()
        return singular_basis(self.root(), rank)

    def projected(self, U: Basis) -> "Side":
        """The same side of the Fisher of U^T G (of G U on the right)."""
        return Side(self.fisher.map(lambda G: G @ U if self.right else U.T @ G), self.right)


class SideAverages(NamedTuple):
    """What is averaged for the left and for the right basis, and for the bases of the structure within."""

    left: Average
    right: Average
    inner: Any


@dataclass(frozen=True)
class Tracker(abc.ABC):
    """Base class of trackers; subclass it to find the basis of `Rotated` or `LowRank` in a way of your own.

    A tracker is frozen and has no state of its own: what lasts is in the frame and in the averages. Only `update` must be
    defined; `observe` names the average that the basis follows, if it follows one.

    Examples:
        >>> import fimlens as fl
        >>> class First(fl.Tracker):  # the basis of the first gradient, for ever
        ...     def update(self, average, kept, side, step):
        ...         return jax.lax.cond(step.first, lambda: side.singular(kept.shape[1]), lambda: kept)
        >>> import jax, jax.numpy as jnp
        >>> tx = fl.scale_by_structure(fl.Rotated(fl.Diagonal(), "L", First()))
        >>> _, state = tx.update(jnp.diag(jnp.array([1.0, 2.0])), tx.init(jnp.ones((2, 2))))
        >>> print(abs(state.bases["2 x 2"].left[0]))
        [[0. 1.]
         [1. 0.]]
    """

    orthonormal: ClassVar[bool] = True  # whether U^T U = I, so that averages can be turned from one basis into the next
    averages_covariance: ClassVar[bool] = False  # whether the average is E[GG^T] itself, which states moments in any basis
    # Without annotations: a ClassVar would take the place of a subclass's field of that name in the order of arguments.
    b3 = None  # decay of the average; None for the transform's b2
    seed = None  # of the key to draw from; None where nothing is drawn

    def init(self, m: int, r: int) -> Any:
        """What stands for U in an optimizer's state before any gradient is seen."""
        return jnp.eye(m, r)

    def basis(self, kept: Any, m: int, r: int) -> Basis:
        """U, from what stands for it in the state."""
        del m, r
        return kept

    def observe(self, side: Side, lead: Callable[[], Side]) -> Average:
        """What is averaged for the basis, linear in F, given G and U^T G; None where the basis follows no average."""
        del side, lead
        return None

    @abc.abstractmethod
    def update(self, average: Average, kept: Any, side: Side, step: BasisStep) -> Any:
        """What stands for the new U, given the average, which `step.mix` may mix with the Fisher, and the old one."""

    def transport(self, T: Turn, average: Average) -> Average:
        """The average in the coordinates of the new U. By default it is measured in those of G, and stays."""
        del T
        return average


@dataclass(frozen=True)
class Eigen(Tracker):
    """The leading eigenvectors of the averaged covariance, computed anew at each update: m^2 numbers, and exact.

    Args:
        b3: decay of the average of GG^T; by default the transform's b2.

    Examples:
        >>> import fimlens as fl
        >>> fl.Rotated(fl.Diagonal(), "L") == fl.Rotated(fl.Diagonal(), "L", fl.Eigen())  # the default
        True
        >>> fl.state_size(fl.Rotated(fl.Diagonal(), "L", fl.Eigen()), (3, 4))  # a basis and a covariance, 9 each, and 12
        30
    """

    averages_covariance: ClassVar[bool] = True
    b3: Float[ArrayLike, ""] | None = None

    def __post_init__(self) -> None:
        require_decay(type(self).__name__, "b3", self.b3)

    def observe(self, side: Side, lead: Callable[[], Side]) -> Float[Array, "m m"]:
        del lead
        return side.covariance()

    def update(self, average: Float[Array, "m m"], kept: Basis, side: Side, step: BasisStep) -> Basis:
        return eigenbasis(_mixed(average, side, step), kept.shape[1])


@dataclass(frozen=True)
class PowerStep(Eigen):
    """Eigenvectors at first, then one QR power step an update, U <- QR(C U): cheaper than `Eigen`, and nearly as good.

    Source: Vyas et al., SOAP, 2024, Algorithm 4. Vectors enter QR by their present eigenvalues, as in the authors' code.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> tx = fl.scale_by_structure(fl.Rotated(fl.Diagonal(), "L", fl.PowerStep()), update_interval=1)
        >>> state = tx.init(jnp.ones((2, 3)))
        >>> _, state = tx.update(jnp.array([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), state)
        >>> print(abs(state.bases["2 x 3"].left[0]))  # eigenvectors of GG^T
        [[1. 0.]
         [0. 1.]]
    """

    def update(self, average: Float[Array, "m m"], kept: Basis, side: Side, step: BasisStep) -> Basis:
        C = _mixed(average, side, step)
        start = partial(eigenbasis, C, kept.shape[1])
        return start_or_follow(step.first, start, lambda: power_step(C / unit_of(C) @ kept, kept))


@dataclass(frozen=True)
class Singular(Tracker):
    """The leading singular vectors of the current gradient; nothing is averaged. AdaDiag ([D]), GaLore, Apollo-svd.

    Examples:
        >>> import fimlens as fl
        >>> fl.state_size(fl.Rotated(fl.Diagonal(), "L", fl.Singular()), (3, 4))  # a basis, 9, and 12; no covariance
        21
    """

    def update(self, average: None, kept: Basis, side: Side, step: BasisStep) -> Basis:
        del average, step
        return side.singular(kept.shape[1])


@dataclass(frozen=True)
class RandomProjection(Tracker):
    """U of entries N(0, 1/r), drawn anew at each update; its key alone is kept. Apollo (Zhu et al., 2024).

    Args:
        seed: of the key that projections draw from.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> family = fl.LowRank(fl.Diagonal(), 2, fl.Drop(), tracker=fl.RandomProjection())
        >>> from fimlens.transforms.compensation import column_ratios
        >>> tx = fl.scale_by_low_rank(family, compensation=column_ratios, lift=False)  # it measures, and moves nothing
        >>> tx.init(jnp.ones((3, 4))).stacks["3 x 4"].left.basis.shape  # a key, and no basis
        (1, 2)
    """

    orthonormal: ClassVar[bool] = False
    seed: Int[ArrayLike, ""] = 0

    def init(self, m: int, r: int) -> Array:
        del m, r
        return jax.random.PRNGKey(0)

    def basis(self, kept: Array, m: int, r: int) -> Basis:
        return jax.random.normal(kept, (m, r)) / r**0.5

    def update(self, average: None, kept: Array, side: Side, step: BasisStep) -> Array:
        del average, kept, side
        return step.key


def start_or_follow(first: Any, start: Callable[[], Basis], follow: Callable[[], Basis]) -> Basis:
    """start() at the first step, else follow(); one of them alone is compiled where it is known which."""
    if isinstance(first, bool):
        return start() if first else follow()
    return jax.lax.cond(first, start, follow)


def require_tracker(call: str, tracker: object, *, orthonormal: bool = False) -> None:
    """Refuse what is no tracker and, where bases must be orthonormal, one whose bases are not.

    Raises:
        TypeError: it is no tracker.
        ValueError: its bases are not orthonormal.
    """
    if not isinstance(tracker, Tracker):
        raise TypeError(f"{call}: expected a tracker such as fl.SubspaceIteration(leading=40); got {tracker!r}.")
    if orthonormal and not tracker.orthonormal:
        raise ValueError(f"{call}: bases must be orthonormal, and those of {tracker} are not. Only scale_by_low_rank takes it.")


def _mixed(average: Float[Array, "m m"], side: Side, step: BasisStep) -> Float[Array, "m m"]:
    """The average with the Fisher in it. Weights that are plain numbers spare the product where nothing is added."""
    return average if isinstance(step.mix.new, float) and step.mix.new == 0 else step.mix(average, side.covariance())

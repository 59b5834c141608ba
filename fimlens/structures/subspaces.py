"""Subspaces: how the r leading directions of a matrix's shorter side are found, followed, and in part switched.

Everything here is of one matrix with its shorter side first: G (m, n), m <= n, and U (m, r). What a tracker keeps is a
pytree of its own, which holds U unless U can be drawn again from less.
"""

import abc
from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from fimlens._validate import require_number
from fimlens.linalg.bases import complement, eigenbasis, fix_signs, power_step, singular_bases, square_root, unit_of
from fimlens.linalg.decompositions import orthonormal

Matrix = Float[Array, "m n"]


Basis = Float[Array, "m r"]


SWITCHES = ("complement", "full", "gaussian", "gaussian-mix", "none")


class Subspace(NamedTuple):
    """U, and the average that a tracker follows, if any: (r, r) in the coordinates of U, or (m, m)."""

    basis: Basis
    covariance: Float[Array, "k k"] | None = None


@dataclass(frozen=True)
class SubspaceTracker(abc.ABC):
    """Frozen and without state of its own: what it keeps is passed in and out."""

    orthonormal: ClassVar[bool] = True  # whether U^T U = I, so that moments can be turned from one basis into the next

    def blank(self, m: int, r: int) -> Any:
        """What is kept before any gradient is seen."""
        return Subspace(jnp.eye(m, r))

    def basis(self, kept: Any, m: int, r: int) -> Basis:
        """U."""
        return kept.basis

    def start(self, kept: Any, G: Matrix, key: Array) -> Any:
        """At the first gradient."""
        return self.update_basis(kept, G, key)

    @abc.abstractmethod
    def update_basis(self, kept: Any, G: Matrix, key: Array) -> Any:
        """At a refresh, before the update, the current gradient seen."""

    def follow(self, kept: Any, G: Matrix, sigma: Float[Array, "r n"]) -> Any:
        """At every step, after the refresh if there is one; sigma = U^T G."""
        return kept

    def carried_by(self, T: Float[Array, "r r"], kept: Any) -> Any:
        """What is kept in the coordinates of U, in those of the next one: T = U_new^T U_old."""
        return kept

    def forgotten(self, kept: Any) -> Any:
        """Without what is kept in the coordinates of the last U."""
        return kept


@dataclass(frozen=True)
class AveragedCovariance(SubspaceTracker):
    """The leading eigenvectors of the average of GG^T: m^2 numbers, and a product of their size at every step.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> tx = fl.scale_by_low_rank(fl.LowRank(fl.Diagonal(), 2), fl.AveragedCovariance(b3=0.99))
        >>> kept = tx.init(jnp.ones((3, 4))).subspaces["3 x 4"]
        >>> kept.basis.shape, kept.covariance.shape
        ((1, 3, 2), (1, 3, 3))
    """

    b3: Float[ArrayLike, ""] = 0.999

    def __post_init__(self) -> None:
        require_number("AveragedCovariance", "b3", self.b3, 0, 1)

    def blank(self, m: int, r: int) -> Subspace:
        return Subspace(jnp.eye(m, r), jnp.zeros((m, m)))

    def update_basis(self, kept: Subspace, G: Matrix, key: Array) -> Subspace:
        seen = self.follow(kept, G, G).covariance
        return kept._replace(basis=eigenbasis(seen, kept.basis.shape[1]))

    def follow(self, kept: Subspace, G: Matrix, sigma: Float[Array, "r n"]) -> Subspace:
        return kept._replace(covariance=self.b3 * kept.covariance + (1 - self.b3) * G @ G.T)


@dataclass(frozen=True)
class SubspaceIteration(SubspaceTracker):
    """[G]'s tracking and switching: one subspace iteration on Q = b3 U Q~ U^T + (1 - b3) G G^T at a refresh.

    Q~, the average of sigma sigma^T, is r x r; Q is never formed, only a factor of it, (m, n + r), whose singular vectors are
    those of Q without the rounding of squares. The `leading` ones stay, and the r - leading others make way for directions
    drawn by `switch`:

    - "complement" ([G]'s): uniformly, without replacement, from an orthonormal basis of the complement of all r;
    - "full": likewise, from the r - leading others and that basis;
    - "gaussian-mix": a uniformly random subspace of the complement of the leading ones;
    - "gaussian": all r directions at random, the leading ones as well;
    - "none": nothing is switched.

    A complement smaller than r - leading is taken whole, and more eigenvectors stay. With b3 = 0 nothing is tracked.
    Repaired ([G] Algorithm 10): the eigenvectors of the r x r problem are lifted; the first basis is that of the leading left
    singular vectors of the first gradient, as an iteration from zero is void; signs are fixed.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> alice = fl.scale_by_low_rank(fl.LowRank(fl.Diagonal(), 2), fl.SubspaceIteration(leading=1))
        >>> kept = alice.init(jnp.ones((3, 4))).subspaces["3 x 4"]
        >>> kept.basis.shape, kept.covariance.shape  # U, and Q~
        ((1, 3, 2), (1, 2, 2))
        >>> fl.SubspaceIteration(leading=1, b3=0.0).blank(3, 2).covariance is None  # nothing is tracked
        True
    """

    leading: int
    b3: Float[ArrayLike, ""] = 0.999
    switch: str = "complement"

    def __post_init__(self) -> None:
        if self.switch not in SWITCHES:
            raise ValueError(f"SubspaceIteration: switch is one of {', '.join(map(repr, SWITCHES))}; got {self.switch!r}")
        if isinstance(self.leading, bool) or not isinstance(self.leading, Integral):
            raise TypeError(f"SubspaceIteration: leading is a whole number; got {self.leading!r}.")
        if self.leading < 0:
            raise ValueError(f"SubspaceIteration: leading is a number of directions, at least 0; got {self.leading}")
        require_number("SubspaceIteration", "b3", self.b3, 0, 1)

    @property
    def _tracks(self) -> bool:
        return not isinstance(self.b3, float | int) or self.b3 != 0

    def blank(self, m: int, r: int) -> Subspace:
        return Subspace(jnp.eye(m, r), jnp.zeros((r, r)) if self._tracks else None)

    def start(self, kept: Subspace, G: Matrix, key: Array) -> Subspace:
        return kept._replace(basis=self._switched(_singular(G, kept.basis.shape[1]), key))

    def update_basis(self, kept: Subspace, G: Matrix, key: Array) -> Subspace:
        U, H = kept.basis, (1 - self.b3) ** 0.5 * G
        if kept.covariance is not None:
            H = jnp.concatenate([H, self.b3**0.5 * U @ square_root(kept.covariance)], 1)
        H = H / unit_of(H)  # Q = H H^T
        V = power_step(H @ (H.T @ U), U)
        V = fix_signs(V @ _singular(V.T @ H, V.shape[1]))
        return kept._replace(basis=self._switched(V, key))

    def _switched(self, V: Basis, key: Array) -> Basis:
        m, r = V.shape
        leading = min(self.leading, r)
        if self.switch == "none" or m == r:
            return V
        if self.switch.startswith("gaussian"):
            stay = V[:, : 0 if self.switch == "gaussian" else leading]
            drawn = jax.random.normal(key, (m, r - stay.shape[1]), V.dtype)
            return fix_signs(orthonormal(jnp.concatenate([stay, drawn], 1)))
        if self.switch == "full":
            drawn = jax.random.permutation(key, m - leading)[: r - leading]
            own = V[:, jnp.minimum(leading + drawn, r - 1)]
            return V.at[:, leading:].set(jnp.where(drawn < r - leading, own, complement(V, drawn - (r - leading))))
        count = min(r - leading, m - r)
        return V.at[:, r - count :].set(complement(V, jax.random.permutation(key, m - r)[:count]))

    def follow(self, kept: Subspace, G: Matrix, sigma: Float[Array, "r n"]) -> Subspace:
        if kept.covariance is None:
            return kept
        return kept._replace(covariance=self.b3 * kept.covariance + (1 - self.b3) * sigma @ sigma.T)

    def carried_by(self, T: Float[Array, "r r"], kept: Subspace) -> Subspace:
        return kept if kept.covariance is None else kept._replace(covariance=T @ kept.covariance @ T.T)

    def forgotten(self, kept: Subspace) -> Subspace:
        return jax.tree.map(jnp.zeros_like, kept)._replace(basis=kept.basis)


@dataclass(frozen=True)
class CurrentGradient(SubspaceTracker):
    """The leading left singular vectors of the current gradient. GaLore (Zhao et al., 2024), Apollo-svd.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> galore = fl.scale_by_low_rank(fl.LowRank(fl.Diagonal(), 2, fl.Drop()), fl.CurrentGradient())
        >>> kept = galore.init(jnp.ones((3, 4))).subspaces["3 x 4"]
        >>> kept.basis.shape, kept.covariance
        ((1, 3, 2), None)
    """

    def update_basis(self, kept: Subspace, G: Matrix, key: Array) -> Subspace:
        return Subspace(_singular(G, kept.basis.shape[1]))


class Drawn(NamedTuple):
    """The key that a basis is drawn from."""

    key: Array


@dataclass(frozen=True)
class RandomProjection(SubspaceTracker):
    """U of entries N(0, 1/r), drawn anew at each refresh; its key alone is kept. Apollo (Zhu et al., 2024).

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> family = fl.LowRank(fl.Diagonal(), 2, fl.Drop())
        >>> tx = fl.scale_by_low_rank(family, fl.RandomProjection(), lift=False)  # it measures, and moves nothing
        >>> tx.init(jnp.ones((3, 4))).subspaces["3 x 4"].key.shape  # no basis is kept
        (1, 2)
    """

    orthonormal: ClassVar[bool] = False

    def blank(self, m: int, r: int) -> Drawn:
        return Drawn(jax.random.PRNGKey(0))

    def basis(self, kept: Drawn, m: int, r: int) -> Basis:
        return jax.random.normal(kept.key, (m, r)) / r**0.5

    def update_basis(self, kept: Drawn, G: Matrix, key: Array) -> Drawn:
        return Drawn(key)


def _singular(G: Matrix, r: int) -> Basis:
    return singular_bases(G, r, r)[0]

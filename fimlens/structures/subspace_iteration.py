"""Subspace iteration: a tracker of a few leading directions, of which part makes way for directions drawn at random.

Switching lets training see all of the matrix in time."""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from fimlens._validate import require_number
from fimlens.linalg.decompositions import complement, fix_signs, orthonormal, power_step, singular_basis, square_root, unit_of
from fimlens.structure import BasisStep
from fimlens.structures.move import Turn, turned_covariance
from fimlens.structures.trackers import Average, Basis, Side, Tracker, start_or_follow

SWITCHES = ("complement", "full", "gaussian", "gaussian-mix", "none")


@dataclass(frozen=True)
class SubspaceIteration(Tracker):
    """[G]'s tracking and switching: one subspace iteration on Q = b3 U Q~ U^T + (1 - b3) G G^T at each update.

    Q~, the average of sigma sigma^T with sigma = U^T G, is r x r. Q is never formed, only a factor of it, (m, n + r),
    whose singular vectors are those of Q without the rounding of squares. The `leading` ones stay. With b3 = 0 nothing is
    tracked. The other r - leading make way for directions drawn by `switch`:

    - "complement" ([G]'s): uniformly, without replacement, from an orthonormal basis of the complement of all r;
    - "full": likewise, from those r - leading and that basis;
    - "gaussian-mix": a uniformly random subspace of the complement of the leading ones;
    - "gaussian": all r directions are drawn at random, the leading ones as well;
    - "none": nothing is exchanged.

    A complement smaller than r - leading is taken whole, and more of the old directions stay.

    Args:
        leading: how many leading directions a switch leaves in place.
        b3: decay of Q~.
        switch: "complement" ([G]'s), "full", "gaussian-mix", "gaussian" or "none".
        seed: of the key that switches draw from.

    It differs from [G] Algorithm 10 in three ways. The basis is U V, not V. The first basis holds the leading left singular
    vectors of the first gradient, because an iteration from zero finds nothing. Signs are fixed.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> family = fl.LowRank(fl.Diagonal(), 2, tracker=fl.SubspaceIteration(leading=1))
        >>> side = fl.scale_by_low_rank(family).init(jnp.ones((3, 4))).stacks["3 x 4"].left
        >>> side.basis.shape, side.average.shape  # U, and Q~
        ((1, 3, 2), (1, 2, 2))
    """

    leading: int
    b3: Float[ArrayLike, ""] = 0.999
    switch: str = "complement"
    seed: Int[ArrayLike, ""] = 0

    def __post_init__(self) -> None:
        require_switch("SubspaceIteration", self.switch, self.leading)
        require_number("SubspaceIteration", "b3", self.b3, 0, 1)

    def observe(self, side: Side, lead: Callable[[], Side]) -> Float[Array, "r r"] | None:
        del side
        return None if isinstance(self.b3, float | int) and self.b3 == 0 else lead().covariance()

    def update(self, average: Float[Array, "r r"] | None, kept: Basis, side: Side, step: BasisStep) -> Basis:
        r = kept.shape[1]
        V = start_or_follow(step.first, lambda: side.singular(r), lambda: self._iterate(average, kept, side, step))
        return _switched(V, self.switch, self.leading, step.key)

    def _iterate(self, average: Float[Array, "r r"] | None, kept: Basis, side: Side, step: BasisStep) -> Basis:
        H = step.mix.new**0.5 * side.root()
        if average is not None:
            H = jnp.concatenate([H, step.mix.old**0.5 * kept @ square_root(average)], 1)
        H = H / unit_of(H)  # Q = H H^T; in this unit squares stay in range
        V = power_step(H @ (H.T @ kept), kept)
        return fix_signs(V @ singular_basis(V.T @ H, V.shape[1]))

    def transport(self, T: Turn, average: Average) -> Average:
        return None if average is None else turned_covariance(T, average)


def _switched(V: Basis, switch: str, leading: int, key: Array) -> Basis:
    """Return V with its last r - leading directions exchanged, as `SubspaceIteration` describes."""
    m, r = V.shape
    leading = min(leading, r)
    if switch == "none" or m == r:
        return V
    if switch.startswith("gaussian"):
        stay = V[:, : 0 if switch == "gaussian" else leading]
        drawn = jax.random.normal(key, (m, r - stay.shape[1]), V.dtype)
        return fix_signs(orthonormal(jnp.concatenate([stay, drawn], 1)))
    if switch == "full":
        drawn = jax.random.permutation(key, m - leading)[: r - leading]
        own = V[:, jnp.minimum(leading + drawn, r - 1)]
        return V.at[:, leading:].set(jnp.where(drawn < r - leading, own, complement(V, drawn - (r - leading))))
    count = min(r - leading, m - r)
    return V.at[:, r - count :].set(complement(V, jax.random.permutation(key, m - r)[:count]))


def require_switch(call: str, switch: str, leading: Any) -> None:
    """Refuse an unknown switch, and a number of leading directions that is none.

    Raises:
        TypeError: `leading` is not a whole number.
        ValueError: it is negative, or there is no such switch.
    """
    if switch not in SWITCHES:
        raise ValueError(f"{call}: switch is one of {', '.join(map(repr, SWITCHES))}; got {switch!r}")
    if isinstance(leading, bool) or not isinstance(leading, Integral):
        raise TypeError(f"{call}: leading is a whole number; got {leading!r}.")
    if leading < 0:
        raise ValueError(f"{call}: leading is a number of directions, at least 0; got {leading}")

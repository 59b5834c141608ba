"""The subspaces of stacked matrices: a tracker mapped over a stack, and what a refresh makes of all that is kept in them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from fimlens._validate import require_number
from fimlens.linalg.bases import above_rounding
from fimlens.structure import Structure, Tree
from fimlens.structures.subspaces import SubspaceTracker
from fimlens.transforms.state import StructureState, carried_by

Stack = Float[Array, "k m n"]


MOMENTS = ("keep", "rotate", "reset")


ROUNDING = 84  # eps of a square, 1e-5 in float32: of a difference of squares, what cancellation may leave


KEPT = 2  # eps of the dtype that a basis is kept in: how far off squares of coordinates in it may be


@dataclass(frozen=True)
class Subspaces:
    """One side of each matrix of a stack (k, m, n): its subspaces of rank r, of the side that comes first."""

    tracker: SubspaceTracker
    moments: str
    dtype: DTypeLike | None

    def zero_state(self, G: Stack, r: int) -> Tree:
        """What is kept before any gradient is seen."""
        kept = self.tracker.blank(G.shape[1], r)
        kept = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(G), *x.shape)), kept)
        return _in_dtype(kept, self.dtype or G.dtype)

    def bases(self, kept: Tree, G: Stack, r: int) -> Float[Array, "k m r"]:
        """U of each."""
        return jax.vmap(lambda kept: self.tracker.basis(kept, G.shape[1], r))(kept).astype(G.dtype)

    def refreshed(self, how: Callable[..., Any], old: Tree, G: Stack, r: int, key: Array) -> tuple[Tree, Array | None]:
        """What is kept after the tracker's `start` or `update_basis`, and T = U_new^T U_old where moments are rotated."""
        new, T = jax.vmap(how)(_in_dtype(old, G.dtype), G, jax.random.split(key, len(G))), None
        if self.moments == "rotate":
            T = above_rounding(self.bases(new, G, r).mT @ self.bases(old, G, r), jnp.ones([], G.dtype))
            new = jax.vmap(self.tracker.carried_by)(T, new)
        if self.moments == "reset":
            new = jax.vmap(self.tracker.forgotten)(new)
        return _like(old, new), T

    def followed(self, kept: Tree, G: Stack, sigma: Float[Array, "k r n"]) -> Tree:
        """What is kept after a step."""
        return _like(kept, jax.vmap(self.tracker.follow)(_in_dtype(kept, G.dtype), G, sigma))

    def remaining(self, square: Array, whole: Array) -> Array:
        """A difference of squares, 0 where of `whole` it may be but rounding: of the arithmetic, or of the bases as kept."""
        eps = max(ROUNDING * jnp.finfo(whole.dtype).eps, KEPT * jnp.finfo(self.dtype or whole.dtype).eps)
        return jnp.where(square > eps * whole, square, square * 0)  # NaN stays NaN

    def moved(
        self, structure: Structure, inner: optax.GradientTransformation, state: StructureState, leads: PyTree, *turns: PyTree
    ) -> StructureState:
        """The inner transform's state after a refresh, that of `structure` over the leads."""
        if self.moments == "keep":
            return state
        return inner.init(leads) if self.moments == "reset" else carried_by(structure, state, leads, *turns)


def require_options(
    call: str, tracker: Any, moments: str, update_interval: Any, b_tail: Any, alpha_c: Any, gamma: Any, eps: Any
) -> None:
    """Refuse what is no tracker, and options that are out of their range.

    Raises:
        TypeError: it is no tracker.
        ValueError: an option is.
    """
    if not isinstance(tracker, SubspaceTracker):
        raise TypeError(f"{call}: expected a tracker such as fl.SubspaceIteration(leading=40); got {tracker!r}.")
    if moments not in MOMENTS:
        raise ValueError(f"{call}: moments is one of {', '.join(map(repr, MOMENTS))}; got {moments!r}")
    if moments == "rotate" and not tracker.orthonormal:
        raise ValueError(f'{call}: one basis of {tracker} says nothing of the next; take moments="keep" or "reset".')
    require_number(call, "update_interval", update_interval, 1, whole=True)
    require_number(call, "the decay of what is outside", b_tail, 0, 1)
    require_number(call, "alpha_c", alpha_c, 0)
    require_number(call, "gamma", gamma, 1)
    require_number(call, "eps", eps, 0)


def _in_dtype(kept: Tree, dtype: DTypeLike) -> Tree:
    """In that dtype, but for keys."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, kept)


def _like(old: Tree, new: Tree) -> Tree:
    return jax.tree.map(lambda x, like: x.astype(like.dtype), new, old)

"""The fixed point of an alternation, iterated until it moves no more."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

Tree = Any  # a pytree of arrays


def fixed_point(step: Callable[[Tree], Tree], start: Tree, steps: int = 20_000) -> Tree:
    """Return the limit of start, step(start), step(step(start)), ...: iterated until no array moves by more than rounding.

    Args:
        step: the map.
        start: a tree of arrays.
        steps: bound on the number of steps, for maps whose limit lies on the edge and is never reached.
    """

    def moves(state: tuple[Tree, Array, Array]) -> Array:
        _, change, count = state
        return (count < steps) & (change > 4 * jnp.finfo(change.dtype).eps)

    def advance(state: tuple[Tree, Array, Array]) -> tuple[Tree, Array, Array]:
        old, _, count = state
        new = step(old)
        return new, jnp.stack(jax.tree.leaves(jax.tree.map(_change, old, new))).max(), count + 1

    dtype = jnp.result_type(*jax.tree.leaves(start))
    return jax.lax.while_loop(moves, advance, (start, jnp.asarray(jnp.inf, dtype), 0))[0]


def _change(old: Array, new: Array) -> Array:
    """The largest change, relative to the largest entry."""
    size = jnp.abs(new).max()
    return jnp.abs(new - old).max() / jnp.where(size > 0, size, 1)

"""The fixed point of an alternation, iterated until it moves no more."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

Tree = Any  # a pytree of arrays


PATIENCE = 200  # steps near the limit in which the change does not halve, before it passes for rounding


def fixed_point(step: Callable[[Tree], Tree], start: Tree, steps: int = 20_000) -> Tree:
    """Return the limit of start, step(start), step(step(start)), ...: iterated until no array moves by more than rounding.

    Rounding is 4 eps, or whatever a change of less than sqrt(eps) no longer falls below: an ill-conditioned step amplifies it.

    Args:
        step: the map.
        start: a tree of arrays.
        steps: bound on the number of steps, for maps whose limit lies on the edge and is never reached.
    """
    dtype = jnp.result_type(*jax.tree.leaves(start))
    eps = jnp.finfo(dtype).eps

    def moves(state: tuple[Tree, Array, Array, Array, Array]) -> Array:
        _, change, _, idle, count = state
        return (count < steps) & (idle < PATIENCE) & (change > 4 * eps)

    def advance(state: tuple[Tree, Array, Array, Array, Array]) -> tuple[Tree, Array, Array, Array, Array]:
        old, _, least, idle, count = state
        new = step(old)
        change = jnp.stack(jax.tree.leaves(jax.tree.map(_change, old, new))).max()
        halved = change <= least / 2
        idle = jnp.where(halved | (change > jnp.sqrt(eps)), 0, idle + 1)
        return new, change, jnp.where(halved, change, least), idle, count + 1

    far = jnp.asarray(jnp.inf, dtype)
    return jax.lax.while_loop(moves, advance, (start, far, far, 0, 0))[0]


def _change(old: Array, new: Array) -> Array:
    """The largest change, relative to the largest entry."""
    size = jnp.abs(new).max()
    return jnp.abs(new - old).max() / jnp.where(size > 0, size, 1)

"""Averages of updates, and Adam with guards."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from fimlens._validate import require_real
from fimlens.transforms.norms import _wide
from fimlens.transforms.stacking import clip_for_squaring


class MomentumState(NamedTuple):
    """An exponential average of the updates, and its step."""

    count: Int[Array, ""]
    momentum: PyTree


def average_updates(
    decay: Float[ArrayLike, ""], *, nesterov: bool = False, dtype: DTypeLike | None = None
) -> optax.GradientTransformation:
    """The bias-corrected exponential average of the updates; with `nesterov`, looked at one step ahead.

    As in Optax's Adam and Muon: b m_t / (1 - b^(t+1)) + (1 - b) g_t / (1 - b^t) (Dozat, 2016).
    """

    def init(params: PyTree) -> MomentumState:
        require_real("average_updates", params)
        return MomentumState(jnp.zeros([], jnp.int32), jax.tree.map(lambda x: jnp.zeros_like(x, dtype=dtype), params))

    def update(updates: PyTree, state: MomentumState, params: PyTree = None) -> tuple[PyTree, MomentumState]:
        del params
        count = optax.safe_increment(state.count)
        averaged = optax.tree.update_moment(updates, state.momentum, decay, 1)
        if nesterov:
            ahead, now = (optax.tree.bias_correction(x, decay, t) for x, t in ((averaged, count + 1), (updates, count)))
            moved = optax.tree.update_moment(now, ahead, decay, 1)
        else:
            moved = optax.tree.bias_correction(averaged, decay, count)
        kept = jax.tree.map(lambda old, new: new.astype(old.dtype), state.momentum, averaged)
        return jax.tree.map(lambda u, g: u.astype(g.dtype), moved, updates), MomentumState(count, kept)

    return optax.GradientTransformation(init, update)


def keeping_dtypes(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Let the state of `tx` keep the dtypes that it starts with, when gradients are of another than the weights."""

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        moved, new = tx.update(updates, state, params)
        return moved, jax.tree.map(lambda old, x: x.astype(old.dtype), state, new)

    return optax.GradientTransformation(tx.init, update)


def guarded_adam(*, nesterov: bool = False) -> optax.GradientTransformation:
    """Optax's Adam in float32 at least, of gradients clipped where their squares would leave it."""
    adam = keeping_dtypes(optax.scale_by_adam(nesterov=nesterov))

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        within = jax.tree.map(lambda G: G if jnp.iscomplexobj(G) else clip_for_squaring(_wide(G)), updates)
        moved, state = adam.update(within, state, params)
        return jax.tree.map(lambda U, G: U.astype(G.dtype), moved, updates), state

    return optax.GradientTransformation(lambda params: adam.init(jax.tree.map(_wide, params)), update)


def kept_in(tx: optax.GradientTransformation, dtype: DTypeLike) -> optax.GradientTransformation:
    """Keep the state of `tx` in a dtype between steps, and compute in its own.

    All that is as large as a row is: moments, statistics, bases. Counts, norms and sums of weights stay as they are.
    """

    def down(state: PyTree) -> PyTree:
        def kept(x: Array) -> Array:
            large = jnp.issubdtype(x.dtype, jnp.floating) and math.prod(x.shape[-2:]) > 1
            return x.astype(dtype) if large else x

        return jax.tree.map(kept, state)

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        own = jax.eval_shape(tx.init, updates if params is None else params)
        moved, new = tx.update(updates, jax.tree.map(lambda x, like: x.astype(like.dtype), state, own), params)
        return moved, down(new)

    return optax.GradientTransformation(lambda params: down(tx.init(params)), update)

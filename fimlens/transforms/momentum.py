"""Running averages of updates, Adam that cannot overflow, and wrappers that fix the dtypes of updates and of a state."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from fimlens._validate import require_real
from fimlens.transforms.dtypes import StateDtypes, narrowed, state_dtypes
from fimlens.transforms.norms import at_least_float32
from fimlens.transforms.stacking import clip_for_squaring


class MomentumState(NamedTuple):
    """The number of steps taken, and the exponential average of the updates."""

    count: Int[Array, ""]
    momentum: PyTree


def average_updates(
    decay: Float[ArrayLike, ""], *, nesterov: bool = False, dtype: DTypeLike | None = None
) -> optax.GradientTransformation:
    """Replace updates by their bias-corrected exponential average.

    With `nesterov` the average looks one step ahead, as in Optax's Adam and Muon:
    b m_t / (1 - b^(t+1)) + (1 - b) g_t / (1 - b^t) (Dozat, 2016).
    """

    def init(params: PyTree) -> MomentumState:
        require_real("average_updates", params)
        return MomentumState(jnp.zeros([], jnp.int32), jax.tree.map(lambda x: jnp.zeros_like(x, dtype=dtype), params))

    def update(updates: PyTree, state: MomentumState, params: PyTree = None) -> tuple[PyTree, MomentumState]:
        del params
        count = optax.safe_increment(state.count)
        averaged = optax.tree.update_moment(updates, state.momentum, decay, 1)
        if nesterov:
            ahead = optax.tree.bias_correction(averaged, decay, count + 1)
            share = optax.tree.bias_correction(1 - decay, decay, count)  # of the gradient: at most 1, so that nothing overflows
            moved = jax.tree.map(lambda m, G: decay * m + share.astype(G.dtype) * G, ahead, updates)
        else:
            moved = optax.tree.bias_correction(averaged, decay, count)
        return moved, MomentumState(count, jax.tree.map(narrowed, averaged, state.momentum))

    return compute_in_float32(optax.GradientTransformation(init, update))


def compute_in_float32(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Give `tx` its updates in float32 at least, and cast what it makes of them back once, at the end.

    Between the links of a chain a float16 number over 65504 would be infinite, and a small one zero. The state keeps its
    dtypes.
    """
    inner = optax.with_extra_args_support(tx)

    def update(updates: PyTree, state: PyTree, params: PyTree = None, **extra: Any) -> tuple[PyTree, PyTree]:
        moved, state = inner.update(jax.tree.map(at_least_float32, updates), state, params, **extra)
        return jax.tree.map(narrowed, moved, updates), state

    return optax.GradientTransformationExtraArgs(tx.init, update)


def keep_state_dtypes(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Keep the state of `tx` in the dtypes of its first state.

    Without this, float32 gradients of bfloat16 weights would widen an Optax state at the first step, and the step would
    compile twice.
    """

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        moved, new = tx.update(updates, state, params)
        return moved, jax.tree.map(narrowed, new, state)

    return optax.GradientTransformation(tx.init, update)


def adam_with_guards(
    b1: Float[ArrayLike, ""] = 0.9,
    b2: Float[ArrayLike, ""] = 0.999,
    eps: Float[ArrayLike, ""] = 1e-8,
    eps_root: Float[ArrayLike, ""] = 0.0,
    *,
    nesterov: bool = False,
    dtypes: StateDtypes | DTypeLike | None = None,
) -> optax.GradientTransformation:
    """Optax's Adam, computed in float32 at least, on gradients that are clipped where their squares would overflow."""
    stored = state_dtypes(dtypes)
    adam = keep_state_dtypes(optax.scale_by_adam(b1, b2, eps, eps_root, nesterov=nesterov))

    def init(params: PyTree) -> PyTree:
        wide = jax.tree.map(lambda x: jnp.promote_types(jnp.result_type(x), jnp.float32), params)
        state = adam.init(jax.tree.map(jnp.zeros_like, params, wide))
        mu, nu = optax.tree.cast(state.mu, stored.momentum), optax.tree.cast(state.nu, stored.second_moment)
        return state._replace(mu=mu, nu=nu)

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        # Complex leaves pass unclipped: they have no order to clip by, and Optax's Adam takes them.
        clipped = jax.tree.map(lambda G: G if jnp.iscomplexobj(G) else clip_for_squaring(at_least_float32(G)), updates)
        moved, state = adam.update(clipped, state, params)
        return jax.tree.map(narrowed, moved, updates), state

    return optax.GradientTransformation(init, update)


def store_state_in(tx: optax.GradientTransformation, dtype: DTypeLike) -> optax.GradientTransformation:
    """Store the state of `tx` in one dtype between steps, and compute each step in the dtypes of `tx`.

    This applies to every array with a row or more to a matrix: moments, statistics, bases. Counts, norms and sums of weights
    keep their dtypes: they take no memory, and an average needs them exact.
    """

    def kept_in_dtype(state: PyTree) -> PyTree:
        def stored(x: Array) -> Array:
            large = jnp.issubdtype(x.dtype, jnp.floating) and math.prod(x.shape[-2:]) > 1
            return narrowed(x, dtype) if large else x

        return jax.tree.map(stored, state)

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        own = jax.eval_shape(tx.init, updates if params is None else params)
        moved, new = tx.update(updates, jax.tree.map(lambda x, like: x.astype(like.dtype), state, own), params)
        return moved, kept_in_dtype(new)

    return optax.GradientTransformation(lambda params: kept_in_dtype(tx.init(params)), update)

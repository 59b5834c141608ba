"""Steps along a sphere: each matrix keeps the norm that it starts with, whatever direction moves it."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from fimlens._validate import require_transform
from fimlens.optimizers.full_chain import Rate, Transform, require_rate
from fimlens.transforms.drop_in import PLACEHOLDER
from fimlens.transforms.momentum import compute_in_float32
from fimlens.transforms.norms import at_least_float32, matrix_norm, of_unit_norm
from fimlens.transforms.stacking import sides


class HyperballState(NamedTuple):
    """The steps taken, the norm of each matrix before the first of them (0: it has no ball), and the state of the direction."""

    count: Int[Array, ""]
    radii: PyTree
    inner: Any


def hyperball(tx: Transform, learning_rate: Rate) -> Transform:
    """Move each matrix by a given part of its norm, and keep that norm. Use it around a direction, in place of weight decay.

    A step is W <- W - rate ||W|| u / ||u||, and then W <- W ||W_0|| / ||W|| (arXiv 2606.16899). u is the direction's update and
    W_0 the weights before the first step. The rate is the size of a step relative to the weights, whatever the size of u.
    State: one number for each matrix, and that of `tx`.

    A matrix is the last two axes of a leaf, so that the layers of a stack keep a norm each. Vectors and numbers, a 1 x 1
    matrix, and a matrix that starts at zero, have no sphere to move on: their step is -rate u.

    Args:
        tx: the direction, without a learning rate, a sign or weight decay, such as `fl.scale_by_muon()`. `fl.matrices` leaves
            other leaves to another optimizer, as in the example.
        learning_rate: length of the step relative to that of the weights: a number, an array or an Optax schedule.

    Raises:
        TypeError: `tx` is no transform, or the rate is neither a number, an array nor a schedule.
        ValueError: (at update) the parameters are not given.

    Examples:
        >>> import jax.numpy as jnp, optax, fimlens as fl
        >>> tx = fl.matrices(fl.hyperball(fl.scale_by_muon(), 0.01), fl.adamw(1e-3))
        >>> params = {"kernel": jnp.array([[3.0, 0.0], [0.0, 4.0]]), "bias": jnp.zeros(2)}
        >>> gradients = {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "bias": jnp.ones(2)}
        >>> updates, state = tx.update(gradients, tx.init(params), params)
        >>> print(f"{jnp.linalg.norm(optax.apply_updates(params, updates)['kernel']):.4f}")
        5.0000
    """
    require_transform("hyperball", "tx", tx)
    require_rate("hyperball", "learning_rate", learning_rate)
    tx = optax.with_extra_args_support(tx)

    def init(params: PyTree) -> HyperballState:
        if isinstance(params, PLACEHOLDER):
            radii = jnp.zeros([])  # radii are no parameters
        else:
            like = jax.eval_shape(lambda tree: jax.tree.map(matrix_norm, tree), params)
            radii = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
        return HyperballState(jnp.zeros([], jnp.int32), radii, tx.init(params))

    def update(updates: PyTree, state: HyperballState, params: PyTree = None, **extra: Any) -> tuple[PyTree, HyperballState]:
        if params is None:
            raise ValueError("hyperball: needs the parameters. Call tx.update(gradients, state, params).")
        directions, inner = tx.update(updates, state.inner, params, **extra)
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate

        def radius_of(W: Array, kept: Float[Array, "..."]) -> Float[Array, "..."]:
            has_ball = jnp.ndim(W) >= 2 and math.prod(sides(jnp.shape(W))) > 1
            return jnp.where(state.count == 0, matrix_norm(W), kept) if has_ball else kept

        radii = jax.tree.map(radius_of, params, state.radii)
        moved = jax.tree.map(lambda u, W, radius: _moved(rate, u, at_least_float32(W), radius), directions, params, radii)
        return moved, HyperballState(optax.safe_increment(state.count), radii, inner)

    return compute_in_float32(optax.GradientTransformationExtraArgs(init, update))


def _moved(rate: Any, u: Array, W: Array, radius: Float[Array, "..."]) -> Array:
    free = radius == 0
    target = W - rate * radius * of_unit_norm(u)
    return jnp.where(free, -rate * u, target * (radius / jnp.where(free, 1, matrix_norm(target))) - W)

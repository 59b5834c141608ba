"""A step of training: the gradient over a batch's parts, the optimizer, the weights moved, if all of it is finite."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PyTree

from fimlens.language_model import llama
from fimlens.pretrain.data import Batches
from fimlens.pretrain.mesh import on_mesh, state_shardings, weight_shardings
from fimlens.pretrain.model import first_weights
from fimlens.pretrain.plan import Plan

Batch = Int[Array, "parts rows window"]


class Training(NamedTuple):
    """All that a step changes: how many were made, weights, the optimizer's state."""

    step: Int[Array, ""]
    weights: PyTree
    optimizer: PyTree


def first(plan: Plan, tx: optax.GradientTransformation) -> Training:
    """Before any step."""
    weights = first_weights(plan.config, jax.random.key(plan.seed), dtype=plan.weight_dtype, scan=plan.scan)
    return Training(jnp.zeros([], jnp.int32), weights, tx.init(weights))


def shardings_of(shapes: Training, tx: optax.GradientTransformation, mesh: Mesh) -> Training:
    """Where all of it lies."""
    whole = NamedSharding(mesh, PartitionSpec())
    return Training(whole, weight_shardings(mesh, shapes.weights), state_shardings(mesh, tx, shapes.weights))


def batch_of(plan: Plan, batches: Batches, mesh: Mesh, k: int) -> Batch:
    """Batch k in equal parts, on the mesh; each host reads the rows that its devices train on."""
    each = plan.batch // plan.accumulate

    def read(index: tuple[slice, ...]) -> Int[np.ndarray, "parts rows window"]:
        parts, rows = range(*index[0].indices(plan.accumulate)), index[1].indices(each)
        return np.stack([batches(k, slice(part * each + rows[0], part * each + rows[1])) for part in parts])

    return on_mesh(mesh, (plan.accumulate, each, plan.length + 1), read)


def gradient_of(plan: Plan) -> Callable[[PyTree, Batch], tuple[Float[Array, ""], PyTree]]:
    """The loss and its gradient, means over a batch's parts; their sums are in float32."""

    def loss(weights: PyTree, tokens: Int[Array, "rows window"]) -> Float[Array, ""]:
        return llama.loss(plan.config, weights, tokens, remat=plan.remat)

    def gradient(weights: PyTree, tokens: Batch) -> tuple[Float[Array, ""], PyTree]:
        if plan.accumulate == 1:
            return jax.value_and_grad(loss)(weights, tokens[0])

        def part(sums: PyTree, tokens: Int[Array, "rows window"]) -> tuple[PyTree, None]:
            seen = jax.value_and_grad(loss)(weights, tokens)
            return jax.tree.map(lambda s, x: s + x.astype(jnp.float32), sums, seen), None

        zero = (jnp.zeros([]), jax.tree.map(lambda W: jnp.zeros(W.shape, jnp.float32), weights))
        sums, _ = jax.lax.scan(part, zero, tokens)
        value, gradients = jax.tree.map(lambda s: s / plan.accumulate, sums)
        return value, jax.tree.map(lambda g, W: g.astype(W.dtype), gradients, weights)

    return gradient


def move_of(
    tx: optax.GradientTransformation,
) -> Callable[[Training, Float[Array, ""], PyTree], tuple[Training, tuple[Float[Array, ""], Bool[Array, ""]]]]:
    """All of a step but its gradient: the update, the weights moved by it, if loss, gradient and update are finite."""

    def move(training: Training, loss: Float[Array, ""], gradients: PyTree) -> tuple[Training, tuple[Array, Bool[Array, ""]]]:
        count, weights, state = training
        updates, new_state = tx.update(gradients, state, weights)
        finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(gradients)) & jnp.isfinite(optax.tree.norm(updates))
        moved = (optax.apply_updates(weights, updates), new_state)
        weights, state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, (weights, state))
        return Training(count + 1, weights, state), (loss, finite)

    return move


def step_of(
    plan: Plan, tx: optax.GradientTransformation
) -> Callable[[Training, Batch], tuple[Training, tuple[Float[Array, ""], Bool[Array, ""]]]]:
    """One step: the loss, and whether it, the gradient and the update were finite. Where not, nothing moves but the count."""
    gradient, move = gradient_of(plan), move_of(tx)

    def step(training: Training, tokens: Batch) -> tuple[Training, tuple[Float[Array, ""], Bool[Array, ""]]]:
        return move(training, *gradient(training.weights, tokens))

    return step


def seconds_of(compiled: Callable[..., PyTree], *arguments: PyTree, calls: int = 3) -> float:
    """The least of some calls, after one that compiles."""
    jax.block_until_ready(compiled(*arguments))
    return min(timed(compiled, *arguments)[0] for _ in range(calls))


def timed(call: Callable[..., Any], *arguments: PyTree) -> tuple[float, Any]:
    """Seconds until all of it is there, and what it is."""
    start = time.perf_counter()
    out = jax.block_until_ready(call(*arguments))
    return time.perf_counter() - start, out

"""One step of training: the gradient over the parts of a batch, the optimizer's update, and a guard against NaN."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PyTree

from fimlens.pretrain.mesh import array_of_rows, state_shardings, weight_shardings
from fimlens.pretrain.recipe import Recipe
from fimlens.pretrain.shuffled import Shuffled

Batch = PyTree  # of arrays whose first axes are (parts, rows)


class TrainState(NamedTuple):
    """Everything that a step changes and a checkpoint stores: the number of steps made, weights, and optimizer state."""

    step: Int[Array, ""]  # checkpoints refer to these three names
    weights: PyTree
    optimizer: PyTree


def initial_state(plan: Recipe, tx: optax.GradientTransformation, pretrained: PyTree = ()) -> TrainState:
    """Return the state before the first step, given the weights that `plan.pretrained` returns."""
    weights = plan.initial_weights(pretrained)
    return TrainState(jnp.zeros([], jnp.int32), weights, tx.init(weights))


def train_shardings(shapes: TrainState, tx: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Return the placement of each part of the state on a mesh."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    return TrainState(everywhere, weight_shardings(mesh, shapes.weights), state_shardings(mesh, tx, shapes.weights))


def load_batch(plan: Recipe, batches: Shuffled, mesh: Mesh, k: int) -> Batch:
    """Place batch k on a mesh, in `plan.accumulate` equal parts. Each host reads only the rows that its devices train on."""
    part_rows = plan.batch // plan.accumulate

    @cache  # each array of a tree asks for the same rows
    def rows_of(part: int, start: int, stop: int) -> list[np.ndarray]:
        return jax.tree.leaves(batches(k, slice(part * part_rows + start, part * part_rows + stop)))

    def leaf(place: int, example: jax.ShapeDtypeStruct) -> Array:
        def read(index: tuple[slice, ...]) -> np.ndarray:
            parts, rows = range(*index[0].indices(plan.accumulate)), index[1].indices(part_rows)
            return np.stack([rows_of(part, *rows[:2])[place] for part in parts])

        return array_of_rows(mesh, (plan.accumulate, part_rows, *example.shape), read, before=1)

    examples, tree = jax.tree.flatten(batches.shapes)
    return tree.unflatten([leaf(place, example) for place, example in enumerate(examples)])


def make_gradient(plan: Recipe) -> Callable[[PyTree, Batch], tuple[Float[Array, ""], PyTree]]:
    """Return a function of weights and a batch that gives the mean loss and its gradient."""
    value_and_grad = jax.value_and_grad(plan.loss)

    def gradient(weights: PyTree, batch: Batch) -> tuple[Float[Array, ""], PyTree]:
        if plan.accumulate == 1:
            return value_and_grad(weights, jax.tree.map(lambda leaf: leaf[0], batch))

        def add(sums: PyTree, part: PyTree) -> tuple[PyTree, None]:
            return jax.tree.map(lambda s, x: s + x.astype(jnp.float32), sums, value_and_grad(weights, part)), None

        # Sums in float32: in bfloat16 a small part added to a large sum would be rounded away.
        zero = (jnp.zeros([]), jax.tree.map(lambda W: jnp.zeros(W.shape, jnp.float32), weights))
        sums, _ = jax.lax.scan(add, zero, batch)
        # Divide by the number of parts: they have equally many rows, so this is the mean over the batch.
        value, gradients = jax.tree.map(lambda s: s / plan.accumulate, sums)
        return value, jax.tree.map(lambda g, W: g.astype(W.dtype), gradients, weights)

    return gradient


def make_update(
    tx: optax.GradientTransformation,
) -> Callable[[TrainState, Float[Array, ""], PyTree], tuple[TrainState, tuple[Float[Array, ""], Bool[Array, ""]]]]:
    """Return the rest of a step, after the gradient: a function of state, loss and gradient.

    It gives the new state, the loss, and whether loss, gradient and update are all finite. If they are not, weights and
    optimizer state stay as they are and only the step count moves on.
    """

    def update(
        state: TrainState, loss: Float[Array, ""], gradients: PyTree
    ) -> tuple[TrainState, tuple[Array, Bool[Array, ""]]]:
        updates, optimizer = tx.update(gradients, state.optimizer, state.weights)
        # A norm is finite only if every entry is, and costs one reduction. The update is tested too: a finite gradient can
        # overflow inside an optimizer, and NaN in its state would never leave.
        finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(gradients)) & jnp.isfinite(optax.tree.norm(updates))
        new = (optax.apply_updates(state.weights, updates), optimizer)
        old = (state.weights, state.optimizer)
        # Selected with `where` on the device: a Python branch would make the host wait for every step.
        weights, optimizer = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)
        return TrainState(state.step + 1, weights, optimizer), (loss, finite)

    return update


def make_step(
    plan: Recipe, tx: optax.GradientTransformation
) -> Callable[[TrainState, Batch], tuple[TrainState, tuple[Float[Array, ""], Bool[Array, ""]]]]:
    """Return a whole step: the gradient of a batch, then the update. The result is as in `make_update`."""
    gradient, update = make_gradient(plan), make_update(tx)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, tuple[Float[Array, ""], Bool[Array, ""]]]:
        return update(state, *gradient(state.weights, batch))

    return step

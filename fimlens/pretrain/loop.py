"""The training loop: step k is made of batch k, on any number of devices. A killed run continues from its last checkpoint."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, PyTree

from fimlens.pretrain.mesh import array_of_rows, make_mesh, row_shards
from fimlens.pretrain.recipe import Data, Recipe
from fimlens.pretrain.run_directory import Metrics, RunDirectory
from fimlens.pretrain.step import TrainState, initial_state, load_batch, make_step, train_shardings
from fimlens.pretrain.timing import measure_step
from fimlens.transforms.monitor import readings

EVALUATED_AT_ONCE = 128  # held-out rows


METRICS_EVERY = 10  # steps; in between, the host never waits for the device


class NonFinite(FloatingPointError):
    """A step's loss, gradient or update was not finite, and the plan says to stop."""


def train(
    plan: Recipe,
    data: Data,
    directory: Path | None = None,
    *,
    mesh: Mesh | None = None,
    evaluate_every: int | None = None,
    checkpoint_every: int = 100,
    keep: int = 2,
    share: bool = False,
    on_start: Callable[[TrainState], None] = lambda shapes: None,
    callback: Callable[[Metrics], None] = lambda metrics: None,
) -> list[Metrics]:
    """Train by a plan, or continue a training that was interrupted.

    Args:
        plan: model, optimizer and data order: a `Plan` for pre-training, a `Finetuning` for a task.
        data: the text or the examples.
        directory: where plan.json, metrics.jsonl, checkpoints and, with a monitor, readings.jsonl go. If it has a checkpoint,
            training continues from there. By default nothing is stored.
        mesh: the devices of all hosts; by default all of them, along data.
        evaluate_every: steps between measurements of the held-out loss; it is always measured at the end.
        checkpoint_every: steps between checkpoints; there is always one at the end.
        keep: how many checkpoints to keep.
        share: time the optimizer alone before the first step, and report its share of each step's time.
        on_start: called once, with the shapes of weights and state, when plan, data, mesh and directory are accepted.
        callback: called with each line of metrics.

    Returns:
        All lines of metrics, with those before an interruption.

    Raises:
        ValueError: the directory belongs to another plan or to other data, the data do not fit the model, or the batch cannot
            be split evenly over the mesh.
        NonFinite: a step's loss, gradient or update was not finite, and the plan says to stop.
    """
    batches, held_out = plan.batches(data), plan.held_out(data)
    mesh = make_mesh() if mesh is None else mesh
    if plan.batch // plan.accumulate % row_shards(mesh):
        raise ValueError(
            f"{plan.command}: a batch of {plan.batch} rows in {plan.accumulate} parts does not lie evenly on "
            f"{row_shards(mesh)} devices along data and fsdp. Take a multiple, fewer parts, or another mesh."
        )
    tx = plan.transform()
    shapes = jax.eval_shape(partial(initial_state, plan, tx), plan.pretrained())
    shardings = train_shardings(shapes, tx, mesh)
    with RunDirectory(plan, data, directory, checkpoint_every, keep) as run, jax.set_mesh(mesh):
        on_start(shapes)
        is_finished = run.last_checkpoint == plan.steps
        optimizer_seconds = measure_step(plan, data, mesh).optimizer if share and not is_finished else None
        # Initialized under jit, so that each device makes only its own part of the weights.
        initialize = jax.jit(partial(initial_state, plan, tx), out_shardings=shardings)
        state = run.restore(shapes, shardings) or initialize(plan.pretrained())
        done = int(state.step)
        if done == plan.steps:
            return run.metrics_of_finished_run()

        batch = partial(load_batch, plan, batches, mesh)
        # The state is donated: the new one takes its memory, which then holds one copy of weights and state instead of two.
        step = jax.jit(make_step(plan, tx), donate_argnums=0, out_shardings=(shardings, None))
        step = step.lower(state, batch(done)).compile()  # before the clock starts
        evaluate = make_evaluation(plan, held_out, mesh)
        pending: list[tuple[int, Any]] = []  # results since the last line of metrics, still on the device
        start = time.perf_counter()
        for k in range(done, plan.steps):
            state, result = step(state, batch(k))
            pending.append((k, result))
            done = k + 1
            evaluation_due = done == plan.steps or (evaluate_every is not None and done % evaluate_every == 0)
            if plan.monitor is not None and done % plan.monitor == 0:
                run.record_readings(done, readings(state.optimizer))
            checkpoint = run.is_checkpoint_due(done) or done == plan.steps
            if not (checkpoint or evaluation_due or done % METRICS_EVERY == 0):
                continue
            # Reading the losses waits for the device, so the clock is read after it. The checkpoint comes later still: a run
            # that stops at a step that is not finite must not continue behind that step.
            loss, skipped = _mean_loss(plan, pending)
            seconds = time.perf_counter() - start
            measured = evaluate(state.weights) if evaluation_due else (None, {})
            callback(run.record(done, loss, *measured, skipped, len(pending), seconds, optimizer_seconds))
            if checkpoint:
                run.save(done, state)
            pending, start = [], time.perf_counter()
        return run.metrics


def make_evaluation(plan: Recipe, rows: PyTree, mesh: Mesh) -> Callable[[PyTree], tuple[float, dict[str, float]]]:
    """Return a function of the weights that gives the loss and the scores over all held-out rows, a part of them at a time."""
    count = len(jax.tree.leaves(rows)[0])
    shards = row_shards(mesh)
    size = -(-min(count, EVALUATED_AT_ONCE) // shards) * shards

    def placed(start: int) -> PyTree:
        # Rows are repeated until they can be split evenly over the mesh; what they give is left out below.
        chosen = np.arange(start, start + size) % count
        return jax.tree.map(lambda leaf: array_of_rows(mesh, (size, *leaf.shape[1:]), leaf[chosen].__getitem__), rows)

    parts = [placed(start) for start in range(0, count, size)]
    outputs = jax.jit(plan.outputs, out_shardings=NamedSharding(mesh, PartitionSpec()))  # whole on each host

    def evaluate(weights: PyTree) -> tuple[float, dict[str, float]]:
        found: Float[np.ndarray, "rows ..."] = np.concatenate([outputs(weights, part) for part in parts])[:count]
        return plan.measure(found, rows)

    return evaluate


def _mean_loss(plan: Recipe, results: list[tuple[int, Any]]) -> tuple[float | None, list[int]]:
    """Return the mean loss of some steps, None if all were skipped, and the numbers of the skipped batches."""
    losses, skipped = [], []
    for k, (loss, finite) in results:
        if bool(finite):
            losses.append(float(loss))
        elif plan.on_nonfinite == "stop":
            raise NonFinite(
                f"{plan.command}: batch {k} made a loss of {float(loss)}, or a gradient or an update that is not finite, and "
                'was not applied. Lower the rate, clip the gradient, or skip such batches by on_nonfinite="skip".'
            )
        else:
            skipped.append(k)
    return (sum(losses) / len(losses) if losses else None), skipped

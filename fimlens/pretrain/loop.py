"""The training loop: step k is made of batch k, on any number of devices. A killed run continues from its last checkpoint."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from fimlens.language_model import llama
from fimlens.pretrain.data import Batches, Corpus, evaluation_windows
from fimlens.pretrain.mesh import array_of_rows, make_mesh, row_shards
from fimlens.pretrain.plan import Plan
from fimlens.pretrain.run_directory import Metrics, RunDirectory
from fimlens.pretrain.step import initial_state, load_batch, make_step, train_shardings
from fimlens.pretrain.timing import measure_step
from fimlens.transforms.monitor import readings

EVALUATION_WINDOWS = 128


METRICS_EVERY = 10  # steps; in between, the host never waits for the device


class NonFinite(FloatingPointError):
    """A step's loss, gradient or update was not finite, and the plan says to stop."""


def train(
    plan: Plan,
    corpus: Corpus,
    directory: Path | None = None,
    *,
    mesh: Mesh | None = None,
    evaluate_every: int | None = None,
    checkpoint_every: int = 100,
    keep: int = 2,
    share: bool = False,
    callback: Callable[[Metrics], None] = lambda metrics: None,
) -> list[Metrics]:
    """Train a language model by a plan, or continue a training that was interrupted.

    Args:
        plan: model, optimizer and data order.
        corpus: the text.
        directory: where plan.json, metrics.jsonl, checkpoints and, with a monitor, readings.jsonl go. If it has a checkpoint,
            training continues from there. By default nothing is stored.
        mesh: the devices of all hosts; by default all of them, along data.
        evaluate_every: steps between measurements of the held-out loss; it is always measured at the end.
        checkpoint_every: steps between checkpoints; there is always one at the end.
        keep: how many checkpoints to keep.
        share: time the optimizer alone before the first step, and report its share of each step's time.
        callback: called with each line of metrics.

    Returns:
        All lines of metrics, with those before an interruption.

    Raises:
        ValueError: the directory belongs to another plan or text, the text is too short or has too many kinds of token, or the
            batch cannot be split evenly over the mesh.
        NonFinite: a step's loss, gradient or update was not finite, and the plan says to stop.
    """
    plan.require_vocabulary("the text", corpus.vocabulary)
    mesh = make_mesh() if mesh is None else mesh
    if plan.batch // plan.accumulate % row_shards(mesh):
        raise ValueError(
            f"pretrain: a batch of {plan.batch} rows in {plan.accumulate} parts does not lie evenly on {row_shards(mesh)} "
            "devices along data and fsdp. Take a multiple, fewer parts, or another mesh."
        )
    batches = Batches(corpus.train, batch=plan.batch, length=plan.length, seed=plan.seed)
    windows = evaluation_windows(corpus.held_out, count=EVALUATION_WINDOWS, length=plan.length)
    # Repeat windows until the rows can be split evenly over the mesh; _held_out_loss leaves the repetitions out.
    padded = np.resize(windows, (-(-len(windows) // row_shards(mesh)) * row_shards(mesh), windows.shape[1]))
    evaluated_tokens = array_of_rows(mesh, padded.shape, padded.__getitem__)
    tx = plan.transform()
    shapes = jax.eval_shape(lambda: initial_state(plan, tx))
    shardings = train_shardings(shapes, tx, mesh)
    with RunDirectory(plan, corpus, directory, checkpoint_every, keep) as run, jax.set_mesh(mesh):
        is_finished = run.last_checkpoint == plan.steps
        optimizer_seconds = measure_step(plan, corpus, mesh).optimizer if share and not is_finished else None
        # Initialized under jit, so that each device makes only its own part of the weights.
        initialize = jax.jit(partial(initial_state, plan, tx), out_shardings=shardings)
        state = run.restore(shapes, shardings) or initialize()
        done = int(state.step)
        if done == plan.steps:
            return run.metrics_of_finished_run()

        batch = partial(load_batch, plan, batches, mesh)
        # The state is donated: the new one takes its memory, which then holds one copy of weights and state instead of two.
        step = jax.jit(make_step(plan, tx), donate_argnums=0, out_shardings=(shardings, None))
        step = step.lower(state, batch(done)).compile()  # before the clock starts
        held_out_loss = jax.jit(partial(_held_out_loss, plan, len(windows)))
        pending: list[tuple[int, Any]] = []  # results since the last line of metrics, still on the device
        start = time.perf_counter()
        for k in range(done, plan.steps):
            state, result = step(state, batch(k))
            pending.append((k, result))
            done = k + 1
            evaluate = done == plan.steps or (evaluate_every is not None and done % evaluate_every == 0)
            if plan.monitor is not None and done % plan.monitor == 0:
                run.record_readings(done, readings(state.optimizer))
            checkpoint = run.is_checkpoint_due(done) or done == plan.steps
            if not (checkpoint or evaluate or done % METRICS_EVERY == 0):
                continue
            # Reading the losses waits for the device, so the clock is read after it. The checkpoint comes later still: a run
            # that stops at a step that is not finite must not continue behind that step.
            loss, skipped = _mean_loss(plan, pending)
            seconds = time.perf_counter() - start
            held_out = float(held_out_loss(state.weights, evaluated_tokens)) if evaluate else None
            callback(run.record(done, loss, held_out, skipped, len(pending), seconds, optimizer_seconds))
            if checkpoint:
                run.save(done, state)
            pending, start = [], time.perf_counter()
        return run.metrics


def _held_out_loss(plan: Plan, count: int, weights: PyTree, tokens: Int[Array, "rows window"]) -> Float[Array, ""]:
    """Return the mean loss per token over the first `count` windows; those after them only fill the mesh."""
    return jnp.mean(jax.vmap(lambda row: llama.loss(plan.config, weights, row[None]))(tokens)[:count])


def _mean_loss(plan: Plan, results: list[tuple[int, Any]]) -> tuple[float | None, list[int]]:
    """Return the mean loss of some steps, None if all were skipped, and the numbers of the skipped batches."""
    losses, skipped = [], []
    for k, (loss, finite) in results:
        if bool(finite):
            losses.append(float(loss))
        elif plan.on_nonfinite == "stop":
            raise NonFinite(
                f"pretrain: batch {k} made a loss of {float(loss)}, or a gradient or an update that is not finite, and was "
                'not applied. Lower the rate, clip the gradient, or skip such batches by on_nonfinite="skip".'
            )
        else:
            skipped.append(k)
    return (sum(losses) / len(losses) if losses else None), skipped

"""The loop: batch k makes step k, on however many devices; whatever is killed goes on from its last checkpoint."""

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
from fimlens.pretrain.data import Batches, Corpus, fixed_windows
from fimlens.pretrain.mesh import lanes, mesh_of, on_mesh
from fimlens.pretrain.plan import Plan
from fimlens.pretrain.run_directory import Keeper, Line
from fimlens.pretrain.step import batch_of, first, shardings_of, step_of
from fimlens.pretrain.timing import speed

HELD_OUT_WINDOWS = 128


EVERY = 10  # steps between lines of metrics


class NonFinite(FloatingPointError):
    """A step's loss or gradient was not finite."""


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
    told: Callable[[Line], None] = lambda line: None,
) -> list[Line]:
    """Train by a plan, from its last checkpoint in `directory` where there is one, and return the lines of metrics.

    In `directory` go plan.json, metrics.jsonl and the last `keep` checkpoints, one every `checkpoint_every` steps and one at
    the end. Without one nothing is kept. `mesh` is over all devices of all hosts, along data by default. With `share` the
    optimizer is timed alone before the first step, to tell its share of each.

    Raises:
        ValueError: the directory is of another plan, the text is too short, or the batch does not lie evenly on the mesh.
        NonFinite: a step's loss or gradient was not finite, and the plan says to stop there.
    """
    plan.require_vocabulary("the text", corpus.vocabulary)
    mesh = mesh_of() if mesh is None else mesh
    if plan.batch // plan.accumulate % lanes(mesh):
        raise ValueError(
            f"pretrain: a batch of {plan.batch} rows in {plan.accumulate} parts does not lie evenly on {lanes(mesh)} devices "
            "along data and fsdp. Take a multiple, fewer parts, or another mesh."
        )
    batches = Batches(corpus.train, batch=plan.batch, length=plan.length, seed=plan.seed)
    windows = fixed_windows(corpus.held_out, count=HELD_OUT_WINDOWS, length=plan.length)
    filled = np.resize(windows, (-(-len(windows) // lanes(mesh)) * lanes(mesh), windows.shape[1]))  # to lie evenly
    measured = on_mesh(mesh, filled.shape, filled.__getitem__)
    tx = plan.transform()
    shapes = jax.eval_shape(lambda: first(plan, tx))
    shardings = shardings_of(shapes, tx, mesh)
    with Keeper(plan, corpus, directory, checkpoint_every, keep) as keeper, jax.set_mesh(mesh):
        optimizer = speed(plan, corpus, mesh).optimizer if share and keeper.last != plan.steps else None
        begun = jax.jit(partial(first, plan, tx), out_shardings=shardings)
        training = keeper.restored(shardings, shapes) or begun()
        done = int(training.step)
        if done == plan.steps:
            return keeper.lines_of_a_whole_run()

        batch = partial(batch_of, plan, batches, mesh)
        step = jax.jit(step_of(plan, tx), donate_argnums=0, out_shardings=(shardings, None))
        step = step.lower(training, batch(done)).compile()
        held_out = jax.jit(partial(_held_out, plan, len(windows)))
        waiting: list[tuple[int, Any]] = []
        start = time.perf_counter()
        for k in range(done, plan.steps):
            training, seen = step(training, batch(k))
            waiting.append((k, seen))
            done = k + 1
            evaluated = done == plan.steps or (evaluate_every is not None and done % evaluate_every == 0)
            due = keeper.due(done) or done == plan.steps
            if not (due or evaluated or done % EVERY == 0):
                continue
            loss, skipped = _finite(plan, waiting)
            seconds = time.perf_counter() - start
            value = float(held_out(training.weights, measured)) if evaluated else None
            line = keeper.note(done, loss, value, skipped, len(waiting), seconds, optimizer)
            told(line)
            if due:
                keeper.save(done, training)
            waiting, start = [], time.perf_counter()
        return keeper.lines


def _held_out(plan: Plan, count: int, weights: PyTree, tokens: Int[Array, "rows window"]) -> Float[Array, ""]:
    """The mean loss per token over the first `count` windows; those after them only fill the mesh."""
    return jnp.mean(jax.vmap(lambda row: llama.loss(plan.config, weights, row[None]))(tokens)[:count])


def _finite(plan: Plan, waiting: list[tuple[int, Any]]) -> tuple[float | None, list[int]]:
    """The mean loss of some steps, None where there is none; and the batches that were not finite and are left out."""
    losses, skipped = [], []
    for k, (loss, finite) in waiting:
        if bool(finite):
            losses.append(float(loss))
        elif plan.on_nonfinite == "stop":
            raise NonFinite(
                f"pretrain: batch {k} made a loss of {float(loss)}, or a gradient or an update that is not finite, and was "
                'not stepped along. Lower the rate, clip the gradient, or go on without such batches by on_nonfinite="skip".'
            )
        else:
            skipped.append(k)
    return (sum(losses) / len(losses) if losses else None), skipped

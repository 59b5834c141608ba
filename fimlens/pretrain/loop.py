"""The loop: batch k makes step k, on however many devices; whatever is killed goes on from its last checkpoint."""

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PyTree

from fimlens import llama
from fimlens.pretrain.data import Batches, Corpus, fixed_windows
from fimlens.pretrain.keeper import Keeper, Line, Training
from fimlens.pretrain.mesh import global_batch, lanes, mesh_of, my_rows, state_shardings, weight_shardings
from fimlens.pretrain.model import first_weights
from fimlens.pretrain.plan import Plan

HELD_OUT_WINDOWS = 256
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
    told: Callable[[Line], None] = lambda line: None,
) -> list[Line]:
    """Train by a plan, from its last checkpoint in `directory` where there is one, and return the lines of metrics.

    In `directory` go plan.json, metrics.jsonl and the last `keep` checkpoints, one every `checkpoint_every` steps and one at
    the end. Without one nothing is kept. `mesh` is over all devices of all hosts, along data by default.

    Raises:
        ValueError: the directory is of another plan, the text is too short, or the batch does not divide among the hosts.
        NonFinite: a step's loss or gradient was not finite, and the plan says to stop there.
    """
    if corpus.vocabulary > plan.config.vocabulary:
        raise ValueError(
            f"pretrain: the text has {corpus.vocabulary} kinds of token and {plan.model} knows {plan.config.vocabulary}. "
            "Take a model with a larger vocabulary, or another tokenizer."
        )
    mesh = mesh_of() if mesh is None else mesh
    if plan.batch // plan.accumulate % lanes(mesh):
        raise ValueError(
            f"pretrain: a batch of {plan.batch} rows in {plan.accumulate} parts does not lie evenly on {lanes(mesh)} devices "
            "along data and fsdp. Take a multiple, fewer parts, or another mesh."
        )
    batches = Batches(corpus.train, batch=plan.batch, length=plan.length, seed=plan.seed)
    windows = fixed_windows(corpus.held_out, count=HELD_OUT_WINDOWS, length=plan.length)
    measured = global_batch(mesh, _shared(windows, mesh))
    tx, rows = plan.transform(), my_rows(plan.batch)
    shapes = jax.eval_shape(lambda: _first(plan, tx))
    shardings = _shardings(shapes, tx, mesh)
    with Keeper(plan, directory, checkpoint_every, keep) as keeper, jax.set_mesh(mesh):
        begun = jax.jit(partial(_first, plan, tx), out_shardings=shardings)
        training = keeper.restored(shardings, shapes) or begun()
        step = jax.jit(_step(plan, tx), donate_argnums=0, out_shardings=(shardings, None))
        held_out = jax.jit(partial(_held_out, plan, len(windows)))
        first, start = int(training.step), time.perf_counter()
        waiting: list[tuple[int, Any]] = []
        for k in range(first, plan.steps):
            training, seen = step(training, global_batch(mesh, _parts(batches(k, rows), plan.accumulate)))
            waiting.append((k, seen))
            done = k + 1
            evaluated = done == plan.steps or (evaluate_every is not None and done % evaluate_every == 0)
            due = keeper.due(done) or done == plan.steps
            if not (due or evaluated or done % EVERY == 0):
                continue
            losses = _finite(plan, waiting)
            waiting = []
            value = float(held_out(training.weights, measured)) if evaluated else None
            tokens, seconds = plan.batch * plan.length * (done - first), time.perf_counter() - start
            line = Line(done, losses, value, tokens, seconds)
            keeper.note(line)
            told(line)
            if due:
                keeper.save(done, training)
        return keeper.lines


def _first(plan: Plan, tx: optax.GradientTransformation) -> Training:
    weights = first_weights(plan.config, jax.random.key(plan.seed), dtype=plan.weight_dtype, scan=plan.scan)
    return Training(jnp.zeros([], jnp.int32), weights, tx.init(weights))


def _shardings(shapes: Training, tx: optax.GradientTransformation, mesh: Mesh) -> Training:
    whole = NamedSharding(mesh, PartitionSpec())
    return Training(whole, weight_shardings(mesh, shapes.weights), state_shardings(mesh, tx, shapes.weights))


def _step(plan: Plan, tx: optax.GradientTransformation) -> Callable[..., tuple[Training, tuple[Array, Array]]]:
    """One step over a batch's parts: the loss, and whether it was finite. Where it was not, nothing moves but the count."""

    def loss(weights: PyTree, tokens: Int[Array, "rows window"]) -> Float[Array, ""]:
        return llama.loss(plan.config, weights, tokens, remat=plan.remat)

    def part(sums: PyTree, tokens: Int[Array, "rows window"], weights: PyTree) -> tuple[PyTree, None]:
        value, gradients = jax.value_and_grad(loss)(weights, tokens)
        return jax.tree.map(lambda s, x: s + x.astype(jnp.float32), sums, (value, gradients)), None

    def step(training: Training, tokens: Int[Array, "parts rows window"]) -> tuple[Training, tuple[Array, Array]]:
        count, weights, state = training
        if plan.accumulate == 1:
            value, gradients = jax.value_and_grad(loss)(weights, tokens[0])
        else:
            zero = (jnp.zeros([]), jax.tree.map(lambda W: jnp.zeros(W.shape, jnp.float32), weights))
            sums, _ = jax.lax.scan(lambda sums, tokens: part(sums, tokens, weights), zero, tokens)
            value, gradients = jax.tree.map(lambda s: s / plan.accumulate, sums)
            gradients = jax.tree.map(lambda g, W: g.astype(W.dtype), gradients, weights)
        finite = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(gradients))
        updates, new_state = tx.update(gradients, state, weights)
        moved = (optax.apply_updates(weights, updates), new_state)
        weights, state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, (weights, state))
        return Training(count + 1, weights, state), (value, finite)

    return step


def _held_out(plan: Plan, count: int, weights: PyTree, tokens: Int[Array, "rows window"]) -> Float[Array, ""]:
    """The mean loss per token over the first `count` windows; those after them only fill the mesh."""
    return jnp.mean(jax.vmap(lambda row: llama.loss(plan.config, weights, row[None]))(tokens)[:count])


def _finite(plan: Plan, waiting: list[tuple[int, Any]]) -> float:
    """The mean loss of some steps; those that were not finite are named, or left out."""
    losses = []
    for k, (loss, finite) in waiting:
        if bool(finite):
            losses.append(float(loss))
        elif plan.on_nonfinite == "stop":
            raise NonFinite(
                f"pretrain: batch {k} made a loss of {float(loss)} or a gradient that is not finite; its update was not made. "
                'Lower the rate, clip the gradient, or go on without such batches by on_nonfinite="skip".'
            )
    return sum(losses) / len(losses) if losses else math.nan


def _parts(rows: Int[np.ndarray, "rows window"], count: int) -> Int[np.ndarray, "parts each window"]:
    return rows.reshape(count, -1, rows.shape[1])


def _shared(rows: Int[np.ndarray, "windows window"], mesh: Mesh) -> Int[np.ndarray, "own window"]:
    """This host's part of windows that all hosts have, repeated until they lie evenly on the mesh."""
    unit = math.lcm(jax.process_count(), lanes(mesh))
    even = -(-len(rows) // unit) * unit
    return np.resize(rows, (even, rows.shape[1]))[my_rows(even)]

"""How long the parts of a step take: the gradient, which is the same for all optimizers, and the update after it.

Each part is compiled and timed alone. The difference between a step with and a step without an optimizer would be noise. In a
small model the optimizer takes a hundredth of a step, and two compilations of one gradient differ by more.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from fimlens._validate import write_atomically
from fimlens.pretrain.mesh import make_mesh
from fimlens.pretrain.recipe import Data, Recipe
from fimlens.pretrain.step import initial_state, load_batch, make_gradient, make_update, train_shardings

REPETITIONS = 20  # of the gradient, and at least as many of the update


class StepCost(NamedTuple):
    """What one step takes.

    Attributes:
        gradient: seconds of the gradient.
        optimizer: seconds of the rest: the optimizer's update, applied if everything is finite.
        weights: bytes of the weights.
        state: bytes of the optimizer's state.
    """

    gradient: float
    optimizer: float
    weights: int
    state: int

    @property
    def share(self) -> float:
        """The optimizer's share of the time of a step."""
        return self.optimizer / (self.gradient + self.optimizer)


def measure_step(plan: Recipe, data: Data, mesh: Mesh | None = None) -> StepCost:
    """Time the gradient and the update of a plan, each alone, without training.

    Args:
        plan: the training.
        data: those of its batches.
        mesh: the devices; by default all of them, along data.

    Returns:
        The median time of the gradient, and the mean time of the update over whole refresh intervals. It is a mean because a
        median would leave out the refreshes, which are rare and slow.
    """
    tx, batches = plan.transform(), plan.batches(data)
    mesh = make_mesh() if mesh is None else mesh
    examples = [load_batch(plan, batches, mesh, k) for k in range(2)]
    initialize, pretrained = partial(initial_state, plan, tx), plan.pretrained()
    shardings = train_shardings(jax.eval_shape(initialize, pretrained), tx, mesh)
    gradient_seconds, update_seconds = [], []
    with jax.set_mesh(mesh):
        state = jax.jit(initialize, out_shardings=shardings)(pretrained)
        sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in (state.weights, state.optimizer)]
        gradient = jax.jit(make_gradient(plan), out_shardings=(None, shardings.weights))
        update = jax.jit(make_update(tx), donate_argnums=0, out_shardings=(shardings, None))
        loss_and_gradient = gradient(state.weights, examples[0])
        # The first calls compile, and the first update starts the bases, which costs more than a later refresh.
        state, _ = jax.block_until_ready(update(state, *loss_and_gradient))
        # Gradient and update take turns, so that a drift of the machine's speed affects both.
        for k in range(-(-REPETITIONS // plan.update_interval) * plan.update_interval):
            if k < REPETITIONS:
                seconds, loss_and_gradient = timed(gradient, state.weights, examples[k % 2])
                gradient_seconds.append(seconds)
            seconds, (state, _) = timed(update, state, *loss_and_gradient)
            update_seconds.append(seconds)
    return StepCost(statistics.median(gradient_seconds), statistics.mean(update_seconds), *sizes)


def measure_or_read(name: str, plan: Recipe, data: Data, path: Path) -> StepCost:
    """Return what a step of a plan takes: measured, or read from the file where this machine measured it before.

    Args:
        name: the plan's name in the file.
        plan: the training.
        data: those of its batches.
        path: the JSON file of all plans.
    """
    measured = json.loads(path.read_text()) if path.exists() else {}
    key = json.loads(json.dumps({"plan": asdict(plan), "machine": _machine()}))  # as the file has it, where a tuple is a list
    if {word: measured.get(name, {}).get(word) for word in key} != key:
        measured[name] = key | {"speed": measure_step(plan, data)._asdict()}
        write_atomically(path, json.dumps(measured, indent=2) + "\n")
    return StepCost(**measured[name]["speed"])


def _machine() -> dict[str, Any]:
    """What times depend on: the kind of processor, the cores that this process may use, and the devices."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # macOS has no affinity
    return {"processor": platform.machine(), "cores": cores, "devices": [each.device_kind for each in jax.devices()]}


def timed(call: Callable[..., Any], *arguments: PyTree) -> tuple[float, Any]:
    """Return the seconds until the whole result of a call is ready, and the result."""
    start = time.perf_counter()
    out = jax.block_until_ready(call(*arguments))  # JAX returns before the device has finished
    return time.perf_counter() - start, out


def least_seconds(call: Callable[..., PyTree], *arguments: PyTree, calls: int = 3) -> float:
    """Return the shortest time of several calls, after one that compiles: the call that other processes disturbed least."""
    jax.block_until_ready(call(*arguments))
    return min(timed(call, *arguments)[0] for _ in range(calls))

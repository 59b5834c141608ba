"""A trial: train a small byte-level language model with an optimizer for a few steps, and measure its held-out loss.

A trial takes seconds to minutes on a CPU. The ablation, several benchmarks and the notebooks are made of trials.
"""

import math
import statistics
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, PyTree, UInt8

from fimlens.language_model import llama, text
from fimlens.pretrain.schedule import warmup_cosine

CONFIG = llama.Config(vocabulary=256, hidden=64, mlp=172, heads=4, layers=6)


WINDOW, BATCH = 65, 16  # bytes in a window, the last of which is only predicted; windows in a step


ADAM_RATE = 0.01  # peak of Adam's rate on the leaves that a method leaves to Adam


def train(
    tx: optax.GradientTransformation, *, steps: int, seed: int = 0, config: llama.Config = CONFIG
) -> tuple[PyTree, Float[np.ndarray, " steps"]]:
    """Train a model on the sources of Python's standard library, of which one file in ten is held out.

    Args:
        tx: the optimizer, its learning rate included.
        steps: number of steps.
        seed: determines the first weights and the order of the data.
        config: the sizes of the model.

    Returns:
        The trained parameters, and the loss of every step in nats per byte.
    """
    training_files, _ = text.split(text.standard_library())
    windows = text.batches(text.read(training_files), size=BATCH, length=WINDOW, seed=seed)
    return train_on(windows, tx, steps=steps, seed=seed, config=config)


def train_on(
    windows: Iterator[UInt8[np.ndarray, "B T"]],
    tx: optax.GradientTransformation,
    *,
    steps: int,
    seed: int,
    config: llama.Config,
    callback: Callable[[], None] = lambda: None,
) -> tuple[PyTree, Float[np.ndarray, " steps"]]:
    """Train a model on a batch of windows a step. Arguments and results are as in `train`.

    Args:
        windows: batches without end, such as `text.batches` draws.
        tx, steps, seed, config: as in `train`.
        callback: called after each step.
    """
    loss = partial(llama.loss, config)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: PyTree, state: PyTree, batch: jax.Array) -> tuple[PyTree, PyTree, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(params, batch)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    params = llama.init(config, jax.random.key(seed))
    state = jax.jit(tx.init)(params)
    losses = []
    for _ in range(steps):
        params, state, value = step(params, state, jnp.asarray(next(windows), jnp.int32))
        losses.append(value)  # stays on the device: converting it here would make every step wait for the last
        callback()
    return params, np.array(losses)


def evaluate(params: PyTree, config: llama.Config = CONFIG) -> float:
    """Return the mean loss, in nats per byte, over fixed windows of the files that `train` holds out."""
    _, held_out_files = text.split(text.standard_library())
    # One seed for every trial: all optimizers are measured on the same windows.
    windows = text.batches(text.read(held_out_files), size=64, length=WINDOW, seed=1234)
    loss = jax.jit(partial(llama.loss, config))
    return statistics.mean(float(loss(params, jnp.asarray(next(windows), jnp.int32))) for _ in range(4))


def train_and_evaluate(
    make: Callable[[optax.Schedule], optax.GradientTransformation],
    rate: float,
    *,
    steps: int,
    seed: int = 0,
    config: llama.Config = CONFIG,
) -> float:
    """Train at one peak learning rate and return the held-out loss.

    Args:
        make: maps a learning-rate schedule, here `warmup_cosine`, to an optimizer.
        rate: the peak of the schedule.
        steps, seed, config: as in `train`.
    """
    params, _ = train(make(warmup_cosine(rate, steps)), steps=steps, seed=seed, config=config)
    return evaluate(params, config)


def train_beside_adam(
    make: Callable[..., optax.GradientTransformation], rate: float, adam_rate: float = ADAM_RATE, *, steps: int, seed: int = 0
) -> float:
    """Return the held-out loss as `train_and_evaluate` does, with one rate of Adam at every rate of a method.

    The loss is infinite if the training diverged.

    Args:
        make: maps a schedule to an optimizer; its argument `adam_learning_rate` is that of the leaves that are left to Adam.
        rate: the peak of the method's schedule.
        adam_rate: the peak of Adam's.
        steps, seed: as in `train`.
    """
    factor = adam_rate / rate

    def optimizer(schedule: optax.Schedule) -> optax.GradientTransformation:
        return make(schedule, adam_learning_rate=lambda t: factor * schedule(t))

    loss = train_and_evaluate(optimizer, rate, steps=steps, seed=seed)
    return loss if math.isfinite(loss) else math.inf

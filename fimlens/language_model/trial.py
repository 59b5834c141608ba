"""A trial: a small byte-level language model trained by an optimizer for a few steps, and its loss on text held out."""

import statistics
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, PyTree

from fimlens.language_model import llama, text

CONFIG = llama.Config(vocabulary=256, hidden=64, mlp=172, heads=4, layers=6)


WINDOW, BATCH = 65, 16  # bytes, one more than the context; and windows a step


def papers_schedule(rate: float, steps: int) -> optax.Schedule:
    """[G]'s: up to the rate over a tenth of the steps, and down by a cosine to a tenth of it."""
    return optax.warmup_cosine_decay_schedule(0.0, rate, max(steps // 10, 1), max(steps, 2), rate / 10)


def train(
    tx: optax.GradientTransformation, *, steps: int, seed: int = 0, config: llama.Config = CONFIG
) -> tuple[PyTree, Float[np.ndarray, " steps"]]:
    """Train a model on the sources of Python's standard library, one file in ten held out.

    Data order and initialisation are the seed's. Returns the parameters, and the loss of every step in nats per byte.
    """
    trained_on, _ = text.split(text.standard_library())
    loss = partial(llama.loss, config)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: PyTree, state: PyTree, batch: jax.Array) -> tuple[PyTree, PyTree, jax.Array]:
        value, slope = jax.value_and_grad(loss)(params, batch)
        updates, state = tx.update(slope, state, params)
        return optax.apply_updates(params, updates), state, value

    params = llama.init(config, jax.random.key(seed))
    state = jax.jit(tx.init)(params)
    batches = text.batches(text.read(trained_on), size=BATCH, length=WINDOW, seed=seed)
    losses = []
    for _ in range(steps):
        params, state, value = step(params, state, jnp.asarray(next(batches), jnp.int32))
        losses.append(value)
    return params, np.array(losses)


def loss_held_out(params: PyTree, config: llama.Config = CONFIG) -> float:
    """The mean loss in nats per byte, over fixed windows of the files that `train` leaves out."""
    _, held_out = text.split(text.standard_library())
    windows = text.batches(text.read(held_out), size=64, length=WINDOW, seed=1234)
    seen = jax.jit(partial(llama.loss, config))
    return statistics.mean(float(seen(params, jnp.asarray(next(windows), jnp.int32))) for _ in range(4))


def held_out_loss(
    make: Callable[[optax.Schedule], optax.GradientTransformation],
    rate: float,
    *,
    steps: int,
    seed: int = 0,
    config: llama.Config = CONFIG,
) -> float:
    """The loss held out after a training at this rate, by `papers_schedule`."""
    params, _ = train(make(papers_schedule(rate, steps)), steps=steps, seed=seed, config=config)
    return loss_held_out(params, config)

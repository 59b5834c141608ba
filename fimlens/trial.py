"""A trial: a small byte-level language model trained by an optimizer for a few steps, and its loss on text held out."""

import statistics
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from fimlens import llama, text

CONFIG = llama.Config(vocabulary=256, hidden=64, mlp=172, heads=4, layers=6)
WINDOW, BATCH = 65, 16  # bytes, one more than the context; and windows a step


def papers_schedule(rate: float, steps: int) -> optax.Schedule:
    """[G]'s: up to the rate over a tenth of the steps, and down by a cosine to a tenth of it."""
    return optax.warmup_cosine_decay_schedule(0.0, rate, max(steps // 10, 1), max(steps, 2), rate / 10)


def held_out_loss(
    make: Callable[[optax.Schedule], optax.GradientTransformation],
    rate: float,
    *,
    steps: int,
    seed: int = 0,
    config: llama.Config = CONFIG,
) -> float:
    """The mean loss in nats per byte, over fixed windows of files that were not trained on.

    Data order and initialisation are the seed's, the rate goes by `papers_schedule`. The text is the sources of Python's
    standard library, one file in ten held out.
    """
    trained_on, held_out = text.split(text.standard_library())
    tx, loss = make(papers_schedule(rate, steps)), partial(llama.loss, config)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: PyTree, state: PyTree, batch: jax.Array) -> tuple[PyTree, PyTree]:
        updates, state = tx.update(jax.grad(loss)(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    params = llama.init(config, jax.random.key(seed))
    state = jax.jit(tx.init)(params)
    batches = text.batches(text.read(trained_on), size=BATCH, length=WINDOW, seed=seed)
    for _ in range(steps):
        params, state = step(params, state, jnp.asarray(next(batches), jnp.int32))
    windows = text.batches(text.read(held_out), size=64, length=WINDOW, seed=1234)
    seen = jax.jit(loss)
    return statistics.mean(float(seen(params, jnp.asarray(next(windows), jnp.int32))) for _ in range(4))

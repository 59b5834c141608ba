"""The Fishers that fimlens lens compares structures on: of its built-in model, or of the user's own loss."""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fimlens.cli.arguments import attribute, long_progress
from fimlens.experiments.trial import train_on
from fimlens.fisher.fisher import Fisher
from fimlens.language_model import llama, text
from fimlens.models.batches import count_examples, require_batches
from fimlens.models.fishers import empirical_fisher, minibatch_fisher
from fimlens.models.matrices import select_matrices
from fimlens.models.model_fisher import model_fisher

WINDOW = 64  # bytes of context of the built-in model


FISHERS = ("empirical", "minibatch", "model", "model-exact")


def builtin_fishers(
    paths: list[Path] | None, patterns: list[str], kind: str, samples: int, steps: int, seed: int
) -> dict[str, Fisher]:
    """Train the small language model behind a bar, and compute the Fishers of its matrices on newly drawn windows."""
    corpus = text.read(paths or text.standard_library())
    config = llama.Config()
    # Refuses a wrong name before the training instead of after it.
    select_matrices("lens", llama.init(config, jax.random.key(seed)), patterns)
    tx = optax.adam(optax.cosine_decay_schedule(1e-2, max(steps, 1)))
    windows = text.batches(corpus, size=16, length=WINDOW + 1, seed=seed)
    with long_progress() as bar:
        task = bar.add_task("training a language model of bytes", total=steps)
        params, losses = train_on(windows, tx, steps=steps, seed=seed, config=config, callback=lambda: bar.advance(task))
        if steps:
            bar.update(task, description=f"language model of bytes: {losses[-1]:.3f} nats a byte")
    length = 9 if kind == "model-exact" else WINDOW + 1  # 8 predictions x 256 labels make 2048 gradients a window
    size = min(16, samples)
    fresh = text.batches(corpus, size=size, length=length, seed=seed + 1)
    count = samples if kind == "minibatch" else -(-samples // size)
    batches = [jnp.asarray(next(fresh), jnp.int32) for _ in range(count)]
    if kind.startswith("model"):
        return _compute_fishers(kind, partial(llama.logits, config), params, [b[:, :-1] for b in batches], patterns, seed)
    return _compute_fishers(kind, partial(llama.loss, config), params, batches, patterns, seed)


def user_fishers(
    loss: str, params: str | None, batches: str | None, patterns: list[str], kind: str, samples: int, seed: int
) -> dict[str, Fisher]:
    """Compute the Fishers of a user's own model."""
    module = loss.partition(":")[0]
    model = attribute("--loss", loss)
    given = [
        attribute(f"--{name}", reference or f"{module}:{name}")
        for name, reference in (("params", params), ("batches", batches))
    ]
    weights, data = (value() if callable(value) else value for value in given)
    require_batches("lens", data)
    few = islice(data, samples) if kind == "minibatch" else _first(data, samples)
    return _compute_fishers(kind, model, weights, few, patterns, seed)


def _first(batches: Iterable[Any], samples: int) -> Iterator[Any]:
    """Yield batches until they hold this many examples, cutting the last. No batch is drawn beyond: batches may be endless."""
    for batch in batches:
        count = count_examples("lens", batch)
        yield jax.tree.map(lambda x, most=samples: x[:most], batch)
        samples -= count
        if samples <= 0:
            return


def _compute_fishers(kind: str, model: Any, params: Any, batches: Any, patterns: list[str], seed: int) -> dict[str, Fisher]:
    """Compute Fishers of the kind that --fisher names."""
    if kind == "empirical":
        return empirical_fisher(model, params, batches, matrices=patterns)
    if kind == "minibatch":
        return minibatch_fisher(model, params, batches, matrices=patterns)
    labels = "exact" if kind == "model-exact" else "sampled"
    return model_fisher(model, params, batches, labels=labels, key=jax.random.key(seed), matrices=patterns)

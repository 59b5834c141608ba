"""Fishers of a model: any JAX loss or logits, any pytree of parameters, any iterable of batches, no hooks.

Per-example gradients of the chosen matrices are taken in chunks, as many at a time as XLA's own memory analysis
says fit in the given number of bytes.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from fimlens.fisher.batches import (
    Loss,
    Matrices,
    _chunked,
    _gather,
    _require_scalar,
    _traced,
    choose,
    examples,
    require_batches,
)
from fimlens.fisher.fisher import Fisher

MAX_BYTES = 2**30


REDUCTIONS = ("mean", "sum")


LABELS = ("exact", "sampled")


def empirical_fisher(
    loss: Loss,
    params: PyTree,
    batches: Iterable[PyTree],
    *,
    matrices: Sequence[str] = ("*",),
    reduction: str = "mean",
    max_bytes: int = MAX_BYTES,
) -> dict[str, Fisher]:
    """The empirical Fisher, one gradient an example, of each matrix of `params`, by its path such as "layers/0/query".

    Args:
        loss: loss(params, batch), a scalar; called on batches of one example, sliced from the leading axes of a batch.
        params: any pytree; its two-dimensional leaves are the matrices.
        batches: an iterable of batches, each a pytree of arrays with a common leading axis.
        matrices: paths, or patterns such as "layers/*/query".
        reduction: "mean" or "sum" over the examples.
        max_bytes: bound on the memory of a chunk of gradients, and on that of the gradients kept.

    Raises:
        TypeError: `batches` is a single batch.
        ValueError: no such matrix, no matrix or no batch at all, two parameters of one path, a batch without a common leading
            axis, a loss that is not scalar, gradients that are not finite, or one example or all kept gradients over
            `max_bytes`.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> loss = lambda params, batch: jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)
        >>> batch = {"x": jnp.ones((6, 3)), "y": jnp.zeros((6, 2))}
        >>> fl.empirical_fisher(loss, {"w": jnp.ones((3, 2))}, [batch])["w"]
        Fisher of a 3 x 2 matrix from 6 samples: empirical, one gradient an example, mean over 6 examples
    """
    _require_known("empirical_fisher", "reduction", reduction, REDUCTIONS)
    require_batches("empirical_fisher", batches)
    chosen, merge = choose("empirical_fisher", params, matrices)

    def one(example: PyTree, chosen: Matrices) -> Matrices:
        return jax.grad(lambda W: loss(merge(W), jax.tree.map(lambda x: x[None], example)))(chosen)

    chunked = _chunked("empirical_fisher", one, chosen, max_bytes)

    def gradients(batch: PyTree) -> Matrices:
        examples("empirical_fisher", batch)
        _require_scalar("empirical_fisher", loss, params, jax.tree.map(lambda x: x[:1], batch))
        return chunked(batch)

    kept = _gather("empirical_fisher", (gradients(batch) for batch in batches), max_bytes)
    return _fishers("empirical_fisher", kept, "empirical, one gradient an example", "examples", reduction)


def minibatch_fisher(
    loss: Loss,
    params: PyTree,
    batches: Iterable[PyTree],
    *,
    matrices: Sequence[str] = ("*",),
    reduction: str = "mean",
    max_bytes: int = MAX_BYTES,
) -> dict[str, Fisher]:
    """The Fisher that optimizers see: one gradient a batch, of the loss as given (so of its mean over the batch, usually).

    Arguments and errors are those of `empirical_fisher`.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> loss = lambda params, x: jnp.mean((x @ params["w"]) ** 2)
        >>> fl.minibatch_fisher(loss, {"w": jnp.ones((3, 2))}, [jnp.ones((6, 3)), jnp.zeros((6, 3))])["w"]
        Fisher of a 3 x 2 matrix from 2 samples: empirical, one gradient a minibatch, mean over 2 minibatches
    """
    _require_known("minibatch_fisher", "reduction", reduction, REDUCTIONS)
    require_batches("minibatch_fisher", batches)
    chosen, merge = choose("minibatch_fisher", params, matrices)
    gradient = jax.jit(jax.grad(lambda W, batch: loss(merge(W), batch)))

    def one(batch: PyTree) -> Matrices:
        _require_scalar("minibatch_fisher", loss, params, batch)
        return jax.tree.map(lambda g: g[None], gradient(chosen, batch))

    kept = _gather("minibatch_fisher", (one(batch) for batch in batches), max_bytes)
    return _fishers("minibatch_fisher", kept, "empirical, one gradient a minibatch", "minibatches", reduction)


def model_fisher(
    logits: Callable[[PyTree, PyTree], Array],
    params: PyTree,
    batches: Iterable[PyTree],
    *,
    labels: str = "exact",
    key: Array | None = None,
    matrices: Sequence[str] = ("*",),
    reduction: str = "mean",
    max_bytes: int = MAX_BYTES,
) -> dict[str, Fisher]:
    """The model Fisher (the true one: labels from the model) of each matrix of a classifier or language model.

    `logits(params, inputs)` is (batch, ..., classes): each position along the axes between is a prediction of its own,
    independent of the others given the inputs. F is the mean (or sum) over predictions of E[grad log p grad log p^T].

    Args:
        labels: "exact" sums over the classes, at classes x positions gradients an input; "sampled" draws one label
            each from the model, at one gradient an input, equal in expectation.
        key: draws sampled labels; jax.random.key(0) by default.

    Other arguments and errors are those of `empirical_fisher`, with `batches` of inputs alone.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> logits = lambda params, x: x @ params["w"]
        >>> fl.model_fisher(logits, {"w": jnp.ones((3, 2))}, [jnp.ones((6, 3))])["w"]
        Fisher of a 3 x 2 matrix from 12 samples: model, labels summed exactly over 2 classes, mean over 6 predictions
    """
    _require_known("model_fisher", "labels", labels, LABELS)
    _require_known("model_fisher", "reduction", reduction, REDUCTIONS)
    require_batches("model_fisher", batches)
    chosen, merge = choose("model_fisher", params, matrices)

    def one(example: tuple[PyTree, Array], chosen: Matrices) -> Matrices:
        inputs, key = example

        def log_p(W: Matrices) -> Float[Array, "positions classes"]:
            scores = logits(merge(W), jax.tree.map(lambda x: x[None], inputs))
            return jax.nn.log_softmax(scores.reshape(-1, scores.shape[-1]))

        value, pull = jax.vjp(log_p, chosen)
        positions, classes = value.shape
        if labels == "sampled":
            drawn = jax.nn.one_hot(jax.random.categorical(key, value), classes, dtype=value.dtype)
            return pull(drawn / math.sqrt(positions))[0]
        units = jnp.eye(positions * classes, dtype=value.dtype).reshape(-1, positions, classes)
        weights = jnp.sqrt(classes * jnp.exp(value)).reshape(-1, 1, 1)  # so that the plain mean is E over labels
        return jax.vmap(lambda unit: pull(unit)[0])(units * weights)

    chunked = _chunked("model_fisher", one, chosen, max_bytes)
    sizes: set[tuple[int, int]] = set()  # (positions, classes)

    def gradients(inputs: PyTree, key: Array) -> Matrices:
        count = examples("model_fisher", inputs)
        out = _traced("model_fisher", logits, params, inputs)
        if getattr(out, "ndim", 0) < 2 or out.shape[0] != count:
            raise ValueError(
                f"model_fisher: logits must be (batch, ..., classes), of {count} inputs; got "
                f"{getattr(out, 'shape', out)}. For a loss that returns a scalar, use empirical_fisher."
            )
        sizes.add((math.prod(out.shape[1:-1]), out.shape[-1]))
        per_input = chunked((inputs, jax.random.split(key, count)))
        return jax.tree.map(lambda g: g.reshape(-1, *g.shape[-2:]), per_input)

    key = jax.random.key(0) if key is None else key
    parts = (gradients(inputs, jax.random.fold_in(key, k)) for k, inputs in enumerate(batches))
    kept = _gather("model_fisher", parts, max_bytes)
    positions, classes = sizes.pop()
    if sizes:
        raise ValueError("model_fisher: batches differ in their number of positions or classes. Pad or group them.")
    samples = len(next(iter(kept.values())))
    if labels == "exact":
        kind, predictions = f"model, labels summed exactly over {classes} classes", samples // classes
    else:
        kind, predictions = "model, labels sampled from the model", samples * positions
    return _fishers("model_fisher", kept, kind, "predictions", reduction, predictions)


def _require_known(call: str, name: str, value: str, known: tuple[str, str]) -> None:
    if value not in known:
        raise ValueError(f'{call}: {name} is "{known[0]}" or "{known[1]}"; got {value!r}')


def _fishers(call: str, kept: Matrices, kind: str, unit: str, reduction: str, count: int | None = None) -> dict[str, Fisher]:
    fishers = {}
    for name, G in kept.items():
        total = len(G) if count is None else count
        try:
            fisher = Fisher.from_gradients(G, kind=kind, normalisation=f"{reduction} over {total} {unit}")
        except ValueError as error:
            raise ValueError(f"{call}: matrix {name!r}: {error}") from error
        fishers[name] = fisher.scaled(float(total)) if reduction == "sum" else fisher
    return fishers

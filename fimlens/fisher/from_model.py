"""Fishers of a model: for any JAX loss or logits, any pytree of parameters and any iterable of batches, without hooks.

Per-example gradients of the chosen matrices are computed in chunks, as many at a time as fit in a given number of bytes.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from fimlens.fisher.batches import (
    Loss,
    Matrices,
    collect,
    count_examples,
    map_in_chunks,
    require_batches,
    require_scalar_loss,
    select_matrices,
    trace_shapes,
)
from fimlens.fisher.fisher import Fisher

MAX_BYTES = 2**30  # default bound on the memory of gradients


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
    """Compute the empirical Fisher of each matrix of a model: the mean of g g^T over per-example gradients of the loss.

    Use it for the Fisher of a trained model on data with labels. `minibatch_fisher` is the one that an optimizer sees, and
    `model_fisher` the true one, with labels drawn from the model.

    Args:
        loss: loss(params, batch), which returns a scalar. It is called on batches of one example, sliced from the leading
            axes of a batch.
        params: any pytree. Its two-dimensional floating-point leaves are the matrices.
        batches: an iterable of batches. A batch is a pytree of arrays whose leading axes have one length.
        matrices: which matrices: paths such as "layers/0/query", or patterns such as "layers/*/query". All by default.
        reduction: "mean" or "sum" over the examples.
        max_bytes: bound on the memory of a chunk of gradients, and on that of the gradients kept.

    Returns:
        A Fisher for each matrix chosen, by its path.

    Raises:
        TypeError: `batches` is a single batch.
        ValueError: no matrix has such a path; there is no matrix, or no batch; two parameters have one path; the arrays of a
            batch have different leading axes; the loss is not a scalar; gradients are not finite; the gradients of one
            example, or all gradients kept, exceed `max_bytes`.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> loss = lambda params, batch: jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)
        >>> batch = {"x": jnp.ones((6, 3)), "y": jnp.zeros((6, 2))}
        >>> fl.empirical_fisher(loss, {"w": jnp.ones((3, 2))}, [batch])["w"]
        Fisher of a 3 x 2 matrix from 6 samples: empirical, one gradient an example, mean over 6 examples
    """
    _require_choice("empirical_fisher", "reduction", reduction, REDUCTIONS)
    require_batches("empirical_fisher", batches)
    chosen, merge = select_matrices("empirical_fisher", params, matrices)

    def one(example: PyTree, chosen: Matrices) -> Matrices:
        return jax.grad(lambda W: loss(merge(W), jax.tree.map(lambda x: x[None], example)))(chosen)

    # Per-example gradients: vmap over a loss of one example works for every loss, and needs no hooks into layers.
    chunked = map_in_chunks("empirical_fisher", one, chosen, max_bytes)

    def gradients(batch: PyTree) -> Matrices:
        count_examples("empirical_fisher", batch)
        require_scalar_loss("empirical_fisher", loss, params, jax.tree.map(lambda x: x[:1], batch))
        return chunked(batch)

    kept = collect("empirical_fisher", (gradients(batch) for batch in batches), max_bytes)
    return _make_fishers("empirical_fisher", kept, "empirical, one gradient an example", "examples", reduction)


def minibatch_fisher(
    loss: Loss,
    params: PyTree,
    batches: Iterable[PyTree],
    *,
    matrices: Sequence[str] = ("*",),
    reduction: str = "mean",
    max_bytes: int = MAX_BYTES,
) -> dict[str, Fisher]:
    """Compute the Fisher that an optimizer sees: the mean of g g^T over the gradients of minibatches.

    Use it to ask how well an optimizer's structure fits what it is fed. Each batch gives one gradient, of the loss as given,
    so usually of the mean over the batch. Arguments, result and errors are those of `empirical_fisher`.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> loss = lambda params, x: jnp.mean((x @ params["w"]) ** 2)
        >>> fl.minibatch_fisher(loss, {"w": jnp.ones((3, 2))}, [jnp.ones((6, 3)), jnp.zeros((6, 3))])["w"]
        Fisher of a 3 x 2 matrix from 2 samples: empirical, one gradient a minibatch, mean over 2 minibatches
    """
    _require_choice("minibatch_fisher", "reduction", reduction, REDUCTIONS)
    require_batches("minibatch_fisher", batches)
    chosen, merge = select_matrices("minibatch_fisher", params, matrices)
    gradient = jax.jit(jax.grad(lambda W, batch: loss(merge(W), batch)))

    def one(batch: PyTree) -> Matrices:
        require_scalar_loss("minibatch_fisher", loss, params, batch)
        return jax.tree.map(lambda g: g[None], gradient(chosen, batch))

    kept = collect("minibatch_fisher", (one(batch) for batch in batches), max_bytes)
    return _make_fishers("minibatch_fisher", kept, "empirical, one gradient a minibatch", "minibatches", reduction)


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
    """Compute the model Fisher of each matrix of a classifier or language model: the true Fisher, with labels from the model.

    Use it where curvature is meant: it is the Gauss-Newton matrix of the cross entropy. F is the mean (or the sum) over
    predictions of E[grad log p grad log p^T], with the label drawn from the model's own p.

    Args:
        logits: logits(params, inputs), which returns (batch, ..., classes). Each position along the axes between counts as a
            prediction of its own, independent of the others given the inputs.
        params: any pytree. Its two-dimensional floating-point leaves are the matrices.
        batches: an iterable of batches of inputs, without labels.
        labels: "exact" sums over the classes, at the price of classes x positions gradients for each input. "sampled" draws
            one label for each position, at the price of one gradient for each input; its expectation is the same.
        key: draws the sampled labels; jax.random.key(0) by default.
        matrices: as in `empirical_fisher`.
        reduction: "mean" or "sum" over the predictions.
        max_bytes: as in `empirical_fisher`.

    Returns:
        A Fisher for each matrix chosen, by its path.

    Raises:
        TypeError: `batches` is a single batch.
        ValueError: as in `empirical_fisher`; or `logits` returns another shape, or batches differ in their number of positions
            or classes.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> logits = lambda params, x: x @ params["w"]
        >>> fl.model_fisher(logits, {"w": jnp.ones((3, 2))}, [jnp.ones((6, 3))])["w"]
        Fisher of a 3 x 2 matrix from 12 samples: model, labels summed exactly over 2 classes, mean over 6 predictions
    """
    _require_choice("model_fisher", "labels", labels, LABELS)
    _require_choice("model_fisher", "reduction", reduction, REDUCTIONS)
    require_batches("model_fisher", batches)
    chosen, merge = select_matrices("model_fisher", params, matrices)

    def one(example: tuple[PyTree, Array], chosen: Matrices) -> Matrices:
        inputs, key = example

        def log_p(W: Matrices) -> Float[Array, "positions classes"]:
            scores = logits(merge(W), jax.tree.map(lambda x: x[None], inputs))
            return jax.nn.log_softmax(scores.reshape(-1, scores.shape[-1]))

        value, pull = jax.vjp(log_p, chosen)
        positions, classes = value.shape
        if labels == "sampled":
            # Scores of different positions are independent with mean zero, so their cross terms vanish in expectation.
            drawn = jax.nn.one_hot(jax.random.categorical(key, value), classes, dtype=value.dtype)
            return pull(drawn / math.sqrt(positions))[0]
        units = jnp.eye(positions * classes, dtype=value.dtype).reshape(-1, positions, classes)
        weights = jnp.sqrt(classes * jnp.exp(value)).reshape(-1, 1, 1)  # the plain mean of g g^T is then E over labels
        return jax.vmap(lambda unit: pull(unit)[0])(units * weights)

    chunked = map_in_chunks("model_fisher", one, chosen, max_bytes)
    sizes: set[tuple[int, int]] = set()  # (positions, classes)

    def gradients(inputs: PyTree, key: Array) -> Matrices:
        count = count_examples("model_fisher", inputs)
        out = trace_shapes("model_fisher", logits, params, inputs)
        if getattr(out, "ndim", 0) < 2 or out.shape[0] != count:
            raise ValueError(
                f"model_fisher: logits must be (batch, ..., classes), of {count} inputs; got "
                f"{getattr(out, 'shape', out)}. For a loss that returns a scalar, use empirical_fisher."
            )
        # The mean is over predictions, so batches with other numbers of positions or classes would be weighed wrongly.
        sizes.add((math.prod(out.shape[1:-1]), out.shape[-1]))
        per_input = chunked((inputs, jax.random.split(key, count)))
        return jax.tree.map(lambda g: g.reshape(-1, *g.shape[-2:]), per_input)

    key = jax.random.key(0) if key is None else key
    parts = (gradients(inputs, jax.random.fold_in(key, k)) for k, inputs in enumerate(batches))
    kept = collect("model_fisher", parts, max_bytes)
    positions, classes = sizes.pop()
    if sizes:
        raise ValueError("model_fisher: batches differ in their number of positions or classes. Pad or group them.")
    samples = len(next(iter(kept.values())))
    if labels == "exact":
        kind, predictions = f"model, labels summed exactly over {classes} classes", samples // classes
    else:
        kind, predictions = "model, labels sampled from the model", samples * positions
    return _make_fishers("model_fisher", kept, kind, "predictions", reduction, predictions)


def _require_choice(call: str, name: str, value: str, known: tuple[str, str]) -> None:
    """Refuse a value that is neither of two."""
    if value not in known:
        raise ValueError(f'{call}: {name} is "{known[0]}" or "{known[1]}"; got {value!r}')


def _make_fishers(
    call: str, kept: Matrices, kind: str, unit: str, reduction: str, count: int | None = None
) -> dict[str, Fisher]:
    """Make a Fisher of each matrix's gradients; `count` is what the mean is over, if not the gradients."""
    fishers = {}
    for name, G in kept.items():
        total = len(G) if count is None else count
        try:
            fisher = Fisher.from_gradients(G, kind=kind, normalisation=f"{reduction} over {total} {unit}")
        except ValueError as error:
            raise ValueError(f"{call}: matrix {name!r}: {error}") from error
        fishers[name] = fisher.scaled(float(total)) if reduction == "sum" else fisher
    return fishers

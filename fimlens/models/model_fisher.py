"""The model Fisher: labels are drawn from the model itself, exactly or at random, for a softmax or for a regression."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from fimlens.fisher.fisher import Fisher
from fimlens.models.batches import (
    MAX_BYTES,
    collect,
    count_examples,
    make_fishers,
    map_in_chunks,
    open_model,
    require_choice,
    trace_shapes,
)
from fimlens.models.matrices import Matrices
from fimlens.transforms.axes import Axes
from fimlens.transforms.leaf_rules import Rule

LABELS = ("exact", "sampled")


Scores = Float[Array, "positions classes"]


class _Likelihood(NamedTuple):
    """How grad log p is made of functions of the outputs, one for each class, and what of it is printed."""

    scores: Callable[[Scores], Scores]  # grad log p is a combination of their gradients
    weights: Callable[[Scores], Scores]  # of the squares of these gradients, in the mean over labels
    draw: Callable[[Array, Scores], Scores]  # the coefficients of one label
    labels: str
    classes: str


def _one_hot(key: Array, log_p: Scores) -> Scores:
    return jax.nn.one_hot(jax.random.categorical(key, log_p), log_p.shape[-1], dtype=log_p.dtype)


# grad log p of a label is that of its entry; for a Gaussian it is the sum of (y - mean) grad mean, with y - mean ~ N(0, 1).
LIKELIHOODS = {
    "categorical": _Likelihood(jax.nn.log_softmax, jnp.exp, _one_hot, "labels", "classes"),
    "gaussian": _Likelihood(
        lambda mean: mean,
        jnp.ones_like,
        lambda key, mean: jax.random.normal(key, mean.shape, mean.dtype),
        "Gaussian labels",
        "outputs",
    ),
}


def model_fisher(
    logits: Callable[[PyTree, PyTree], Array],
    params: PyTree,
    batches: Iterable[PyTree],
    *,
    labels: str = "exact",
    key: Array | None = None,
    likelihood: str = "categorical",
    matrices: Sequence[str] = ("*",),
    route: Rule | str | PyTree | None = None,
    axes: Axes | Rule | PyTree | None = None,
    reduction: str = "mean",
    max_bytes: int = MAX_BYTES,
) -> dict[str, Fisher]:
    """Compute the model Fisher of each matrix: the true Fisher of a classifier or a regression, with labels from the model.

    Use it where curvature is meant: it is the Gauss-Newton matrix of the cross entropy or, for a regression, of half the
    squared error. F is the mean (or the sum) over predictions of E[grad log p grad log p^T], with the label drawn from the
    model's own p.

    Args:
        logits: logits(params, inputs), which returns (batch, ..., classes); for a regression the means, (batch, ..., outputs),
            or (batch,) for one output. Each position along the axes between counts as a prediction of its own, independent of
            the others given the inputs.
        params: as in `empirical_fisher`.
        batches: an iterable of batches of inputs, without labels.
        labels: "exact" sums over the classes (or outputs), at the price of classes x positions gradients for each input.
            "sampled" draws one label for each position, at the price of one gradient for each input; its expectation is the
            same.
        key: draws the sampled labels; jax.random.key(0) by default.
        likelihood: "categorical", of a softmax; or "gaussian", of unit variance, for a regression.
        matrices: as in `empirical_fisher`.
        route: as in `empirical_fisher`.
        axes: as in `empirical_fisher`.
        reduction: "mean" or "sum" over the predictions.
        max_bytes: as in `empirical_fisher`.

    Returns:
        A Fisher for each matrix chosen, by its name.

    Raises:
        TypeError: `batches` is a single batch.
        ValueError: as in `empirical_fisher`; or `logits` returns another shape, or batches differ in their number of positions
            or classes.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> logits = lambda params, x: x @ params["w"]
        >>> fl.model_fisher(logits, {"w": jnp.ones((3, 2))}, [jnp.ones((6, 3))])["w"]
        Fisher of a 3 x 2 matrix from 12 samples: model, labels summed exactly over 2 classes, mean over 6 predictions
        >>> fl.model_fisher(logits, {"w": jnp.ones((3, 2))}, [jnp.ones((6, 3))], likelihood="gaussian")["w"]
        Fisher of a 3 x 2 matrix from 12 samples: model, Gaussian labels summed exactly over 2 outputs, mean over 6 predictions
    """
    require_choice("model_fisher", "likelihood", likelihood, tuple(LIKELIHOODS))
    require_choice("model_fisher", "labels", labels, LABELS)
    chosen, others, merge, take_apart = open_model("model_fisher", params, batches, matrices, route, axes, reduction)

    p = LIKELIHOODS[likelihood]

    def outputs(params: PyTree, inputs: PyTree) -> Array:
        out = logits(params, inputs)
        return out[:, None] if likelihood == "gaussian" and getattr(out, "ndim", 0) == 1 else out

    def one(example: tuple[PyTree, Array], weights: tuple[Matrices, Matrices]) -> Matrices:
        (inputs, key), (chosen, others) = example, weights

        def scores(W: Matrices) -> Scores:
            out = outputs(merge(others | W), jax.tree.map(lambda x: x[None], inputs))
            return p.scores(out.reshape(-1, out.shape[-1]))

        value, pull = jax.vjp(scores, chosen)
        positions, classes = value.shape
        if labels == "sampled":
            # Scores of different positions are independent with mean zero, so their cross terms vanish in expectation.
            return take_apart(pull(p.draw(key, value) / math.sqrt(positions))[0])
        units = jnp.eye(positions * classes, dtype=value.dtype).reshape(-1, positions, classes)
        shares = jnp.sqrt(classes * p.weights(value)).reshape(-1, 1, 1)  # the plain mean of g g^T is then E over labels
        return jax.vmap(lambda unit: take_apart(pull(unit)[0]))(units * shares)

    chunked = map_in_chunks("model_fisher", one, (chosen, others), max_bytes)
    sizes: set[tuple[int, int]] = set()  # (positions, classes)

    def gradients(inputs: PyTree, key: Array) -> Matrices:
        count = count_examples("model_fisher", inputs)
        out = trace_shapes("model_fisher", outputs, params, inputs)
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
    predictions = samples // classes if labels == "exact" else samples * positions
    drawn = f"summed exactly over {classes} {p.classes}" if labels == "exact" else "sampled from the model"
    kind = f"model, {p.labels} {drawn}"
    return make_fishers("model_fisher", kept, kind, "predictions", reduction, predictions)

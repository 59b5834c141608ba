"""Fishers of a model: any JAX loss or logits, any pytree of parameters, any iterable of batches, no hooks.

Per-example gradients of the chosen matrices are taken in chunks, as many at a time as XLA's own memory analysis
says fit in the given number of bytes.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fimlens.fisher import Fisher
from fimlens.views import path_name

MAX_BYTES = 2**30
REDUCTIONS = ("mean", "sum")
LABELS = ("exact", "sampled")
Loss = Callable[[PyTree, PyTree], Array]
Matrices = dict[str, Array]


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


def matrix_paths(params: PyTree) -> Matrices:
    """The two-dimensional leaves of a tree of parameters, by path."""
    named = {name: jnp.asarray(leaf) for name, leaf in _named_leaves(params)}
    return {name: W for name, W in named.items() if W.ndim == 2 and jnp.issubdtype(W.dtype, jnp.floating)}


def _named_leaves(params: PyTree) -> list[tuple[str, Any]]:
    return [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]


def choose(call: str, params: PyTree, patterns: Sequence[str]) -> tuple[Matrices, Callable[[Matrices], PyTree]]:
    """The matrices asked for, and how to put changed ones back among the parameters."""
    if not jax.tree.leaves(params):
        raise ValueError(f"{call}: the parameters are an empty pytree. Pass the model's parameters.")
    if isinstance(patterns, str):
        patterns = (patterns,)
    if not patterns:
        raise ValueError(f"{call}: matrices is empty. Name some, or leave it out for all.")
    counts = Counter(name for name, _ in _named_leaves(params))
    for name in counts:
        if counts[name] > 1:
            raise ValueError(f"{call}: {counts[name]} parameters have the path {name!r}. Rename a key that holds a slash.")
    found = matrix_paths(params)
    if not found:
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]
        raise ValueError(f"{call}: no parameter is a matrix (two-dimensional, floating); the shapes are {shapes}.")
    named: set[str] = set()
    for pattern in patterns:
        matching = [pattern] if pattern in found else [name for name in found if fnmatchcase(name, pattern)]
        if not matching:
            raise ValueError(f"{call}: no matrix is named {pattern!r}. The matrices are {', '.join(found)}.")
        named.update(matching)
    chosen = {name: W for name, W in found.items() if name in named}

    def merge(changed: Matrices) -> PyTree:
        def put(path: Any, leaf: Array) -> Array:
            return changed.get(path_name(path), leaf)

        return jax.tree_util.tree_map_with_path(put, params)

    return chosen, merge


def require_batches(call: str, batches: object) -> None:
    """Refuse a single batch where batches are expected: what iterates over its keys or rows would pass for batches."""
    if isinstance(batches, Mapping | jax.Array | np.ndarray) or not isinstance(batches, Iterable):
        raise TypeError(
            f"{call}: batches is an iterable of batches, such as a list; got one {type(batches).__name__}. "
            "Pass a single batch as [batch]."
        )


def examples(call: str, batch: PyTree) -> int:
    """How many examples a batch holds, along the leading axis that its arrays share."""
    shapes = [jnp.shape(x) for x in jax.tree.leaves(batch)]
    lengths = {shape[:1] for shape in shapes}
    if len(lengths) != 1 or lengths & {(), (0,)}:
        raise ValueError(
            f"{call}: the arrays of a batch share their leading axis, with one entry for each example; got shapes {shapes}. "
            "Leave constants to the loss."
        )
    return shapes[0][0]


def _require_known(call: str, name: str, value: str, known: tuple[str, str]) -> None:
    if value not in known:
        raise ValueError(f'{call}: {name} is "{known[0]}" or "{known[1]}"; got {value!r}')


def _traced(call: str, model: Callable[[PyTree, PyTree], Array], params: PyTree, batch: PyTree) -> Any:
    """What the user's function returns, in shapes. A tuple of arrays may be two batches, or one that was not put in a list."""
    try:
        return jax.eval_shape(model, params, batch)
    except Exception as error:
        shapes = [jnp.shape(x) for x in jax.tree.leaves(batch)]
        error.add_note(f"{call}: this was at a batch of arrays of shapes {shapes}. Pass a single batch as [batch].")
        raise


def _require_scalar(call: str, loss: Loss, params: PyTree, batch: PyTree) -> None:
    out = _traced(call, loss, params, batch)
    if getattr(out, "shape", None) != ():
        raise ValueError(
            f"{call}: loss(params, batch) must be one number; got {getattr(out, 'shape', out)}. Take its mean over the batch"
            + (", or use model_fisher for logits." if getattr(out, "shape", None) else ", without auxiliary outputs.")
        )


def _chunked(
    call: str, one: Callable[[PyTree, Matrices], Matrices], chosen: Matrices, max_bytes: int
) -> Callable[[PyTree], Matrices]:
    """one(example, chosen) over the leading axis of a batch, as many examples at a time as fit in max_bytes."""

    def compiled(batch: PyTree, chunk: int) -> tuple[Any, int]:
        def run(batch: PyTree, chosen: Matrices) -> Matrices:
            return jax.lax.map(lambda example: one(example, chosen), batch, batch_size=chunk)

        program = jax.jit(run).lower(batch, chosen).compile()
        analysis = program.memory_analysis()
        return program, analysis.temp_size_in_bytes if analysis else 0

    def fitted(batch: PyTree) -> Any:
        chunk = jax.tree.leaves(batch)[0].shape[0]
        program, used = compiled(batch, chunk)
        while used > max_bytes and chunk > 1:
            chunk = max(1, min(chunk // 2, int(chunk * max_bytes / used)))
            program, used = compiled(batch, chunk)
        if used > max_bytes:
            raise ValueError(
                f"{call}: the gradients of one example take {used / 2**20:.4g} MiB, over max_bytes = {max_bytes / 2**20:.4g} "
                "MiB. Raise max_bytes, choose fewer matrices, shorten the example, or sample the labels."
            )
        return program

    programs: dict[Any, Any] = {}

    def run(batch: PyTree) -> Matrices:
        layout = jax.tree.structure(batch), *((jnp.shape(x), jnp.result_type(x)) for x in jax.tree.leaves(batch))
        if layout not in programs:
            programs[layout] = fitted(batch)
        return programs[layout](batch, chosen)

    return run


def _gather(call: str, parts: Iterable[Matrices], max_bytes: int) -> Matrices:
    kept: list[Matrices] = []
    total = 0
    for part in parts:
        total += sum(g.nbytes for g in part.values())
        if total > max_bytes:
            raise ValueError(
                f"{call}: the gradients kept so far take {total / 2**20:.4g} MiB, over max_bytes = {max_bytes / 2**20:.4g} "
                "MiB. Raise max_bytes, choose fewer matrices or take fewer examples."
            )
        kept.append(part)
    if not kept:
        raise ValueError(f"{call}: there are no batches. An iterator can be used only once: pass a list, or make it anew.")
    return {name: jnp.concatenate([part[name] for part in kept]) for name in kept[0]}


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

"""The plumbing of `from_model`: which parameters are matrices, and how their gradients are computed and collected."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from fimlens._validate import path_name

Loss = Callable[[PyTree, PyTree], Array]  # of parameters and a batch


Matrices = dict[str, Array]  # by path


def _matrices_of(params: PyTree) -> Matrices:
    """Return the two-dimensional floating-point leaves of a tree of parameters."""
    named = {name: jnp.asarray(leaf) for name, leaf in _named_leaves(params)}
    return {name: W for name, W in named.items() if W.ndim == 2 and jnp.issubdtype(W.dtype, jnp.floating)}


def _named_leaves(params: PyTree) -> list[tuple[str, Any]]:
    return [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]


def select_matrices(call: str, params: PyTree, patterns: Sequence[str]) -> tuple[Matrices, Callable[[Matrices], PyTree]]:
    """Return the matrices that the patterns name, and a function that puts changed ones back among the parameters."""
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
    found = _matrices_of(params)
    if not found:
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]
        raise ValueError(f"{call}: no parameter is a matrix (two-dimensional, floating); the shapes are {shapes}.")
    named: set[str] = set()
    for pattern in patterns:
        # A path may itself look like a pattern, as "w[0]" does, so an exact match comes first.
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
    """Refuse a single batch: its keys or rows can be iterated over, and would pass for batches."""
    if isinstance(batches, Mapping | jax.Array | np.ndarray) or not isinstance(batches, Iterable):
        raise TypeError(
            f"{call}: batches is an iterable of batches, such as a list; got one {type(batches).__name__}. "
            "Pass a single batch as [batch]."
        )


def count_examples(call: str, batch: PyTree) -> int:
    """Return the length of the leading axis that the arrays of a batch share."""
    shapes = [jnp.shape(x) for x in jax.tree.leaves(batch)]
    lengths = {shape[:1] for shape in shapes}
    if len(lengths) != 1 or lengths & {(), (0,)}:
        raise ValueError(
            f"{call}: the arrays of a batch share their leading axis, with one entry for each example; got shapes {shapes}. "
            "Leave constants to the loss."
        )
    return shapes[0][0]


def trace_shapes(call: str, model: Callable[[PyTree, PyTree], Array], params: PyTree, batch: PyTree) -> Any:
    """Return the shapes that the user's function returns, without running it.

    A tuple of arrays passes for two batches if the user forgot the list around one, so an error gets a note that says so.
    """
    try:
        return jax.eval_shape(model, params, batch)
    except Exception as error:
        shapes = [jnp.shape(x) for x in jax.tree.leaves(batch)]
        # A note keeps the user's own exception, with its type and traceback.
        error.add_note(f"{call}: this was at a batch of arrays of shapes {shapes}. Pass a single batch as [batch].")
        raise


def require_scalar_loss(call: str, loss: Loss, params: PyTree, batch: PyTree) -> None:
    """Refuse a loss that returns anything but one number."""
    out = trace_shapes(call, loss, params, batch)
    if getattr(out, "shape", None) != ():
        raise ValueError(
            f"{call}: loss(params, batch) must be one number; got {getattr(out, 'shape', out)}. Take its mean over the batch"
            + (", or use model_fisher for logits." if getattr(out, "shape", None) else ", without auxiliary outputs.")
        )


def map_in_chunks(
    call: str, one: Callable[[PyTree, Matrices], Matrices], chosen: Matrices, max_bytes: int
) -> Callable[[PyTree], Matrices]:
    """Map `one(example, chosen)` over the leading axis of a batch, as many examples at a time as fit in `max_bytes`.

    XLA's memory analysis tells how much memory a compiled chunk takes. Each layout of batch is compiled once.
    """

    def compiled(batch: PyTree, chunk: int) -> tuple[Any, int]:
        def run(batch: PyTree, chosen: Matrices) -> Matrices:
            return jax.lax.map(lambda example: one(example, chosen), batch, batch_size=chunk)

        program = jax.jit(run).lower(batch, chosen).compile()
        analysis = program.memory_analysis()
        return program, analysis.temp_size_in_bytes if analysis else 0

    def fitted(batch: PyTree) -> Any:
        chunk = jax.tree.leaves(batch)[0].shape[0]
        program, used = compiled(batch, chunk)
        while used > max_bytes and chunk > 1:  # memory is about linear in the chunk: a proportional guess, at most half
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
        # The compiled program accepts one layout only, and a last batch is often shorter.
        layout = jax.tree.structure(batch), *((jnp.shape(x), jnp.result_type(x)) for x in jax.tree.leaves(batch))
        if layout not in programs:
            programs[layout] = fitted(batch)
        return programs[layout](batch, chosen)

    return run


def collect(call: str, parts: Iterable[Matrices], max_bytes: int) -> Matrices:
    """Concatenate the gradients of all batches, stopping as soon as they exceed `max_bytes`."""
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

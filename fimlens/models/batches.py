"""How the gradients of a model are computed from batches, in chunks, and collected."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from fimlens.fisher.fisher import Fisher
from fimlens.models.matrices import Matrices, Selection, select_matrices
from fimlens.transforms.axes import Axes
from fimlens.transforms.leaf_rules import Rule

MAX_BYTES = 2**30  # default bound on the memory of gradients


REDUCTIONS = ("mean", "sum")


Loss = Callable[[PyTree, PyTree], Array]  # of parameters and a batch


def open_model(
    call: str,
    params: PyTree,
    batches: object,
    matrices: Sequence[str],
    route: Rule | str | PyTree | None,
    axes: Axes | Rule | PyTree | None,
    reduction: str,
) -> Selection:
    """Check the arguments that every Fisher of a model takes, and choose its matrices."""
    require_choice(call, "reduction", reduction, REDUCTIONS)
    require_batches(call, batches)
    return select_matrices(call, params, matrices, route, axes)


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
        return jax.eval_shape(partial(model, params), batch)  # parameters may hold functions, which are no arguments
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
    call: str, one: Callable[[PyTree, Any], Matrices], weights: Any, max_bytes: int
) -> Callable[[PyTree], Matrices]:
    """Map `one(example, weights)` over the leading axis of a batch, as many examples at a time as fit in `max_bytes`.

    XLA's memory analysis tells how much memory a compiled chunk takes. Each layout of batch is compiled once.
    """

    def compiled(batch: PyTree, chunk: int) -> tuple[Any, int]:
        def run(batch: PyTree, weights: Any) -> Matrices:
            return jax.lax.map(lambda example: one(example, weights), batch, batch_size=chunk)

        program = jax.jit(run).lower(batch, weights).compile()
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
        return programs[layout](batch, weights)

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


def require_choice(call: str, name: str, value: str, known: tuple[str, str]) -> None:
    """Refuse a value that is neither of two."""
    if value not in known:
        raise ValueError(f'{call}: {name} is "{known[0]}" or "{known[1]}"; got {value!r}')


def make_fishers(
    call: str, kept: Matrices, kind: str, unit: str, reduction: str, count: int | None = None
) -> dict[str, Fisher]:
    """Make a Fisher of each matrix's gradients; `count` is what the mean is over, if not the gradients."""
    fishers = {}
    for name, G in kept.items():
        total = len(G) if count is None else count
        try:
            scaled = G * total**0.5 if reduction == "sum" else G  # F is quadratic in the gradients
            fishers[name] = Fisher.from_gradients(scaled, kind=kind, normalisation=f"{reduction} over {total} {unit}")
        except ValueError as error:
            raise ValueError(f"{call}: matrix {name!r}: {error}") from error
    return fishers

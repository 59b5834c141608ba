"""What weights and optimizer state take, from shapes alone."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import PyTree

from fimlens import optimizers
from fimlens.matrices import role
from fimlens.views import path_name

GIB = 2**30
GROUPS = ("matrices", "head", "embedding", "vectors")
NAMES = (
    "sgd", "adam", "adamw", "adafactor", "lars", "lamb", "muon", "swan", "shampoo", "osoap", "soap", "racs", "adadiag",
    "adadiag_pp", "adafacdiag",
)  # fmt: skip
COMING = ("alice", "alice0", "galore", "fira", "apollo")  # of the low-rank extension, not there yet
# [G]'s figures for its 1.3B run, GiB of weights and state in bfloat16: (head on Adam, head on the method).
PAPER = {
    "llama-1b": {
        "adam": (7.48, None), "muon": (5.23, None), "racs": (2.98, None), "galore": (None, 4.25), "fira": (None, 4.25),
        "apollo": (4.43, None), "alice0": (None, 4.25), "alice": (None, 4.42),
    }
}  # fmt: skip


class Row(NamedTuple):
    """Bytes of weights and of state per group of parameters; None where the optimizer is not there yet."""

    optimizer: str
    head: str
    weights: dict[str, int] | None
    state: dict[str, int] | None
    paper: float | None

    @property
    def total(self) -> float | None:
        """GiB in all."""
        return None if self.state is None else (sum(self.weights.values()) + sum(self.state.values())) / GIB


def account(
    shapes: PyTree,
    names: list[str],
    *,
    weight_dtype: DTypeLike = jnp.bfloat16,
    state_dtype: DTypeLike = jnp.bfloat16,
    model: str | None = None,
) -> list[Row]:
    """One row for each optimizer, two where it can have the output head or leave it to Adam.

    Args:
        shapes: a tree of arrays or jax.ShapeDtypeStructs.
        names: of optimizers, such as "racs".
        weight_dtype, state_dtype: in which elements are counted; counters and keys as they are.
        model: a name for which the paper states figures.

    Raises:
        ValueError: a name is unknown.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fimlens.memory import account
        >>> account({"w": jax.ShapeDtypeStruct((1024, 1024), jnp.float32)}, ["adam"])[0].state["matrices"] // 2**20
        4
    """
    groups = grouped(shapes)
    weights = {group: _bytes(tree, weight_dtype) for group, tree in groups.items()}
    stated = PAPER.get(model or "", {})
    rows = []
    for name in names:
        if name not in NAMES + COMING:
            raise ValueError(f"there is no optimizer {name!r}. There are {', '.join(NAMES + COMING)}.")
        on_adam, on_method = stated.get(name, (None, None))
        if name in COMING:
            rows.append(Row(name, "Adam" if on_method is None else "method", None, None, on_adam or on_method))
            continue
        make = getattr(optimizers, name)
        if "head" not in inspect.signature(make).parameters:
            rows.append(Row(name, "method", weights, _state(make(1.0), groups, state_dtype), on_adam))
            continue
        for head, place, paper in ((False, "Adam", on_adam), (True, "method", on_method)):
            rows.append(Row(name, place, weights, _state(make(1.0, head=head), groups, state_dtype), paper))
    return rows


def grouped(shapes: PyTree) -> dict[str, PyTree]:
    """The tree once for each group, in float32, with None for the leaves of the others."""

    def only(group: str) -> PyTree:
        def own(path: Any, leaf: Any) -> jax.ShapeDtypeStruct | None:
            place = "vectors" if len(leaf.shape) < 2 else role(path_name(path)) or "matrices"
            return jax.ShapeDtypeStruct(leaf.shape, jnp.float32) if place == group else None

        return jax.tree_util.tree_map_with_path(own, shapes)

    return {group: only(group) for group in GROUPS}


def _state(tx: Any, groups: dict[str, PyTree], dtype: DTypeLike) -> dict[str, int]:
    """Of each group by itself, less what there is without any parameter: that is counted with the matrices."""
    init: Callable[[PyTree], int] = lambda tree: _bytes(jax.eval_shape(tx.init, tree), dtype)  # noqa: E731
    fixed = init({})
    return {group: init(tree) - (0 if group == "matrices" else fixed) for group, tree in groups.items()}


def _bytes(tree: PyTree, dtype: DTypeLike) -> int:
    def size(x: jax.ShapeDtypeStruct) -> int:
        return x.size * (jnp.dtype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype).itemsize

    return sum(map(size, jax.tree.leaves(tree)))

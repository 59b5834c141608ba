"""Bytes of weights and optimizer state, from the shapes of a model alone."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Set
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import PyTree

from fimlens._validate import path_name, require_known
from fimlens.costs.papers import FIGURES, FORMULAS, IN_FLOAT32, RANKS
from fimlens.optimizers import OPTIMIZERS
from fimlens.transforms.axes import Axes
from fimlens.transforms.evidence import recognise
from fimlens.transforms.routing import role, routes
from fimlens.transforms.stacking import sides

GIB = 2**30


GROUPS = ("matrices", "head", "embedding", "vectors")


Optimizer = Callable[..., optax.GradientTransformation]


# Every optimizer by its name, and the variants of Apollo by those that `fimlens compare` has. [G] reports "apollo-svd".
NAMED: dict[str, Optimizer] = OPTIMIZERS | {
    "apollo-svd": partial(OPTIMIZERS["apollo"], variant="svd"),
    "apollo-mini": partial(OPTIMIZERS["apollo"], variant="mini"),
}


class Row(NamedTuple):
    """Bytes of weights and of optimizer state, by group of parameters.

    `optimizer` has the matrices and `head` names the optimizer of the output head. `formula` is the total in bytes by the
    papers' formula, and `paper` the total in GiB that the paper itself prints; both are None where no paper states one.
    """

    optimizer: str
    head: str
    weights: dict[str, int]
    state: dict[str, int]
    formula: int | None
    paper: float | None

    @property
    def total(self) -> float:
        """Weights and state together, in GiB."""
        return (sum(self.weights.values()) + sum(self.state.values())) / GIB


def account(
    shapes: PyTree,
    optimizers: Iterable[str] | Mapping[str, Optimizer],
    *,
    weight_dtype: DTypeLike = jnp.bfloat16,
    state_dtype: DTypeLike = jnp.bfloat16,
    model: str | None = None,
    rank: int | None = None,
) -> list[Row]:
    """Count the bytes that a model's weights and the state of each optimizer take, before anything is allocated.

    The state is counted on the arrays that the optimizer's own `init` would make. An optimizer that can either take the
    output head or leave it to Adam gets two rows, Adam's first.

    Args:
        shapes: the parameters, as arrays or jax.ShapeDtypeStructs.
        optimizers: names such as "racs", or functions of the learning rate by a name of your own.
        weight_dtype, state_dtype: the dtypes in which floating-point elements are counted; counters and keys keep theirs.
        model: the name of a model for which the paper states figures.
        rank: the rank of the low-rank methods. Default: the paper's for `model`, and 128 for any other model.

    Raises:
        TypeError: a function of your own returns no optimizer.
        ValueError: no optimizer has that name.

    Examples:
        >>> import jax, jax.numpy as jnp, optax
        >>> from fimlens.costs.memory import account
        >>> shapes = {"w": jax.ShapeDtypeStruct((1024, 1024), jnp.float32)}
        >>> rows = account(shapes, ["adam", "sgd"]) + account(shapes, {"lion": optax.lion})
        >>> [row.state["matrices"] // 2**20 for row in rows]
        [4, 0, 2]
    """
    groups = grouped(shapes)
    weights = {group: _bytes(tree, weight_dtype) for group, tree in groups.items()}
    rank = RANKS.get(model or "", 128) if rank is None else rank
    known = recognise(shapes)  # on the whole tree, as a group shows part of the evidence

    def axes(path: str, leaf: Any) -> Axes | None:
        return known[path] if isinstance(known[path], Axes) else None

    rows = []
    for name, function in optimizers_of("account", optimizers).items():
        make = at_rank(function, rank)
        routed = "head" in inspect.signature(make).parameters
        figures = FIGURES.get(model or "", {}).get(name, (None, None))
        for head, paper in zip((False, True) if routed else (True,), figures, strict=False):
            tx = make(1.0, head=head, axes=axes) if routed else make(1.0)
            if not (hasattr(tx, "init") and hasattr(tx, "update")):
                raise TypeError(f"{name} returns {tx!r}. Name a function of the learning rate that returns an optimizer.")
            stated = _stated(name, shapes, rank, head, routed, state_dtype) if name in FORMULAS else None
            formula = None if stated is None else sum(weights.values()) + stated
            rows.append(Row(name, name if head else "adam", weights, _state(tx, groups, state_dtype), formula, paper))
    return rows


def optimizers_of(call: str, optimizers: Iterable[str] | Mapping[str, Optimizer]) -> dict[str, Optimizer]:
    """Optimizers by name as functions of the learning rate; a mapping to functions stays as it is.

    Args:
        call: the function, command or option, with which errors begin.
        optimizers: as in `account`.

    Raises:
        ValueError: no optimizer has that name.
    """
    if isinstance(optimizers, Mapping):
        return dict(optimizers)
    chosen = list(optimizers)
    for name in chosen:
        require_known(call, "optimizer", name, NAMED)
    return {name: NAMED[name] for name in chosen}


def at_rank(optimizer: Optimizer, rank: int) -> Optimizer:
    """Fix an optimizer's rank, and a quarter of that as its number of leading vectors, where it has these arguments.

    Those that a functools.partial fixes already stay.
    """
    sizes = {"rank": rank, "leading": rank // 4}
    return partial(optimizer, **{size: value for size, value in sizes.items() if size in _open_arguments(optimizer)})


def has_rank(optimizer: Optimizer) -> bool:
    """Whether `at_rank` changes what an optimizer does; Apollo-mini has a rank of its own."""
    return "rank" in _open_arguments(optimizer) and getattr(optimizer, "keywords", {}).get("variant") != "mini"


def _open_arguments(optimizer: Optimizer) -> Set[str]:
    return inspect.signature(optimizer).parameters.keys() - getattr(optimizer, "keywords", {}).keys()


def grouped(shapes: PyTree) -> dict[str, PyTree]:
    """The tree once for each group, in float32, with None in place of the leaves of other groups."""

    def only(group: str) -> PyTree:
        def own(path: Any, leaf: Any) -> jax.ShapeDtypeStruct | None:
            place = "vectors" if len(leaf.shape) < 2 else role(path_name(path)) or "matrices"
            return jax.ShapeDtypeStruct(leaf.shape, jnp.float32) if place == group else None

        return jax.tree_util.tree_map_with_path(own, shapes)

    return {group: only(group) for group in GROUPS}


def _stated(name: str, shapes: PyTree, rank: int, head: bool, routed: bool, dtype: DTypeLike) -> int:
    """Bytes of state by the papers: the method's formula on the leaves that it has, and Adam's on all others."""
    width, numbers, wide = jnp.dtype(dtype).itemsize, 0, 0
    leaves = {path_name(path): jnp.shape(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
    # The full chains see leaves of more than two axes by evidence; plain optimizers see stacks of their last two.
    for path, seen in (routes(shapes, head=head) if routed else leaves).items():
        shape = leaves[path] if seen is None else seen
        m, n = sides(shape)
        count, r = math.prod(shape[:-2]), min(rank, m, n)
        numbers += count * FORMULAS["adam" if seen is None else name](m, n, r)
        wide += count * IN_FLOAT32[name](m, n, r) if seen is not None and name in IN_FLOAT32 else 0
    return numbers * width + wide * (4 - width)


def _state(tx: optax.GradientTransformation, groups: dict[str, PyTree], dtype: DTypeLike) -> dict[str, int]:
    """Bytes of state by group; those that are there without any parameter, such as counters, count with the matrices."""

    def init(tree: PyTree) -> int:
        return _bytes(jax.eval_shape(tx.init, tree), dtype)

    fixed = init({})
    return {group: init(tree) - (0 if group == "matrices" else fixed) for group, tree in groups.items()}


def _bytes(tree: PyTree, dtype: DTypeLike) -> int:
    def size(x: jax.ShapeDtypeStruct) -> int:
        return x.size * (jnp.dtype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype).itemsize

    return sum(map(size, jax.tree.leaves(tree)))

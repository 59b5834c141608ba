"""What weights and optimizer state take, from shapes alone."""

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import PyTree

import fimlens
from fimlens._validate import path_name
from fimlens.transforms.routing import role, routes
from fimlens.transforms.stacking import sides

GIB = 2**30


GROUPS = ("matrices", "head", "embedding", "vectors")


# Numbers of state for an m x n matrix, m <= n, beside counters, keys and the limiter's scalars; Adam's and [G]'s own formulas.
# Ranks r and s are of the short and the long side, neither over it.
FORMULAS: dict[str, Callable[[int, int, int, int], int]] = {
    "sgd": lambda m, n, r, s: 0,
    "adam": lambda m, n, r, s: 2 * m * n,
    "adamw": lambda m, n, r, s: 2 * m * n,
    "adafactor": lambda m, n, r, s: m + n,
    "lars": lambda m, n, r, s: m * n,
    "lamb": lambda m, n, r, s: 2 * m * n,
    "muon": lambda m, n, r, s: m * n,
    "swan": lambda m, n, r, s: 0,
    "shampoo": lambda m, n, r, s: m**2 + n**2,
    "osoap": lambda m, n, r, s: 2 * m * n + 2 * m**2,
    "soap": lambda m, n, r, s: 2 * m * n + 2 * m**2 + 2 * n**2,
    "racs": lambda m, n, r, s: m + n,
    "adadiag": lambda m, n, r, s: 2 * m * n + m**2,
    "adadiag_pp": lambda m, n, r, s: 2 * m * n + m**2 + n**2,
    "adafacdiag": lambda m, n, r, s: m * n + m + n + m**2,
    "alice": lambda m, n, r, s: 2 * n * r + m * r + n * (r < m) + r**2,
    "alice0": lambda m, n, r, s: 2 * n * r + m * r + n * (r < m),
    "galore": lambda m, n, r, s: 2 * n * r + m * r,
    "fira": lambda m, n, r, s: 2 * n * r + m * r,
    "apollo": lambda m, n, r, s: 2 * n * r + m * r,
    "apollo-mini": lambda m, n, r, s: 2 * n,
    "low_rank_soap": lambda m, n, r, s: m * r + n * s + (r + s) ** 2 + r * (s < n) + s * (r < m) + (r < m) * (s < n),
}


VARIANTS = {"apollo": {"variant": "svd"}, "apollo-mini": {"variant": "mini"}}  # [G] reports Apollo-svd


IN_FULL = {"alice": lambda m, n, r: n * (r < m) + r**2}  # p and Q~: [G]'s figure needs them at four bytes an element


RANKS = {"llama-60m": 128, "llama-130m": 256, "llama-350m": 256, "llama-1b": 512, "llama-7b": 1024}  # 7B: GaLore's


# [G]'s figures for its 1.3B run, GiB of weights and state in bfloat16: (head on Adam, head on the method).
PAPER = {
    "llama-1b": {
        "adam": (7.48, None), "muon": (5.23, None), "racs": (2.98, None), "galore": (None, 4.25), "fira": (None, 4.25),
        "apollo": (4.43, None), "alice0": (None, 4.25), "alice": (None, 4.42),
    }
}  # fmt: skip


class Row(NamedTuple):
    """Bytes of weights and of state per group of parameters.

    `head` is the optimizer of the output head; `formula` is bytes in all by the formula, `paper` GiB.
    """

    optimizer: str
    head: str
    weights: dict[str, int]
    state: dict[str, int]
    formula: int
    paper: float | None

    @property
    def total(self) -> float:
        """GiB in all."""
        return (sum(self.weights.values()) + sum(self.state.values())) / GIB


def account(
    shapes: PyTree,
    names: list[str],
    *,
    weight_dtype: DTypeLike = jnp.bfloat16,
    state_dtype: DTypeLike = jnp.bfloat16,
    model: str | None = None,
    rank: int | None = None,
) -> list[Row]:
    """One row for each optimizer, two where it can have the output head or leave it to Adam.

    Args:
        shapes: a tree of arrays or jax.ShapeDtypeStructs.
        names: of optimizers, such as "racs".
        weight_dtype, state_dtype: in which elements are counted; counters and keys as they are.
        model: a name for which the paper states figures.
        rank: of the low-rank methods; by default the paper's for the model, and 128 for others.

    Raises:
        ValueError: a name is unknown.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from fimlens.costs.memory import account
        >>> account({"w": jax.ShapeDtypeStruct((1024, 1024), jnp.float32)}, ["adam"])[0].state["matrices"] // 2**20
        4
    """
    groups = grouped(shapes)
    weights = {group: _bytes(tree, weight_dtype) for group, tree in groups.items()}
    stated = PAPER.get(model or "", {})
    rank = RANKS.get(model or "", 128) if rank is None else rank
    rows = []
    for name in names:
        if name not in FORMULAS:
            raise ValueError(f"there is no optimizer {name!r}. There are {', '.join(FORMULAS)}.")
        make = _maker(name, rank)
        routed = "head" in inspect.signature(make).parameters
        for head, paper in zip((False, True) if routed else (True,), stated.get(name, (None, None)), strict=False):
            state = _state(make(1.0, head=head) if routed else make(1.0), groups, state_dtype)
            by_formula = sum(weights.values()) + _by_formula(name, groups, rank, head, routed, state_dtype)
            rows.append(Row(name, name if head else "adam", weights, state, by_formula, paper))
    return rows


def _maker(name: str, rank: int) -> Callable[..., Any]:
    make = getattr(fimlens, name.removesuffix("-mini"))
    sizes, known = {"rank": rank, "leading": rank // 4}, inspect.signature(make).parameters
    return partial(make, **{size: value for size, value in sizes.items() if size in known}, **VARIANTS.get(name, {}))


def _by_formula(name: str, groups: dict[str, PyTree], rank: int, head: bool, routed: bool, dtype: DTypeLike) -> int:
    """Bytes of state: the formula's numbers for the method's leaves, as it sees them, and Adam's two for the others."""
    width, numbers, wide = jnp.dtype(dtype).itemsize, 0, 0
    for group, tree in groups.items():
        own = not routed or group == "matrices" or (head and group == "head")
        seen = routes(tree, route=lambda path, leaf: True).values() if routed and own else map(jnp.shape, jax.tree.leaves(tree))
        for shape in seen:
            m, n = sorted(sides(shape))
            count, r, s = math.prod(shape[:-2]), min(rank, m), min(rank, n)
            numbers += count * FORMULAS[name if own else "adam"](m, n, r, s)
            wide += count * IN_FULL[name](m, n, r) if own and name in IN_FULL else 0
    return numbers * width + wide * (4 - width)


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

    def init(tree: PyTree) -> int:
        return _bytes(jax.eval_shape(tx.init, tree), dtype)

    fixed = init({})
    return {group: init(tree) - (0 if group == "matrices" else fixed) for group, tree in groups.items()}


def _bytes(tree: PyTree, dtype: DTypeLike) -> int:
    def size(x: jax.ShapeDtypeStruct) -> int:
        return x.size * (jnp.dtype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype).itemsize

    return sum(map(size, jax.tree.leaves(tree)))

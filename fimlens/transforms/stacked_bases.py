"""The bases in an optimizer's state: where they are, and which parameters they belong to."""

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from fimlens._validate import path_name
from fimlens.transforms.drop_in import noted_inits
from fimlens.transforms.low_rank_state import Subspace
from fimlens.transforms.low_rank_transform import LowRankState
from fimlens.transforms.stacking import sides, stack_name
from fimlens.transforms.state import StructureState


class Side(NamedTuple):
    """The orthonormal bases U of one side of a stack of matrices, and the averaged covariances that they follow, or None."""

    basis: Float[Array, "k i r"]
    covariance: Float[Array, "k i i"] | None


class Sides(NamedTuple):
    """Both sides of a stack; None for a side without bases."""

    left: Side | None
    right: Side | None


class Place(NamedTuple):
    """Where the matrices of a leaf are.

    It holds the leaf's path, its shape as a transform sees it, which of the states in `stacks_with_bases` is the transform's,
    its stack, and the first index there.
    """

    path: str
    shape: tuple[int, ...]
    state: int
    stack: str
    first: int


def stacks_with_bases(state: PyTree) -> list[dict[str, Sides]]:
    """For each state of a structure's transform, wherever it is in an Optax state: its stacks of matrices that have bases.

    A structure says in its frame what its bases are, by the names `left` and `right`. What is kept in place of a basis, such as
    the key of a random projection, is none, nor are bases of parts of a side.
    """
    return list(map(_stacks, _states(state)))


def places_in_stacks(init: Callable[[PyTree], Any], params: PyTree) -> tuple[Place, ...]:
    """Where matrices are in the stacks of `stacks_with_bases(init(params))`."""
    places: list[Place] = []

    def started(params: PyTree) -> None:
        with noted_inits() as notes, warnings.catch_warnings(action="ignore"):  # init has warned already
            state = init(params)
        # Wrappers may rebuild a state around its counter, but they keep the counter itself.
        seen = {id(own.count): leaves for own, leaves in notes if isinstance(own, StructureState | LowRankState)}
        for index, own in enumerate(_states(state)):
            places.extend(_places(index, seen.get(id(own.count), ())))

    jax.eval_shape(started, params)
    return tuple(places)


def _places(state: int, seen: PyTree) -> Iterator[Place]:
    taken: dict[str, int] = defaultdict(int)
    for path, leaf in jax.tree_util.tree_leaves_with_path(seen):
        name = stack_name(leaf)
        yield Place(path_name(path), leaf.shape, state, name, taken[name])
        taken[name] += leaf.size // max(1, math.prod(sides(leaf.shape)))


def _states(state: PyTree) -> Iterator[StructureState | LowRankState]:
    is_leaf = lambda x: isinstance(x, StructureState | LowRankState)  # noqa: E731
    return filter(is_leaf, jax.tree.leaves(state, is_leaf=is_leaf))


def _stacks(state: StructureState | LowRankState) -> dict[str, Sides]:
    if isinstance(state, LowRankState):
        return {name: _sides(name, _of_subspace(kept.left), _of_subspace(kept.right)) for name, kept in state.stacks.items()}
    if not isinstance(state.bases, dict):
        return {}
    averages = state.covariances or {}

    def named(stack: str, side: str) -> Side | None:
        return _side(getattr(state.bases[stack], side, None), getattr(averages.get(stack), side, None))

    return {stack: _sides(stack, named(stack, "left"), named(stack, "right")) for stack in state.bases}


def _of_subspace(kept: Subspace | None) -> Side | None:
    side = None if kept is None else _side(*kept)
    # A tracker may average in the coordinates of U. Where U is square, no shape tells such an average from a covariance.
    square = side is not None and side.basis.shape[1] == side.basis.shape[2]
    return side._replace(covariance=None) if square else side


def _side(basis: Any, average: Any) -> Side | None:
    if basis is None or basis.ndim != 3 or not jnp.issubdtype(basis.dtype, jnp.floating):
        return None
    k, length, _ = basis.shape
    return Side(basis, None if average is None or average.shape != (k, length, length) else average)


def _sides(stack: str, left: Side | None, right: Side | None) -> Sides:
    m, n = map(int, stack.split()[:3:2])  # "m x n", and perhaps a dtype
    if left and left.basis.shape[1] == n != m:  # a basis of the shorter side, which its structure puts first
        left, right = None, left
    return Sides(*(side if side and side.basis.shape[1] == length else None for side, length in ((left, m), (right, n))))

"""What a low-rank optimizer keeps for the matrices of one shape, and how it begins."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from fimlens.fisher.fisher import Fisher
from fimlens.linalg.bases import cast_floating
from fimlens.structures.low_rank import LowRank
from fimlens.structures.parts import Parts
from fimlens.structures.trackers import Side
from fimlens.transforms.compensation import Compensation
from fimlens.transforms.dtypes import StateDtypes
from fimlens.transforms.matrix_step import MatrixState, Recipe, init_matrices
from fimlens.transforms.norms import NormGrowthState, init_growth


class LowRankRecipe(NamedTuple):
    """The options of `scale_by_low_rank`, where each is described; `lead` is the recipe of the inner structure's step."""

    structure: LowRank
    lead: Recipe
    compensation: Compensation
    lift: bool | Float[ArrayLike, ""]
    b1: Float[ArrayLike, ""] | None
    alpha_c: Float[ArrayLike, ""]
    gamma: Float[ArrayLike, ""] | None
    moments: str
    bias_correction: bool
    dtypes: StateDtypes


class Subspace(NamedTuple):
    """What a tracker keeps for one side: what stands for U (U itself, or the key that it is drawn from), and its average."""

    basis: Any
    average: Float[Array, "k i i"] | None


class StackState(NamedTuple):
    """What lasts from step to step for the matrices of one shape.

    It holds the subspaces, the state of the lead, the averages of the other parts, and what the limiter of the compensation
    keeps. `right` is None where that side is taken whole.
    """

    left: Subspace
    right: Subspace | None
    lead: MatrixState
    complement: Parts
    growth: NormGrowthState | None


def init_stack(recipe: LowRankRecipe, like: jax.ShapeDtypeStruct) -> StackState:
    """The state before any gradient is seen, for a stack of this shape and dtype."""
    structure, k, shape, dtype = recipe.structure, like.shape[0], like.shape[1:], like.dtype
    (m, n), (r, s), (rows, columns) = structure.seen(shape), structure.ranks(shape), structure.lead_shape(shape)
    sums = Parts(None, jnp.zeros((k, rows, 1)), jnp.zeros((k, 1, columns)), jnp.zeros((k, 1, 1)))
    zeros = jax.vmap(lambda sums: structure.tied(sums, structure.counts(shape)))(sums)
    return StackState(
        _init_subspace(recipe, like, False, m, r),
        None if s is None else _init_subspace(recipe, like, True, n, s),
        *init_matrices(recipe.lead, jax.ShapeDtypeStruct((k, rows, columns), dtype)),
        cast_floating(zeros, recipe.dtypes.second_moment or dtype),
        None if recipe.gamma is None else init_growth(jax.ShapeDtypeStruct((k, 1, 1), dtype)),
    )


def _init_subspace(recipe: LowRankRecipe, like: jax.ShapeDtypeStruct, right: bool, m: int, r: int) -> Subspace:
    k, shape, tracker = like.shape[0], like.shape[1:], recipe.structure.tracker
    basis = tracker.init(m, r)

    def observed() -> Any:
        side = Side(Fisher.of_one(jnp.zeros(recipe.structure.seen(shape), like.dtype)), right)
        return tracker.observe(side, lambda: side.projected(jnp.zeros((m, r), like.dtype)))

    # Only the layout is wanted: an eager product of zeros would cost m^2 n.
    average = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(observed))
    kept = jax.tree.map(lambda x: jnp.broadcast_to(x, (k, *x.shape)), Subspace(basis, average))
    return cast_floating(kept, recipe.dtypes.basis or like.dtype)

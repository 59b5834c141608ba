"""A refresh of a low-rank optimizer: the subspaces move, and the averages measured in them are transported."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from fimlens.fisher.fisher import Fisher
from fimlens.linalg.bases import cast_floating
from fimlens.structure import BasisStep, Mix, Statistics
from fimlens.structures.move import Move, Turn, change_of_basis, turned, turned_squares
from fimlens.structures.sides import Side
from fimlens.transforms.low_rank_state import LowRankRecipe, StackState, Subspace, as_seen, bases_of, in_dtypes_of
from fimlens.transforms.matrix_step import (
    MatrixState,
    init_matrices,
    refresh_if_due,
)
from fimlens.transforms.stacking import Stack, clip_for_squaring


def refresh_stacks(recipe: LowRankRecipe, state: Any, matrices: dict[str, Stack]) -> tuple[Array, dict[str, StackState]]:
    """The steps since the averages on the lead began, and the stacks, after a refresh where one is due."""
    if not matrices:
        return state.lead_count, {}

    def refreshed(first: Bool[Array, ""]) -> tuple[Array, dict[str, StackState]]:
        key = jax.random.PRNGKey(0) if state.key is None else state.key  # no tracker draws from the former
        keys = jax.random.split(jax.random.fold_in(key, state.count), len(matrices))
        stacks = {
            name: _refreshed(recipe, state.stacks[name], as_seen(recipe, G), own, first)
            for own, (name, G) in zip(keys, matrices.items(), strict=True)
        }
        return state.lead_count * (recipe.moments != "reset"), stacks

    return refresh_if_due(state.count, recipe.lead.update_interval, (state.lead_count, dict(state.stacks)), refreshed)


def _refreshed(recipe: LowRankRecipe, kept: StackState, G: Stack, key: Array, first: Bool[Array, ""]) -> StackState:
    """The subspaces moved, and all averages that were measured in them transported: one rule for each side."""
    keys = (key, None) if kept.right is None else jax.random.split(key)
    left, L = _moved(recipe, kept.left, clip_for_squaring(G), keys[0], False, first)
    right, R = (None, None) if kept.right is None else _moved(recipe, kept.right, clip_for_squaring(G), keys[1], True, first)
    rows, columns = kept.complement.rows, kept.complement.columns
    complement = kept.complement._replace(
        rows=None if rows is None else turned_squares(L, rows),
        columns=None if columns is None else turned_squares(R, columns.mT).mT,
    )
    return StackState(left, right, _transported(recipe, kept.lead, L, R), complement, kept.norm)


def _moved(
    recipe: LowRankRecipe, kept: Subspace, G: Stack, key: Array, right: bool, first: Bool[Array, ""]
) -> tuple[Subspace, Turn]:
    """A side's subspaces after the tracker's step, and what turns coordinates in the old bases into those in the new ones."""
    tracker, b3 = recipe.structure.tracker, recipe.structure.tracker.b3
    b3 = recipe.lead.b2 if b3 is None else b3
    old = cast_floating(kept, G.dtype)

    def update(subspace: Subspace, g: Array, key: Array) -> Any:
        step = BasisStep(key, Mix(b3, 1 - b3), first)
        return tracker.update(subspace.average, subspace.basis, Side(Fisher.of_one(g), right), step)

    basis = jax.vmap(update)(old, G, jax.random.split(key, len(G)))
    new = old._replace(basis=basis)
    T = change_of_basis(recipe.moments, *(bases_of(recipe, which, G, right) for which in (old, new)))
    return in_dtypes_of(kept, new._replace(average=tracker.transport(T, old.average))), T


def _transported(recipe: LowRankRecipe, lead: MatrixState, L: Turn, R: Turn) -> MatrixState:
    """The state of the lead in the coordinates of the new bases."""
    if recipe.moments == "keep":
        return lead
    if recipe.moments == "reset":
        first = init_matrices(recipe.lead, jnp.zeros_like(lead.momentum, lead.momentum.dtype))
        return in_dtypes_of(lead, first)

    def stats(stats: Statistics, L: Array, R: Array | None) -> Statistics:
        return recipe.structure.inner.transport(stats, Move(L, R))

    wide = cast_floating(lead, L.dtype)
    averages = jax.vmap(stats)(Statistics(wide.covariances, wide.averaged), L, R)
    momentum = turned(R, turned(L, wide.momentum).mT).mT
    return in_dtypes_of(lead, MatrixState(wide.frame, *averages, momentum))

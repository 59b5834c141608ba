"""One step of a low-rank optimizer on a stack of matrices of one shape: refresh the subspaces, move the lead, compensate."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from fimlens.fisher.fisher import Fisher
from fimlens.linalg.bases import above_rounding, cast_floating
from fimlens.structure import BasisStep, Mix, Statistics
from fimlens.structures.move import RESET, Move, Turn, change_of_basis, turned, turned_squares
from fimlens.structures.parts import Parts
from fimlens.structures.trackers import Side
from fimlens.transforms.compensation import Outside, Seen, nearest, none
from fimlens.transforms.dtypes import narrowed
from fimlens.transforms.low_rank_state import LowRankRecipe, StackState, Subspace
from fimlens.transforms.low_rank_update import Projections, low_rank_update, squares_of, squares_outside, sums_of_squares
from fimlens.transforms.matrix_step import MatrixState, StepCoefficients, init_matrices, refresh_if_due, step_matrices
from fimlens.transforms.norms import NormGrowthState, limit_growth
from fimlens.transforms.stacking import Stack, clip_for_squaring, clip_squares

ROUNDING = 84  # eps of a square, 1e-5 in float32: of a difference of squares, what cancellation may leave
KEPT = 2  # eps of the dtype that a basis is kept in: how far off squares of coordinates in it may be


def step_stack(
    recipe: LowRankRecipe, kept: StackState, G: Stack, now: StepCoefficients, count: Int[Array, ""]
) -> tuple[StackState, Stack]:
    """The state after one gradient, and the update; `count` counts this step too."""
    given, G = G, recipe.structure.see(G)
    seen = _projections(recipe, kept, G)
    lead, D = step_matrices(recipe.lead, kept.lead, seen.X, now)
    whole = jax.tree.map(clip_squares, squares_of(G, seen))
    rest = jax.tree.map(partial(_above_cancellation, recipe), squares_outside(whole, seen), whole)
    eigenvalues, complement = _averaged(recipe, kept.complement, rest, given.shape[1:], now, count)
    squares = _squares_compensated(recipe, rest, whole)
    measured = Seen(seen.X, D, squares.columns, eigenvalues.columns)
    scales, growth = _scales(recipe, measured, _limited(recipe, kept.lead, seen.X, now), eigenvalues, squares, kept.growth)
    update = _update(recipe, clip_for_squaring(G), seen, D, scales)
    if isinstance(recipe.compensation, Outside):
        outside = jnp.where(rest.columns == 0, 0, clip_for_squaring(G) - seen.U @ seen.A)
        update = update + recipe.alpha_c * recipe.compensation.direction(outside)
    left = _followed(recipe, kept.left, G, seen.A, False)
    right = None if kept.right is None else _followed(recipe, kept.right, G, seen.B, True)
    return StackState(left, right, lead, complement, growth), recipe.structure.see(update, like=given)


def _projections(recipe: LowRankRecipe, kept: StackState, G: Stack) -> Projections:
    """Products of the bases with G, with entries that may be rounding set to zero."""
    U = _bases(recipe, kept.left, G, False)
    columns = clip_squares(sums_of_squares(G, 1))
    A = above_rounding(clip_for_squaring(U.mT @ G), columns)
    if kept.right is None:
        return Projections(U, None, A, None, A)
    V = _bases(recipe, kept.right, G, True)
    B = above_rounding(clip_for_squaring(G @ V), clip_squares(sums_of_squares(G, 2)))
    norms = (clip_squares(sums_of_squares(A, 2)), clip_squares(sums_of_squares(B, 1)))
    return Projections(U, V, A, B, above_rounding(A @ V, *norms, times=32))


def _above_cancellation(recipe: LowRankRecipe, square: Array, whole: Array) -> Array:
    """Set a difference of squares to zero where it may be rounding: of the arithmetic, or of the stored bases."""
    eps = max(ROUNDING * jnp.finfo(whole.dtype).eps, KEPT * jnp.finfo(recipe.dtypes.basis or whole.dtype).eps)
    return jnp.where(square > eps * whole, square, square * 0)  # NaN stays NaN


def _averaged(
    recipe: LowRankRecipe, old: Parts, rest: Parts, shape: tuple[int, int], now: StepCoefficients, count: Array
) -> tuple[Parts, Parts]:
    """The eigenvalues of the complement, and the averages to store."""
    counts, right = recipe.structure.counts(shape), recipe.structure.sides == "LR"
    b1 = 0.0 if recipe.b1 is None else recipe.b1
    means = jax.vmap(lambda sums: recipe.structure.tied(sums, counts))(rest)
    averages = jax.tree.map(lambda a, x: b1 * a.astype(x.dtype) + (1 - b1) * x, old, means)

    def weight(steps: Array) -> Float[ArrayLike, ""]:
        return 1 - b1**steps if recipe.bias_correction else 1.0

    since = now.count + 1  # what is measured in a basis that moved is averaged since the last reset
    weights = Parts(None, weight(since), weight(since if right else count), weight(count))
    eigenvalues = Parts(*(None if x is None else x / jnp.asarray(w, x.dtype) for x, w in zip(averages, weights, strict=True)))
    return eigenvalues, _in_dtypes_of(old, averages)


def _squares_compensated(recipe: LowRankRecipe, rest: Parts, whole: Parts) -> Parts:
    """Sums of squares of what is compensated: of G less `lift` times its part in the subspace."""
    if isinstance(recipe.lift, bool):
        return rest if recipe.lift else whole
    left = (1 - recipe.lift) ** 2
    return jax.tree.map(lambda rest, whole: left * whole + (1 - left) * rest, rest, whole)


def _update(recipe: LowRankRecipe, G: Stack, seen: Projections, D: Float[Array, "k r s"], scales: Parts) -> Stack:
    """`lift` times the update with the lead's in the subspace, and for the rest G with its columns scaled."""
    if recipe.lift is False:
        return G * scales.columns
    lifted = low_rank_update(G, seen, D, scales)
    return lifted if recipe.lift is True else recipe.lift * lifted + (1 - recipe.lift) * (G * scales.columns)


def _limited(recipe: LowRankRecipe, lead: MatrixState, X: Stack, now: StepCoefficients) -> Float[Array, "k r s"] | None:
    """The lead's update whose compensation the limiter measures: before bias correction, as in the codes of Fira and Apollo.

    It has no eps, which would make a norm tiny where a gradient is, and the first of them has no norm to return to. None where
    the compensation is not made of the lead's update.
    """
    if recipe.gamma is None or recipe.compensation in (nearest, none):
        return None
    _, D = step_matrices(recipe.lead._replace(eps=0.0), lead, X, now)  # XLA computes what both share once
    return D * jnp.asarray(now.weight_1 / now.weight_2**0.5, D.dtype)


def _scales(
    recipe: LowRankRecipe,
    seen: Seen,
    limited: Float[Array, "k r s"] | None,
    eigenvalues: Parts,
    squares: Parts,
    growth: NormGrowthState | None,
) -> tuple[Parts, NormGrowthState | None]:
    """The scale of each part, zero where nothing is left, times alpha_c and the limit of growth; and the limiter's state."""
    if isinstance(recipe.compensation, Outside):
        return Parts(None, None, None, None), growth

    def found(update: Array) -> list[Array | None]:
        values = (eigenvalues.rows, eigenvalues.columns, eigenvalues.tail)
        parts = zip(squares[1:], values, strict=True)
        scales = [None if V is None else recipe.compensation(seen._replace(update=update, eigenvalue=x)) for V, x in parts]
        # Where nothing is left the scale is zero; a NaN in the squares stays, so that it is seen.
        return [d if d is None else jnp.where(V == 0, V, d) for d, V in zip(scales, squares[1:], strict=True)]

    scales, eta = found(seen.update), recipe.alpha_c
    if not jax.tree.leaves(scales):
        return Parts(None, *scales), growth
    if recipe.gamma is not None:
        measured = scales if limited is None else found(limited)
        parts = [(d, V) for d, V in zip(measured, squares[1:], strict=True) if d is not None]
        norm = jnp.sqrt(sum(jnp.sum(d**2 * V, (-2, -1), keepdims=True) for d, V in parts))
        limit, growth = limit_growth(norm, growth, recipe.gamma)
        eta = eta * limit
    return Parts(None, *jax.tree.map(lambda d: d * eta, scales)), growth


def _followed(recipe: LowRankRecipe, kept: Subspace, G: Stack, lead: Float[Array, "k i j"], right: bool) -> Subspace:
    """What the tracker keeps after a step: its average with the current gradient in it."""
    if kept.average is None:
        return kept
    tracker, mix = recipe.structure.tracker, _tracker_mix(recipe)

    def follow(average: Array, g: Array, lead: Array) -> Array:
        return mix(average, tracker.observe(Side(Fisher.of_one(g), right), lambda: Side(Fisher.of_one(lead), right)))

    average = jax.vmap(follow)(kept.average.astype(G.dtype), G, lead)
    return kept._replace(average=narrowed(average, kept.average))


# --- a refresh --------------------------------------------------------------------------------------------------


def refresh_stacks(recipe: LowRankRecipe, state: Any, matrices: dict[str, Stack]) -> tuple[Array, dict[str, StackState]]:
    """The steps since the averages on the lead began, and the stacks, after a refresh where one is due."""
    if not matrices:
        return state.lead_count, {}

    def refreshed(first: Bool[ArrayLike, ""]) -> tuple[Array, dict[str, StackState]]:
        key = jax.random.PRNGKey(0) if state.key is None else state.key  # no tracker draws from the former
        keys = jax.random.split(jax.random.fold_in(key, state.count), len(matrices))
        stacks = {
            name: _refreshed(recipe, state.stacks[name], recipe.structure.see(G), own, first)
            for own, (name, G) in zip(keys, matrices.items(), strict=True)
        }
        return state.lead_count * (recipe.moments != "reset"), stacks

    return refresh_if_due(state.count, recipe.lead.update_interval, (state.lead_count, dict(state.stacks)), refreshed)


def _refreshed(recipe: LowRankRecipe, kept: StackState, G: Stack, key: Array, first: Bool[ArrayLike, ""]) -> StackState:
    """The subspaces moved, and all averages that were measured in them transported: one rule for each side."""
    keys, G = (key, None) if kept.right is None else jax.random.split(key), clip_for_squaring(G)
    left, L = _moved(recipe, kept.left, G, keys[0], False, first)
    right, R = (None, None) if kept.right is None else _moved(recipe, kept.right, G, keys[1], True, first)
    rows, columns = kept.complement.rows, kept.complement.columns
    complement = kept.complement._replace(
        rows=None if rows is None else turned_squares(L, rows),
        columns=None if columns is None else turned_squares(R, columns.mT).mT,
    )
    return StackState(left, right, _transported(recipe, kept.lead, G, L, R), complement, kept.growth)


def _moved(
    recipe: LowRankRecipe, kept: Subspace, G: Stack, key: Array, right: bool, first: Bool[ArrayLike, ""]
) -> tuple[Subspace, Turn]:
    """A side's subspaces after the tracker's step, and what turns coordinates in the old bases into those in the new ones."""
    tracker, mix = recipe.structure.tracker, _tracker_mix(recipe)
    old = cast_floating(kept, G.dtype)

    def update(subspace: Subspace, g: Array, key: Array) -> Any:
        side = Side(Fisher.of_one(g), right)
        return tracker.update(subspace.average, subspace.basis, side, BasisStep(key, mix, first))

    basis = jax.vmap(update)(old, G, jax.random.split(key, len(G)))
    new = old._replace(basis=basis)
    T = RESET if recipe.moments == "reset" else None
    if recipe.moments == "rotate":
        T = change_of_basis(_bases(recipe, old, G, right), _bases(recipe, new, G, right))
    return _in_dtypes_of(kept, new._replace(average=tracker.transport(T, old.average))), T


def _transported(recipe: LowRankRecipe, lead: MatrixState, G: Stack, L: Turn, R: Turn) -> MatrixState:
    """The state of the lead in the coordinates of the new bases."""
    if recipe.moments == "keep":
        return lead
    if recipe.moments == "reset":
        shape = len(G), *recipe.structure.lead_shape(G.shape[1:])
        (first,) = init_matrices(recipe.lead, jax.ShapeDtypeStruct(shape, G.dtype))
        return _in_dtypes_of(lead, first)

    def stats(stats: Statistics, L: Array, R: Array | None) -> Statistics:
        return recipe.structure.inner.transport(stats, Move(L, R))

    wide = cast_floating(lead, L.dtype)
    averages = jax.vmap(stats)(Statistics(wide.covariances, wide.averaged), L, R)
    momentum = jax.tree.map(lambda x: turned(R, turned(L, x).mT).mT, wide.momentum)
    return _in_dtypes_of(lead, MatrixState(wide.bases, *averages, momentum))


def _tracker_mix(recipe: LowRankRecipe) -> Mix:
    """The weights of the tracker's average: its own decay, or else that of the lead's statistics."""
    b3 = recipe.lead.b2 if recipe.structure.tracker.b3 is None else recipe.structure.tracker.b3
    return Mix(b3, 1 - b3)


def _bases(recipe: LowRankRecipe, kept: Subspace, G: Stack, right: bool) -> Float[Array, "k i r"]:
    """U of each matrix."""
    m, structure = G.shape[1 + right], recipe.structure
    return jax.vmap(lambda basis: structure.tracker.basis(basis, m, min(m, structure.rank)))(kept.basis).astype(G.dtype)


def _in_dtypes_of(old: Any, new: Any) -> Any:
    """Cast `new` to the dtypes of `old`."""
    return jax.tree.map(narrowed, new, old)

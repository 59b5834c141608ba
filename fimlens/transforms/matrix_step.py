"""One step of the matrices of one shape: the core that every transform of a structure shares.

    G --stats--> averages --update_basis (at a refresh)--> frame
                     `------fit (every step)--> eigenvalues --> from_eigenbasis( precondition( to_eigenbasis(momentum) ) )

Arrays have any leading axes before the last two, which are a matrix: a stack of all matrices of one shape, or one leaf.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from fimlens.fisher.fisher import Fisher
from fimlens.linalg.bases import tree_above_rounding
from fimlens.member import bases_of
from fimlens.solver.fit import fit
from fimlens.solver.sizes import averaged_layout, first_frame, frame_of
from fimlens.structure import BasisStep, Frame, Mix, Params, Statistics, Structure, Tree
from fimlens.transforms.dtypes import StateDtypes, stored_in
from fimlens.transforms.stacking import Matrices, clip_for_squaring, clip_squares

Decay = Float[ArrayLike, ""] | Callable[[Float[Array, ""]], Float[Array, ""]]


class Recipe(NamedTuple):
    """The options of `scale_by_structure`, where each is described."""

    structure: Structure
    b1: Float[ArrayLike, ""] | None
    b2: Decay | None
    b3: Float[ArrayLike, ""] | None  # the trackers' decay; None for b2
    eps: Float[ArrayLike, ""]
    update_interval: Int[ArrayLike, ""] | None
    bias_correction: bool
    dtypes: StateDtypes
    turn: str = "before"
    momentum: str = "original"
    average: str = "statistics"


class MatrixState(NamedTuple):
    """What lasts from step to step, for matrices of one shape: the bases of their frames, the averages for the bases and for
    the eigenvalues (statistics or fits), and the momentum. None for what a recipe does not need."""

    bases: Tree
    covariances: Tree
    averaged: Tree
    momentum: Tree


class StepCoefficients(NamedTuple):
    """Coefficients of one step, the same for all matrices."""

    count: Int[Array, ""]  # steps before this one
    key: Array | None
    momentum: Mix | None
    fitted: Mix | None
    basis: Mix | None
    weight_1: Float[ArrayLike, ""]  # the weight that the momentum has gathered: the divisor of bias correction
    weight_2: Float[ArrayLike, ""]  # the weight of the averages
    before: Float[ArrayLike, ""]  # that of the averages before this step
    moves: Bool[Array, ""] | bool  # whether the weights move: not where the first step only starts the basis


def coefficients(recipe: Recipe, count: Int[Array, ""], key: Array | None) -> StepCoefficients:
    """Decays and bias corrections of the step after `count` others."""
    moves: Bool[Array, ""] | bool = True
    t = count + 1
    if recipe.turn == "after":  # the first step only starts the basis: it does not count
        moves, t = t > 1, jnp.maximum(count, 1)
    b2 = recipe.b2(t.astype(float)) if callable(recipe.b2) else recipe.b2
    b3 = b2 if recipe.b3 is None or b2 is None else recipe.b3
    momentum, weight_1 = _decay(recipe.b1, t, recipe.bias_correction)
    corrected = recipe.bias_correction and not callable(recipe.b2)
    fitted, weight_2 = _decay(b2, t, corrected)
    basis, _ = _decay(b3, t, False)
    before = jnp.where(t == 1, 1.0, _decay(b2, t - 1, corrected)[1])  # nothing is averaged yet at the first step
    return StepCoefficients(count, key, momentum, fitted, basis, weight_1, weight_2, before, moves)


def init_matrices(recipe: Recipe, *likes: jax.ShapeDtypeStruct) -> list[MatrixState]:
    """The states before any gradient is seen, for matrices of these shapes and dtypes. Those alike are traced once."""
    layouts = {like: averaged_layout(recipe.structure, like.shape[-2:], recipe.average, like.dtype) for like in set(likes)}
    return [_init_matrix(recipe, like, layouts[like]) for like in likes]


def _init_matrix(recipe: Recipe, like: jax.ShapeDtypeStruct, averaged: Statistics) -> MatrixState:
    structure, (*stack, m, n) = recipe.structure, like.shape
    momentum = None if recipe.b1 is None else jnp.zeros(like.shape, like.dtype)
    if recipe.b2 is None:
        return _stored(recipe, MatrixState(None, None, None, momentum))
    frame, stats = first_frame(structure, (m, n), like.dtype), jax.tree.map(jnp.zeros_like, averaged)
    if recipe.b1 is not None and recipe.momentum == "rotated":
        layout = jax.eval_shape(structure.to_eigenbasis, frame, jnp.zeros((m, n), like.dtype))
        momentum = jax.tree.map(lambda x: jnp.zeros((*stack, *x.shape), x.dtype), layout)
    bases, stats = jax.tree.map(lambda x: jnp.broadcast_to(x, (*stack, *x.shape)), (bases_of(frame), stats))
    return _stored(recipe, MatrixState(bases, *stats, momentum))


def step_matrices(recipe: Recipe, kept: MatrixState, G: Matrices, now: StepCoefficients) -> tuple[MatrixState, Matrices]:
    """The state after one gradient, and the update."""
    structure, state = recipe.structure, optax.tree.cast(kept, G.dtype)
    to_eigenbasis = vmap_leading(G, structure.to_eigenbasis)
    clipped = clip_for_squaring(G)
    # Elsewhere squares are bounded, which spares a pass over G, and the momentum holds the NaN of what is not finite.
    if jax.tree.leaves(state.bases) or recipe.b1 is None or recipe.b2 is None:
        G = clipped
    if recipe.b2 is None:
        member = vmap_leading(G, lambda g: fit(structure, Fisher.of_one(g)))(G)
        frame = member.frame
    else:
        if recipe.turn == "before":
            state = _refreshed_if_due(recipe, state, G, now, now.basis)
        frame = frame_of(structure, G.shape[-2:], state.bases)
    X = clipped if recipe.momentum == "original" and recipe.b1 is not None else to_eigenbasis(frame, clipped)
    if recipe.b1 is not None:
        state = state._replace(momentum=jax.tree.map(_gated(now.momentum, now.moves), state.momentum, X))
        X = jax.tree.map(lambda x: x / now.weight_1, state.momentum)
        X = to_eigenbasis(frame, X) if recipe.momentum == "original" else X
    if recipe.b2 is not None:
        state = _averaged(recipe, state, G, now)
        member = fitted_members(structure, state, now.weight_2, recipe.average, G)
    if jax.tree.leaves(frame):
        X = vmap_leading(G, tree_above_rounding)(X)
    X = vmap_leading(G, lambda member, x: structure.precondition(member, x, recipe.eps))(member, X)
    update = vmap_leading(G, structure.from_eigenbasis)(frame, X)
    if recipe.turn == "after" and recipe.b2 is not None:
        update = jnp.where(now.moves, update, 0)
        state = _refreshed_if_due(recipe, state, G, now, Mix(1.0, 0.0))
    return _stored(recipe, state), update


def fitted_members(structure: Structure, state: MatrixState, weight: Any, average: str, G: Matrices) -> Params:
    """The members F~ that a state's averages give: fitted to averaged statistics, or the averaged fits themselves."""
    state = optax.tree.cast(state, G.dtype)
    frame = frame_of(structure, G.shape[-2:], state.bases)
    averaged = jax.tree.map(lambda x: x / jnp.asarray(weight, x.dtype), state.averaged)
    if average == "fits":
        return Params(frame, averaged)
    # The averages of the bases are left as they are: a fit knows its bases already.
    return vmap_leading(G, structure.fit)(Statistics(state.covariances, averaged), frame)


def vmap_leading(G: Matrices, f: Callable[..., Any]) -> Callable[..., Any]:
    """f of one matrix, mapped over the leading axes of G."""
    for _ in range(G.ndim - 2):
        f = jax.vmap(f)
    return f


def _averaged(recipe: Recipe, state: MatrixState, G: Matrices, now: StepCoefficients) -> MatrixState:
    members, stats = _observed(recipe, state, G, now)
    spectrum = stats.spectrum
    if recipe.average == "fits":
        spectrum = vmap_leading(G, recipe.structure.fit)(stats, members.frame).coords
    averaged = jax.tree.map(_gated(now.fitted, now.moves), state.averaged, spectrum)
    covariances = None if recipe.average == "fits" else jax.tree.map(now.basis, state.covariances, stats.basis)
    return state._replace(covariances=covariances, averaged=averaged)


def _observed(recipe: Recipe, state: MatrixState, G: Matrices, now: StepCoefficients) -> tuple[Params, Statistics]:
    """The last members, and the statistics of the current gradients as they see them."""
    members = fitted_members(recipe.structure, state, now.before, recipe.average, G)
    stats = vmap_leading(G, lambda g, member: recipe.structure.stats(Fisher.of_one(g), member))(G, members)
    return members, jax.tree.map(clip_squares, stats)


def _refreshed_if_due(recipe: Recipe, state: MatrixState, G: Matrices, now: StepCoefficients, mix: Mix | None) -> MatrixState:
    if recipe.update_interval is None or not jax.tree.leaves(state.bases):
        return state
    return refresh_if_due(now.count, recipe.update_interval, state, partial(_refreshed, recipe, state, G, now, mix))


def _refreshed(
    recipe: Recipe, state: MatrixState, G: Matrices, now: StepCoefficients, mix: Mix | None, first: Bool[ArrayLike, ""]
) -> MatrixState:
    structure, stats = recipe.structure, Statistics(state.covariances, state.averaged)
    members = fitted_members(structure, state, now.before, recipe.average, G)
    if recipe.average == "fits":  # no statistics are averaged: the bases follow the current gradient alone
        (_, stats), mix = _observed(recipe, state, G, now), Mix(1.0, 0.0)

    def update(stats: Statistics, member: Params, g: Array, key: Array) -> tuple[Frame, Statistics]:
        return structure.update_basis(stats, member.frame, Fisher.of_one(g), BasisStep(key, mix, first, member.coords))

    key = jax.random.PRNGKey(0) if now.key is None else now.key  # no tracker draws from the former
    keys = jax.random.split(jax.random.fold_in(key, now.count), G.shape[:-2])
    frame, moved = vmap_leading(G, update)(stats, members, G, keys)
    momentum = state.momentum
    if recipe.momentum == "rotated" and momentum is not None:
        back = vmap_leading(G, structure.from_eigenbasis)(members.frame, momentum)
        momentum = vmap_leading(G, structure.to_eigenbasis)(frame, back)
    return MatrixState(bases_of(frame), *(state[1:3] if recipe.average == "fits" else moved), momentum)


def refresh_if_due(count: Array, interval: Any, kept: Tree, refreshed: Callable[[Bool[ArrayLike, ""]], Tree]) -> Tree:
    """What is kept, or refreshed(first): at the first step and then every `interval` steps; None for the first alone.

    `first` is traced, so that a refresh is one program, or True where only the first step refreshes. Under `jax.vmap` a step
    refreshes where any of the batch is due, and the others keep what they have.
    """
    first = count == 0
    due = first if interval is None else count % interval == 0

    def chosen() -> Tree:
        new = refreshed(True if interval is None else first)
        return jax.tree.map(lambda x, old: jnp.where(due, x, old), new, kept)

    return jax.lax.cond(_any_due(due), chosen, lambda: kept)


@jax.custom_batching.custom_vmap
def _any_due(due: Bool[Array, ""]) -> Bool[Array, ""]:
    """Whether a matrix of the batch is due: one answer for the batch, since a cond of several would refresh at every step."""
    return due


@_any_due.def_vmap
def _(size: int, batched: list[bool], due: Bool[Array, " k"]) -> tuple[Bool[Array, ""], bool]:
    return _any_due(jnp.any(due)), False


def _stored(recipe: Recipe, state: MatrixState) -> MatrixState:
    """Cast a state to the dtypes in which the recipe stores it."""
    momentum, second_moment, basis = recipe.dtypes
    return MatrixState(*map(stored_in, (basis, basis, second_moment, momentum), state))


def _decay(b: Any, t: Array, corrected: bool) -> tuple[Mix | None, Float[ArrayLike, ""]]:
    """The weights of one step of an average with decay b, and the weight that it has gathered after t of them.

    A decay of 1 makes a sum, of weight 1, and not an average.
    """
    if b is None:
        return None, 1.0
    gain, weight = 1 - b, 1 - b**t if corrected else 1.0
    if isinstance(b, float | int):
        return (Mix(b, 1.0), 1.0) if b == 1 else (Mix(b, gain), weight)
    return Mix(b, jnp.where(b == 1, 1, gain)), jnp.where(b == 1, 1, weight)


def _gated(mix: Mix | None, moves: Any) -> Callable[[Array, Array], Array]:
    """The average after an observation, or as it was where nothing moves."""
    if moves is True:
        return mix
    return lambda old, new: jnp.where(moves, mix(old, new), old)

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
from fimlens.structure import BasisStep, Mix, Params, Statistics, Structure, Tree
from fimlens.transforms.dtypes import StateDtypes, stored_in
from fimlens.transforms.stacking import Matrices, clip_for_squaring, clip_squares

Matrix = Float[Array, "m n"]
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
    """What lasts from step to step, for matrices of one shape.

    It holds the bases of their frames (in a step the frames), the averages for the bases and for the eigenvalues (statistics or
    fits), and the momentum. None stands for what a recipe does not need.
    """

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


def coefficients(recipe: Recipe, count: Int[Array, ""], key: Array | None) -> StepCoefficients:
    """Decays and bias corrections of the step after `count` others."""
    t = jnp.maximum(count, 1) if recipe.turn == "after" else count + 1  # a first step that only starts the basis does not count
    b2 = recipe.b2(t.astype(float)) if callable(recipe.b2) else recipe.b2
    b3 = b2 if recipe.b3 is None or b2 is None else recipe.b3
    momentum, weight_1 = _decay(recipe.b1, t, recipe.bias_correction)
    corrected = recipe.bias_correction and not callable(recipe.b2)
    fitted, weight_2 = _decay(b2, t, corrected)
    basis, _ = _decay(b3, t, False)
    before = jnp.where(t == 1, 1.0, _decay(b2, t - 1, corrected)[1])  # nothing is averaged yet at the first step
    return StepCoefficients(count, key, momentum, fitted, basis, weight_1, weight_2, before)


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
    state, clipped = with_frames(recipe.structure, kept, G), clip_for_squaring(G)
    has_bases = bool(jax.tree.leaves(state.bases))
    refreshes = has_bases and recipe.update_interval is not None
    # Elsewhere squares are bounded, which spares a pass over G, and the momentum holds the NaN of what is not finite.
    if has_bases or recipe.b1 is None or recipe.b2 is None:
        G = clipped
    if refreshes and recipe.turn == "before":
        state = _refreshed_if_due(recipe, now, now.basis, state, G)
    new, update = vmap_leading(G, partial(_step, recipe, now))(state, G, clipped)
    if recipe.turn == "after":  # the first step only starts the basis
        still = state._replace(covariances=new.covariances), jnp.zeros_like(update)
        new, update = jax.tree.map(partial(jnp.where, now.count > 0), (new, update), still)
        new = _refreshed_if_due(recipe, now, Mix(1.0, 0.0), new, G) if refreshes else new
    bases = jax.tree.structure(kept.bases).unflatten(jax.tree.leaves(new.bases))
    return _stored(recipe, new._replace(bases=bases)), update


def with_frames(structure: Structure, kept: MatrixState, G: Matrices) -> MatrixState:
    """A kept state as a step computes with it: in the dtype of the gradients, with frames in place of their bases."""
    state = optax.tree.cast(kept, G.dtype)
    return state if kept.bases is None else state._replace(bases=frame_of(structure, G.shape[-2:], state.bases))


def vmap_leading(G: Matrices, f: Callable[..., Any]) -> Callable[..., Any]:
    """f of one matrix, mapped over the leading axes of G."""
    for _ in range(G.ndim - 2):
        f = jax.vmap(f)
    return f


def _step(recipe: Recipe, now: StepCoefficients, state: MatrixState, G: Matrix, clipped: Matrix) -> tuple[MatrixState, Matrix]:
    """One matrix: its averages with the gradient in them, and its update."""
    structure, frame = recipe.structure, state.bases
    if recipe.b2 is None:
        member = fit(structure, Fisher.of_one(G))
        frame = member.frame
    X = clipped if recipe.momentum == "original" and recipe.b1 is not None else structure.to_eigenbasis(frame, clipped)
    if recipe.b1 is not None:
        state = state._replace(momentum=jax.tree.map(now.momentum, state.momentum, X))
        X = jax.tree.map(lambda x: x / now.weight_1, state.momentum)
        X = structure.to_eigenbasis(frame, X) if recipe.momentum == "original" else X
    if recipe.b2 is not None:
        last, stats = _observed(recipe, now, state, G)
        if recipe.average == "fits":
            stats = Statistics(None, structure.fit(stats, last.frame).coords)
        covariances = jax.tree.map(now.basis, state.covariances, stats.basis)
        state = state._replace(covariances=covariances, averaged=jax.tree.map(now.fitted, state.averaged, stats.spectrum))
        member = fitted_member(structure, recipe.average, now.weight_2, state)
    if jax.tree.leaves(frame):
        X = tree_above_rounding(X)
    return state, structure.from_eigenbasis(frame, structure.precondition(member, X, recipe.eps))


def fitted_member(structure: Structure, average: str, weight: Any, state: MatrixState) -> Params:
    """The member F~ that a state's averages give: fitted to averaged statistics, or the averaged fit itself."""
    averaged = jax.tree.map(lambda x: x / jnp.asarray(weight, x.dtype), state.averaged)
    if average == "fits":
        return Params(state.bases, averaged)
    # The averages of the bases are left as they are: a fit knows its bases already.
    return structure.fit(Statistics(state.covariances, averaged), state.bases)


def _observed(recipe: Recipe, now: StepCoefficients, state: MatrixState, G: Matrix) -> tuple[Params, Statistics]:
    """The last member, and the statistics of the current gradient as it sees them."""
    member = fitted_member(recipe.structure, recipe.average, now.before, state)
    return member, jax.tree.map(clip_squares, recipe.structure.stats(Fisher.of_one(G), member))


def _refreshed_if_due(recipe: Recipe, now: StepCoefficients, mix: Mix | None, state: MatrixState, G: Matrices) -> MatrixState:
    def refreshed(first: Bool[ArrayLike, ""]) -> MatrixState:
        key = jax.random.PRNGKey(0) if now.key is None else now.key  # no tracker draws from the former
        keys = jax.random.split(jax.random.fold_in(key, now.count), G.shape[:-2])
        return vmap_leading(G, partial(_refreshed, recipe, now, BasisStep(key, mix, first)))(state, G, keys)

    return refresh_if_due(now.count, recipe.update_interval, state, refreshed)


def _refreshed(
    recipe: Recipe, now: StepCoefficients, step: BasisStep, state: MatrixState, G: Matrix, key: Array
) -> MatrixState:
    structure, stats = recipe.structure, Statistics(state.covariances, state.averaged)
    member = fitted_member(structure, recipe.average, now.before, state)
    if recipe.average == "fits":  # no statistics are averaged: the bases follow the current gradient alone
        (_, stats), step = _observed(recipe, now, state, G), step._replace(mix=Mix(1.0, 0.0))
    step = step._replace(key=key, coords=member.coords)
    frame, moved = structure.update_basis(stats, member.frame, Fisher.of_one(G), step)
    momentum = state.momentum
    if recipe.momentum == "rotated" and momentum is not None:
        momentum = structure.to_eigenbasis(frame, structure.from_eigenbasis(member.frame, momentum))
    return MatrixState(frame, *(state[1:3] if recipe.average == "fits" else moved), momentum)


def refresh_if_due(count: Array, interval: Any, kept: Tree, refreshed: Callable[[Bool[ArrayLike, ""]], Tree]) -> Tree:
    """What is kept, or refreshed(first): at the first step and then every `interval` steps; None for the first alone.

    `first` is traced, so that a refresh is one program, or True where only the first step refreshes. Under `jax.vmap` a step
    refreshes where any of the batch is due, and the others keep what they have.
    """
    first = count == 0
    due = first if interval is None else count % interval == 0

    def chosen() -> Tree:
        new = refreshed(True if interval is None else first)
        return jax.tree.map(partial(jnp.where, due), new, kept)

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

"""The optimizers of low rank, as one Optax transform: Adam or any structure on the lead, and a compensation outside it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from fimlens._validate import require_decay, require_number, require_real
from fimlens.structures.low_rank import LowRank
from fimlens.structures.move import MOMENTS
from fimlens.structures.spectra import Drop
from fimlens.transforms.compensation import Compensation, Outside, nearest, none
from fimlens.transforms.drop_in import PLACEHOLDER, drop_in
from fimlens.transforms.dtypes import StateDtypes, state_dtypes
from fimlens.transforms.low_rank_state import LowRankRecipe, StackState, init_stack
from fimlens.transforms.low_rank_step import refresh_stacks, step_stack
from fimlens.transforms.matrix_step import Recipe, coefficients
from fimlens.transforms.stacking import matrix_shapes, stack_matrices, unstack
from fimlens.transforms.state import state_of_others
from fimlens.transforms.structure_transform import random_key, tracker_decay


class LowRankState(NamedTuple):
    """The state of `scale_by_low_rank`: counters, a key where the tracker draws, and one `StackState` per matrix shape.

    `lead_count` counts the steps since the averages on the lead began, at the start or at the last reset. `stacks` is a dict
    with one entry per shape, named "m x n", whose matrices are stacked.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> tx = fl.scale_by_low_rank(fl.LowRank(fl.Diagonal(), 2, tracker=fl.SubspaceIteration(leading=1)))
        >>> state = tx.init([jnp.ones((3, 4)), jnp.ones((3, 4)), jnp.ones((4, 3))])
        >>> {name: kept.left.basis.shape for name, kept in state.stacks.items()}  # of the shorter side
        {'3 x 4': (2, 3, 2), '4 x 3': (1, 3, 2)}
        >>> kept = state.stacks["3 x 4"]
        >>> kept.lead.momentum.shape, kept.complement.columns.shape  # of the leads; one number a column
        ((2, 2, 4), (2, 1, 4))
    """

    count: Int[Array, ""]
    lead_count: Int[Array, ""]
    key: Array | None
    stacks: dict[str, StackState]


def scale_by_low_rank(
    structure: LowRank,
    *,
    compensation: Compensation = nearest,
    lift: bool | Float[ArrayLike, ""] = True,
    b1: Float[ArrayLike, ""] | None = 0.9,
    b2: Float[ArrayLike, ""] = 0.999,
    alpha_c: Float[ArrayLike, ""] = 1.0,
    gamma: Float[ArrayLike, ""] | None = 1.01,
    eps: Float[ArrayLike, ""] = 1e-8,
    update_interval: Int[ArrayLike, ""] | None = 200,
    moments: str = "keep",
    bias_correction: bool = True,
    dtypes: StateDtypes | DTypeLike | None = None,
) -> optax.GradientTransformation:
    """Scale each matrix's lead by the inner structure's inverse root, and what the subspace leaves out by its compensation.

    Use it to make a low-rank optimizer: Alice, GaLore, Fira, Apollo and low-rank SOAP are this with a tracker and a rule for
    the compensation. Matrices of one shape are one stack. A matrix whose side is at most the rank is taken whole on that
    side, with nothing left to compensate. What is left of a column (or row, or tail) is a difference of squares. Below 1e-5 of
    the whole (in float64, 2e-14) it may be rounding and gets no compensation. Coordinates of the lead at rounding get no
    update.

    Args:
        structure: the family: its inner structure, rank, complement, sides, and the tracker of its subspaces.
        compensation: the rule for the scale of each column outside the subspace; `nearest` is the complement's own, and
            Theorem 5.1's for Columns(). A rule that needs no average of the complement spares it with Drop(). `polar` and
            `sign` are functions of G - U U^T G itself, and take gamma=None. With sides="LR" it is `nearest` or `none`.
        lift: the factor of the lead's update: True for 1, or a number a. What is compensated is G less a times its part in the
            subspace; a below 1 is the way of Fira's code. With False, 0, the update is G Diag d, and the subspace only
            measures (Apollo).
        b1: decay of the momentum, and of the complement's statistics, as in [G]; None for neither, where what is given is a
            momentum already.
        b2: decay of the lead's statistics.
        alpha_c: scale of the compensation.
        gamma: by how much the norm of the compensation may grow in a step, as `fl.limit_norm_growth` says; None for no limit.
            A compensation that is made of the lead's update is measured before bias correction, as in the codes of Fira and
            Apollo, and without eps.
        eps: added to the roots of the lead's eigenvalues.
        update_interval: steps between updates of the subspaces, the first at the first step; None for that one alone.
        moments: what becomes of averages measured in a basis that moved: "keep" (as if it had not), "rotate" (into the
            new basis, by T = U_new^T U_old), or "reset".
        bias_correction: divide all averages by the weight they have gathered.
        dtypes: of the state, one for all or `StateDtypes`; by default that of the computation.

    Raises:
        TypeError: the first argument is not a LowRank, or (at init) a parameter is not of real floating point.
        ValueError: an option is out of its range.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> alice = fl.scale_by_low_rank(fl.LowRank(fl.Diagonal(), 2, tracker=fl.SubspaceIteration(leading=1)))
        >>> alice.init({"w": jnp.ones((3, 4))}).stacks["3 x 4"].left.basis.shape
        (1, 3, 2)
    """
    if not isinstance(structure, LowRank):
        raise TypeError(f"scale_by_low_rank: expected a fl.LowRank first; got {structure!r}.")
    dtypes = state_dtypes(dtypes)
    lead = Recipe(structure.inner, b1, b2, tracker_decay(structure.inner), eps, update_interval, bias_correction, dtypes)
    recipe = LowRankRecipe(structure, lead, compensation, lift, b1, alpha_c, gamma, moments, bias_correction, dtypes)
    _require_options(recipe)
    return drop_in(_init, _update, recipe)


def _init(recipe: LowRankRecipe, params: PyTree) -> LowRankState:
    require_real("scale_by_low_rank", params)
    stacks = {name: init_stack(recipe, like) for name, like in matrix_shapes(params).items()}
    if isinstance(params, PLACEHOLDER):
        stacks = jnp.zeros([])  # one leaf in place of what no parameter has the shape of
    return LowRankState(jnp.zeros([], jnp.int32), jnp.zeros([], jnp.int32), random_key(recipe.structure), stacks)


def _update(recipe: LowRankRecipe, updates: PyTree, state: LowRankState) -> tuple[PyTree, LowRankState]:
    with jax.default_matmul_precision("highest"):
        matrices = stack_matrices(updates)
        _require_state(recipe, state, matrices)
        lead_count, stacks = refresh_stacks(recipe, state, matrices)
        now = coefficients(recipe.lead, lead_count, state.key)
        count = optax.safe_increment(state.count)
        steps = {name: step_stack(recipe, stacks[name], G, now, count) for name, G in matrices.items()}
        scaled = unstack({name: U for name, (_, U) in steps.items()}, updates)
        kept = {name: kept for name, (kept, _) in steps.items()}
        return scaled, LowRankState(count, optax.safe_increment(lead_count), state.key, kept)


def _require_state(recipe: LowRankRecipe, state: LowRankState, matrices: dict[str, Array]) -> None:
    """Raise a ValueError for a state that was made for other matrices, ranks or options."""
    stacks = getattr(state, "stacks", {})
    if stacks.keys() != matrices.keys() or not all(_is_made_for(recipe, stacks[name], G) for name, G in matrices.items()):
        raise state_of_others("scale_by_low_rank", matrices)


def _is_made_for(recipe: LowRankRecipe, kept: StackState, G: Array) -> bool:
    """Whether a stack's state has the shapes and the parts that this recipe gives it."""
    shape = G.shape[1:]
    lead = None if recipe.b1 is None else (len(G), *recipe.structure.lead_shape(shape))
    return (
        getattr(kept.lead.momentum, "shape", None) == lead
        and (kept.growth is None) == (recipe.gamma is None)
        and [part is not None for part in kept.complement[1:]] == [count > 0 for count in recipe.structure.counts(shape)[1:]]
    )


def _require_options(recipe: LowRankRecipe) -> None:
    call, tracker, inner = "scale_by_low_rank", recipe.structure.tracker, recipe.lead
    if recipe.moments not in MOMENTS:
        raise ValueError(f"{call}: moments is one of {', '.join(map(repr, MOMENTS))}; got {recipe.moments!r}")
    if recipe.moments == "rotate" and not tracker.orthonormal:
        raise ValueError(f'{call}: one basis of {tracker} says nothing of the next; take moments="keep" or "reset".')
    if recipe.structure.sides == "LR" and recipe.compensation not in (nearest, none):
        raise ValueError(f'{call}: with sides="LR" the compensation is `nearest` or `none`; others scale columns alone.')
    require_number(call, "update_interval", inner.update_interval, 1, whole=True)
    if isinstance(recipe.compensation, Outside) and recipe.gamma is not None:
        raise ValueError(f"{call}: a compensation of what lies outside has a size of its own; take gamma=None.")
    if recipe.lift is not True:
        _require_scales_of_columns(call, recipe)
    require_decay(call, "b1", recipe.b1)
    require_decay(call, "b2", inner.b2)
    require_number(call, "lift", recipe.lift, 0)
    require_number(call, "alpha_c", recipe.alpha_c, 0)
    require_number(call, "gamma", recipe.gamma, 1)
    require_number(call, "eps", inner.eps, 0)


def _require_scales_of_columns(call: str, recipe: LowRankRecipe) -> None:
    """Where the lead is not all that moves in the subspace, G Diag d moves there too, which needs a d for every column."""
    dropped = recipe.compensation is nearest and isinstance(recipe.structure.complement, Drop)
    of_columns = not isinstance(recipe.compensation, Outside) and recipe.compensation is not none
    if recipe.structure.sides == "LR" or not of_columns or dropped:
        raise ValueError(
            f'{call}: lift={recipe.lift} scales columns alone. Take sides="short", and a compensation that gives each a scale.'
        )

"""The optimizer of any structure, as an Optax transform: update = Mat( f(F~) Vec(G) ) with f(x) = 1/(sqrt(x) + eps)."""

from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from fimlens._validate import path_name, require_decay, require_real
from fimlens.solver.sizes import unsuited
from fimlens.structure import Structure, require_structure
from fimlens.structures.trackers import Tracker, require_tracker
from fimlens.transforms.drop_in import PLACEHOLDER, drop_in
from fimlens.transforms.dtypes import StateDtypes, state_dtypes
from fimlens.transforms.matrix_step import Decay, Recipe, coefficients, init_matrices, step_matrices
from fimlens.transforms.stacking import matrix_shapes, sides, stack_matrices, unstack
from fimlens.transforms.state import StructureState, pack_state, placeholder_state, state_layout, unpack_state

_OPTIONS = {"momentum": ("original", "rotated"), "average": ("statistics", "fits"), "turn": ("before", "after")}


def scale_by_structure(
    structure: Structure,
    *,
    b1: Float[ArrayLike, ""] | None = 0.9,
    b2: Decay | None = 0.999,
    eps: Float[ArrayLike, ""] = 1e-8,
    update_interval: Int[ArrayLike, ""] | None = 1,
    turn: str = "before",
    momentum: str = "original",
    average: str = "statistics",
    bias_correction: bool = True,
    dtypes: StateDtypes | DTypeLike | None = None,
) -> optax.GradientTransformation:
    """Scale each matrix by the inverse root of the structure's nearest member to the Fisher of its gradients.

    Use it to make an optimizer of any structure; chain a learning rate after it. With `Diagonal()` it is
    `optax.scale_by_adam()`. The last two axes of a leaf are its matrix, leading axes index more matrices, and vectors and
    scalars are matrices of one column. Where the structure has bases, all matrices of one shape are one stack.

    Statistics, bases and roots are computed in float32 (float64 for float64 gradients); updates keep the gradients' dtype.
    Entries that would leave float32 when squared and summed are clipped (1.8e16 and more). Coordinates that are only the
    rounding of a rotation get no update, so that arbitrary vectors of a null space move nothing. What is not finite in a
    gradient makes NaN of all that depends on it, in update and state: guard with `optax.apply_if_finite`. A negative
    eigenvalue is not clipped either, which would hide that the structure is wrong: its root is NaN, and `check` says why.

    Args:
        structure: the family, such as fl.Rotated(fl.Diagonal(), "LR"); its trackers say how bases are followed.
        b1: decay of the momentum; None for none.
        b2: decay of the averages: a number (1 for a sum), or a function of the step t = 1, 2, ... that starts at 0. A function,
            such as t -> 1 - 1/t for the plain mean, needs no bias correction. None to keep nothing, and fit the current
            gradient alone.
        eps: added to the root of each eigenvalue.
        update_interval: steps between updates of the basis, the first at the first step; None to never update it.
        turn: "before" updates the basis before the step, with the current gradient, as [G] does. "after" updates it
            after the step, as SOAP's publication does. Then no gradient meets a basis that it chose, and the first step only
            starts the basis, with an update of zero.
        momentum: "original" averages gradients; "rotated" averages coordinates X and carries them along with the basis.
        average: "statistics" fits an average of statistics; "fits" averages fits (for `RowColumn()` m + n numbers, not m n).
        bias_correction: divide momentum and averages by the weight they have gathered.
        dtypes: of the state, one for all or `StateDtypes`; by default that of the computation.

    Raises:
        TypeError: the first argument is no structure, or (at init) a parameter is not of real floating point.
        ValueError: an option is out of its range, or (at init) the structure does not suit a parameter.

    Examples:
        >>> import jax.numpy as jnp, optax, fimlens as fl
        >>> soap = optax.chain(fl.scale_by_structure(fl.Rotated(fl.Diagonal(), "LR"), update_interval=10), optax.scale(-3e-3))
        >>> state = soap.init({"w": jnp.ones((3, 4)), "b": jnp.zeros(4)})
        >>> updates, state = soap.update({"w": jnp.ones((3, 4)), "b": jnp.ones(4)}, state)
        >>> updates["w"].shape
        (3, 4)
    """
    require_structure("scale_by_structure", structure)
    for tracker in trackers_of(structure):
        require_tracker("scale_by_structure", tracker, orthonormal=True)
    b3, dtypes = tracker_decay(structure), state_dtypes(dtypes)
    recipe = Recipe(structure, b1, b2, b3, eps, update_interval, bias_correction, dtypes, turn, momentum, average)
    _require_options(recipe)
    return drop_in(_init, _update, recipe)


def _init(recipe: Recipe, params: PyTree) -> StructureState:
    _require_suited(recipe.structure, params)
    layout = state_layout(recipe.structure, recipe.average)
    if isinstance(params, PLACEHOLDER):
        kept = placeholder_state(layout, params, recipe.b1 is not None, recipe.b2 is not None)
    else:
        matrices, treedef = jax.tree.flatten(matrix_shapes(params, layout.stacked))
        kept = pack_state(layout, treedef, init_matrices(recipe, *matrices), params)
    return StructureState(jnp.zeros([], jnp.int32), jnp.zeros([]), random_key(recipe.structure), *kept)


def _update(recipe: Recipe, updates: PyTree, state: StructureState) -> tuple[PyTree, StructureState]:
    if not optax.tree.size(updates):
        return updates, state._replace(count=optax.safe_increment(state.count))
    layout = state_layout(recipe.structure, recipe.average)
    with jax.default_matmul_precision("highest"):
        matrices, treedef = jax.tree.flatten(stack_matrices(updates, layout.stacked))
        states = unpack_state(layout, treedef, matrices, state)
        now = coefficients(recipe, state.count, state.key)
        step = jax.jit(partial(step_matrices, recipe, now=now))  # traced once for each shape
        steps = [step(kept, G) for kept, G in zip(states, matrices, strict=True)]
        states, moved = zip(*steps, strict=True)
        kept = pack_state(layout, treedef, states, updates)
        scaled = unstack(treedef.unflatten(moved), updates, layout.stacked)
        weight = jnp.asarray(now.weight_2, state.weight.dtype)
        return scaled, StructureState(optax.safe_increment(state.count), weight, state.key, *kept)


def trackers_of(structure: Any) -> Iterator[Tracker]:
    """The trackers of a structure and of the structures in it, outermost first."""
    for f in fields(structure):
        value = getattr(structure, f.name)
        if isinstance(value, Tracker):
            yield value
        elif hasattr(value, "stats"):
            yield from trackers_of(value)


def tracker_decay(structure: Structure) -> Float[ArrayLike, ""] | None:
    """The decay of what the structure's bases follow, as its trackers state it; None for the transform's b2."""
    decays = [tracker.b3 for tracker in trackers_of(structure) if tracker.b3 is not None]
    if len({b for b in decays if isinstance(b, float | int)}) > 1:
        raise ValueError(f"scale_by_structure: the trackers of {structure} have several decays b3, {decays}; give one.")
    return decays[0] if decays else None


def random_key(structure: Structure) -> Array | None:
    """The key which the structure's trackers draw from, or None where none of them draws."""
    seeds = [tracker.seed for tracker in trackers_of(structure) if tracker.seed is not None]
    return jax.random.PRNGKey(seeds[0]) if seeds else None


def _require_options(recipe: Recipe) -> None:
    for name, known in _OPTIONS.items():
        value = getattr(recipe, name)
        if value not in known:
            raise ValueError(f'scale_by_structure: {name} is "{known[0]}" or "{known[1]}"; got {value!r}')
    for name in ("b1", "b2"):
        require_decay("scale_by_structure", name, getattr(recipe, name))
    interval = recipe.update_interval
    if isinstance(interval, float | int | np.generic) and not (interval >= 1 and float(interval).is_integer()):
        raise ValueError(f"scale_by_structure: update_interval is a whole number, at least 1, or None; got {interval}")


def _require_suited(structure: Structure, params: PyTree) -> None:
    require_real("scale_by_structure", params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        shape, name = jnp.shape(leaf), path_name(path)
        if reason := unsuited(structure, sides(shape)):
            raise ValueError(
                f"scale_by_structure: {structure} does not suit parameter {name!r} of shape {shape}: {reason} "
                "Route it to another transform, with fl.matrices, optax.partition or optax.masked."
            )

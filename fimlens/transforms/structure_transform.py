"""The optimizer of any structure, as an Optax transform: update = Mat( f(F~) Vec(G) ) with f(x) = 1/(sqrt(x) + eps)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from fimlens._validate import path_name, require_real
from fimlens.fisher.fisher import Fisher
from fimlens.linalg.bases import tree_above_rounding
from fimlens.solver.fit import fit, zero_state
from fimlens.structure import Frame, Structure, Tree, require_structure
from fimlens.transforms.stacking import Matrices, clip_for_squaring, clip_squares, over, sides, unview, views
from fimlens.transforms.state import (
    MatrixState,
    StructureState,
    has_bases,
    members_of,
    pack_state,
    refreshed_if_due,
    unpack_state,
)

Decay = Float[ArrayLike, ""] | Callable[[Float[Array, ""]], Float[Array, ""]]


Mix = Callable[[Array, Array], Array]


def scale_by_structure(
    structure: Structure,
    *,
    b1: Float[ArrayLike, ""] | None = 0.9,
    b2: Decay | None = 0.999,
    b3: Float[ArrayLike, ""] | None = None,
    eps: Float[ArrayLike, ""] = 1e-8,
    update_interval: Int[ArrayLike, ""] | None = 1,
    turn: str = "before",
    momentum: str = "original",
    average: str = "statistics",
    bias_correction: bool = True,
    momentum_dtype: DTypeLike | None = None,
    second_moment_dtype: DTypeLike | None = None,
    factor_dtype: DTypeLike | None = None,
    seed: Int[ArrayLike, ""] = 0,
) -> optax.GradientTransformation:
    """Scale each matrix by the inverse root of the structure's nearest member to the Fisher of its gradients.

    With `Diagonal()` this is `optax.scale_by_adam()`. Statistics, bases and roots are computed in float32 (float64 for
    float64 gradients); updates keep the gradients' dtype. The last two axes of a leaf are its matrix, leading axes are more
    matrices, and vectors and scalars are matrices of one column. Where the structure has bases, all matrices of one
    shape are one stack. What would leave float32 when squared and summed is clipped (1.8e16 and more); coordinates that are but
    the rounding of a rotation get no update, so that arbitrary vectors of a null space move nothing. What is not finite in a
    gradient makes NaN of all that depends on it, in update and state: guard with `optax.apply_if_finite`. An eigenvalue below
    zero is not clipped either, which would hide that the structure is wrong: its root is NaN, and `check` says why (`cone`).

    Args:
        structure: the family, such as fl.Rotated(fl.Diagonal(), "LR").
        b1: decay of the momentum; None for none.
        b2: decay of the averages: a number (1 for a sum), or a function of the step t = 1, 2, ... that starts at 0, such
            as t -> 1 - 1/t for the plain mean, and then needs no bias correction. None to keep nothing, and fit the
            current gradient alone.
        b3: decay of the statistics that only serve to turn the basis; b2 by default.
        eps: added to the root of each eigenvalue.
        update_interval: steps between turns of the basis, the first at the first step; None to never turn.
        turn: "before" the update, the current gradient seen, as in [G]; or "after" it, as in SOAP's publication: no
            gradient meets a basis that it chose, and the first step only starts the basis: its update is zero.
        momentum: "original", averaged as gradients, or "rotated", averaged as coordinates X and carried along as the
            basis turns.
        average: "statistics", a fit of averages, or "fits", an average of fits (for `RowColumn()` m + n numbers, not m n).
        bias_correction: divide momentum and averages by the weight they have gathered.
        momentum_dtype, second_moment_dtype, factor_dtype: of what is kept: the momentum; what is fitted; the bases and the
            covariances that they follow. By default the dtype of the computation.
        seed: of the key that turns at random draw from, kept in the state.

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
    _require_options(structure, b1, b2, b3, update_interval, turn, momentum, average)
    stacked = has_bases(structure)
    current_only = b2 is None
    fitted_average = average == "fits"

    def serves_turn(averaged: Tree) -> Tree:
        return jax.tree.map(lambda _: False, averaged) if fitted_average else structure.serves_turn(averaged)

    def stored(slot: MatrixState) -> MatrixState:
        """In the dtypes that were asked for."""
        averaged = slot.averaged
        if averaged is not None:
            dtypes = factor_dtype, second_moment_dtype
            averaged = jax.tree.map(lambda slow, x: _cast(x, dtypes[0 if slow else 1]), serves_turn(averaged), averaged)
        frame = jax.tree.map(lambda x: _cast(x, factor_dtype), slot.frame)
        return MatrixState(frame, averaged, jax.tree.map(lambda x: _cast(x, momentum_dtype), slot.momentum))

    def first_slot(G: Matrices) -> MatrixState:
        frame, averaged = (None, None) if current_only else zero_state(structure, G.shape[-2:], average, G.dtype)
        frame, averaged = jax.tree.map(lambda x: jnp.broadcast_to(x, (*G.shape[:-2], *x.shape)), (frame, averaged))
        if b1 is None:
            return stored(MatrixState(frame, averaged, None))
        zeros = jnp.zeros_like(G)
        return stored(
            MatrixState(frame, averaged, zeros if momentum == "original" else over(G, structure.to_eigenbasis)(frame, zeros))
        )

    def init(params: PyTree) -> StructureState:
        _require_suited(structure, params)
        leaves, treedef = jax.tree.flatten(views(params, stacked))
        kept = pack_state(structure, treedef, [first_slot(G) for G in leaves])
        return StructureState(jnp.zeros([], jnp.int32), jnp.zeros([]), jax.random.PRNGKey(seed), *kept)

    def stats(G: Matrices, frame: Frame) -> Tree:
        seen = over(G, lambda g, frame: structure.stats(Fisher.of_one(g), frame))(G, frame)
        return jax.tree.map(clip_squares, seen)

    def mixed(old: Tree, new: Tree, now: StepCoefficients) -> Tree:
        return jax.tree.map(lambda slow, x, y: (now.slow if slow else now.fitted)(x, y), serves_turn(old), old, new)

    def turned(slot: MatrixState, seen: Tree, G: Matrices, key: Array, how: Callable[..., Frame]) -> MatrixState:
        keys = jax.random.split(key, G.shape[:-2])
        frame = over(G, lambda s, f, g, k: how(s, f, Fisher.of_one(g), k))(seen, slot.frame, G, keys)
        averaged, carried = slot.averaged, slot.momentum
        if not fitted_average:
            averaged = over(G, structure.carry)(averaged, slot.frame, frame)
        if momentum == "rotated" and b1 is not None:
            carried = over(G, structure.to_eigenbasis)(frame, over(G, structure.from_eigenbasis)(slot.frame, carried))
        return MatrixState(frame, averaged, carried)

    def turned_if_due(slot: MatrixState, seen: Callable[[], Tree], G: Matrices, state: StructureState) -> MatrixState:
        if update_interval is None or not jax.tree.leaves(slot.frame):
            return slot
        key = jax.random.fold_in(state.key, state.count)
        hows = [lambda how=how: turned(slot, seen(), G, key, how) for how in (structure.update_basis, structure.start)]
        return refreshed_if_due(state.count, update_interval, slot, *hows)

    def step(kept: MatrixState, G: Matrices, state: StructureState, now: StepCoefficients) -> tuple[MatrixState, Matrices]:
        slot = jax.tree.map(lambda x: x.astype(G.dtype), kept)
        moved = clip_for_squaring(G)  # of statistics it is the squares that are bounded, which spares them a pass over G
        G = moved if stacked else G
        if current_only:
            members = over(G, lambda g: fit(structure, Fisher.of_one(g)))(G)
            slot = slot._replace(frame=members.frame)
        elif turn == "before":

            def seen() -> Tree:
                new = stats(G, slot.frame)
                return new if fitted_average else mixed(slot.averaged, new, now)

            slot = turned_if_due(slot, seen, G, state)
        into, out = over(G, structure.to_eigenbasis), over(G, structure.from_eigenbasis)
        X = into(slot.frame, moved) if b1 is None or momentum == "rotated" else moved
        if b1 is not None:
            slot = slot._replace(momentum=jax.tree.map(now.momentum, slot.momentum, X))
            X = jax.tree.map(lambda x: x / now.weight_1, slot.momentum)
            X = into(slot.frame, X) if momentum == "original" else X
        if not current_only:
            measured = stats(G, slot.frame)
            measured = over(G, structure.fit)(measured, slot.frame).coords if fitted_average else measured
            slot = slot._replace(averaged=mixed(slot.averaged, measured, now))
            members = members_of(structure, slot, now.weight_2, average, G)
        if jax.tree.leaves(slot.frame):
            X = over(G, tree_above_rounding)(X)
        U = out(slot.frame, over(G, lambda member, x: structure.precondition(member, x, eps))(members, X))
        if current_only:
            slot = slot._replace(frame=None)
        elif turn == "after":
            U = jnp.where(now.moves, U, 0)
            slot = turned_if_due(slot, lambda: slot.averaged, G, state)
        return stored(slot), U

    def update(updates: PyTree, state: StructureState, params: PyTree = None) -> tuple[PyTree, StructureState]:
        del params
        with jax.default_matmul_precision("highest"):
            count = optax.safe_increment(state.count)
            leaves, treedef = jax.tree.flatten(views(updates, stacked))
            slots = unpack_state(structure, treedef, leaves, state)
            now = _now(count, turn, b1, b2, b3, bias_correction)
            moved = [step(slot, G, state, now) for slot, G in zip(slots, leaves, strict=True)]
            kept = pack_state(structure, treedef, [slot for slot, _ in moved])
            scaled = unview(treedef.unflatten([U for _, U in moved]), updates, stacked)
            return scaled, StructureState(count, jnp.asarray(now.weight_2, state.weight.dtype), state.key, *kept)

    return optax.GradientTransformation(init, update)


class StepCoefficients(NamedTuple):
    """What is true of one step of all matrices: how old and new are mixed, and what the averages sum up to."""

    momentum: Mix | None
    fitted: Mix | None
    slow: Mix | None
    weight_1: Float[ArrayLike, ""]
    weight_2: Float[ArrayLike, ""]
    moves: Array | bool


def _now(count: Array, turn: str, b1: Any, b2: Any, b3: Any, bias_correction: bool) -> StepCoefficients:
    moves: Array | bool = True
    t = count
    if turn == "after":  # the first step only starts the basis: it does not count
        moves, t = count > 1, jnp.maximum(count - 1, 1)
    b = b2(t.astype(float)) if callable(b2) else b2

    def mixing(b: Any, moves: Array | bool = True) -> Mix | None:
        if b is None:
            return None
        gain = _or_one_for_a_sum(b, 1 - b)
        if moves is True:
            return lambda old, new: (b * old + gain * new).astype(old.dtype)
        return lambda old, new: jnp.where(moves, (b * old + gain * new).astype(old.dtype), old)

    def weight(b: Any) -> Float[ArrayLike, ""]:
        return 1.0 if b is None or callable(b) or not bias_correction else _or_one_for_a_sum(b, 1 - b**t)

    slow = mixing(None if b2 is None else b if b3 is None else b3)
    return StepCoefficients(mixing(b1, moves), mixing(b, moves), slow, weight(b1), weight(b2), moves)


def _or_one_for_a_sum(b: Any, otherwise: Any) -> Any:
    if isinstance(b, float | int):
        return 1.0 if b == 1 else otherwise
    return jnp.where(b == 1, 1, otherwise)


def _cast(x: Array, dtype: DTypeLike | None) -> Array:
    return x if dtype is None else x.astype(dtype)


def _require_options(structure: Any, b1: Any, b2: Any, b3: Any, update_interval: Any, turn: Any, momentum: Any, average: Any):
    require_structure("scale_by_structure", structure)
    for name, value, known in (
        ("momentum", momentum, ("original", "rotated")),
        ("average", average, ("statistics", "fits")),
        ("turn", turn, ("before", "after")),
    ):
        if value not in known:
            raise ValueError(f'scale_by_structure: {name} is "{known[0]}" or "{known[1]}"; got {value!r}')
    for name, value in (("b1", b1), ("b2", b2), ("b3", b3)):
        if isinstance(value, float | int) and not 0 <= value <= 1:
            raise ValueError(f"scale_by_structure: the decay {name} is between 0 and 1; got {value}")
    if isinstance(update_interval, float | int) and (update_interval < 1 or update_interval != int(update_interval)):
        raise ValueError(f"scale_by_structure: update_interval is a whole number, at least 1, or None; got {update_interval}")


def _require_suited(structure: Structure, params: PyTree) -> None:
    require_real("scale_by_structure", params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        shape, name = jnp.shape(leaf), path_name(path)
        try:
            jax.eval_shape(lambda shape=shape: structure.frame(*sides(shape)))
        except ValueError as error:
            raise ValueError(
                f"scale_by_structure: {structure} does not suit parameter {name!r} of shape {shape}: {error} "
                "Route it to another transform, with fl.matrices, optax.partition or optax.masked."
            ) from error

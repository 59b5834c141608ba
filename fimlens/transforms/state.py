"""What `scale_by_structure` keeps, per leaf or per stack of one shape, and what can be asked of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from fimlens.solver.fit import zero_state
from fimlens.structure import Frame, Params, Structure, Tree
from fimlens.transforms.stacking import Matrices, over, shared_out, views


class MatrixState(NamedTuple):
    """What is kept for the matrices of one leaf, or for all those of one shape, stacked along a leading axis."""

    frame: Frame | None
    averaged: Tree  # statistics, or fits
    momentum: Tree


class StructureState(NamedTuple):
    """The state of `scale_by_structure`: a plain pytree of arrays.

    `weight` is what the averaged statistics sum up to, which bias correction divides by. Where the structure has no bases,
    `momentum` is a tree like the parameters, and so is each entry of `averaged` (for RACS, one of row factors and one of
    column factors); `frame` is None. Where it has bases, all three are dicts with one entry per matrix shape, named
    "m x n" (float64 ones apart), whose matrices are stacked. `members` gives the view per parameter.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> weights = {"w": jnp.ones((2, 3))}
        >>> adam = fl.scale_by_structure(fl.Diagonal()).init(weights)
        >>> adam.averaged["w"].shape, adam.frame
        ((2, 3), None)
        >>> soap = fl.scale_by_structure(fl.Rotated(fl.Diagonal(), "LR")).init(weights)
        >>> soap.averaged["2 x 3"].inner.shape, soap.frame["2 x 3"].bases.left.shape
        ((1, 2, 3), (1, 2, 2))
    """

    count: Int[Array, ""]
    weight: Float[Array, ""]
    key: Array
    frame: Tree
    averaged: Tree
    momentum: Tree


def members(structure: Structure, state: StructureState, params: PyTree, *, average: str = "statistics") -> PyTree:
    """The member F~ that each parameter is scaled by at this state: a tree of `Params`, mapped over a leaf's leading axes
    (flattened into one where the structure has bases).

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> tx = fl.scale_by_structure(fl.Rows())
        >>> _, state = tx.update({"w": jnp.ones((3, 4))}, tx.init({"w": jnp.ones((3, 4))}))
        >>> fl.members(fl.Rows(), state, {"w": jnp.ones((3, 4))})["w"].coords.shape
        (3, 1)
    """
    leaves, treedef = jax.tree.flatten(views(params, has_bases(structure)))
    slots = unpack_state(structure, treedef, leaves, state)
    fitted = treedef.unflatten(
        [members_of(structure, slot, state.weight, average, G) for slot, G in zip(slots, leaves, strict=True)]
    )
    if not has_bases(structure):
        return fitted

    def own(leaf: Array, part: Tree) -> Tree:
        return jax.tree.map(lambda x: x[0], part) if jnp.ndim(leaf) <= 2 else part

    return shared_out(fitted, params, own)


def start_from(state: StructureState, frame: Frame) -> StructureState:
    """The state of a single matrix, in a given frame; the state itself where the structure has no bases."""
    if state.frame is None:
        return state
    frames, treedef = jax.tree.flatten(state.frame, is_leaf=lambda x: isinstance(x, Frame))
    if len(frames) != 1 or frames[0].shape != frame.shape:
        raise ValueError(f"start_from: the frame is for one {frame.shape} matrix; the state holds {[f.shape for f in frames]}.")
    given = jax.tree.map(lambda old, new: new.reshape(old.shape).astype(old.dtype), frames[0], frame)
    return state._replace(frame=treedef.unflatten([given]))


def has_bases(structure: Structure) -> bool:
    """Whether its frame holds arrays: then matrices of one shape are worth a stack, for their decompositions."""
    try:
        return bool(jax.tree.leaves(jax.eval_shape(lambda: structure.frame(4096, 4096))))
    except ValueError:  # it suits other shapes only; a stack serves every structure
        return True


def pack_state(structure: Structure, treedef: Any, slots: list[MatrixState]) -> MatrixState:
    """A MatrixState of trees, from a tree of MatrixStates; leaf by leaf, with the parameters' tree innermost, as others expect it."""
    frame, averaged, momentum = (treedef.unflatten([slot[i] for slot in slots]) for i in range(3))
    if has_bases(structure):
        return MatrixState(frame, averaged, momentum)
    inner = jax.tree.structure(slots[0].averaged) if slots else jax.tree.structure(None)
    parts = [treedef.unflatten(part) for part in zip(*(jax.tree.leaves(slot.averaged) for slot in slots), strict=True)]
    kept = momentum if any(slot.momentum is not None for slot in slots) else None
    return MatrixState(None, inner.unflatten(parts), kept)


def unpack_state(structure: Structure, treedef: Any, leaves: list[Array], state: StructureState) -> list[MatrixState]:
    """The state's MatrixStates, one for each entry of the views of the updates: what `pack_state` did, undone."""
    stacked = has_bases(structure)
    try:
        if stacked:
            trees = (state.frame, state.averaged, state.momentum)
            slots = [MatrixState(*kept) for kept in zip(*(treedef.flatten_up_to(tree) for tree in trees), strict=True)]
        else:
            slots = _leaf_by_leaf(structure, treedef, leaves, state)
        fits = all(_is_of(structure, slot, G) for slot, G in zip(slots, leaves, strict=True))
    except (ValueError, TypeError):
        fits = False
    if not fits:
        raise _of_others("scale_by_structure", treedef.unflatten(leaves))
    return slots


def require_state(call: str, init: Callable[[PyTree], Tree], updates: PyTree, state: Tree) -> None:
    """Refuse a state that is not as `init` makes it for parameters like the updates.

    Raises:
        ValueError: it is not.
    """
    made = jax.eval_shape(init, updates)
    if jax.tree.structure(made) != jax.tree.structure(state) or jax.tree.map(jnp.shape, made) != jax.tree.map(jnp.shape, state):
        raise _of_others(call, views(updates, stacked=True))


def _of_others(call: str, seen: PyTree) -> ValueError:
    return ValueError(
        f"{call}: the updates are matrices {jax.tree.map(jnp.shape, seen)}, and the state was made for others. Pass the state "
        "that init made from parameters of these shapes and dtypes."
    )


def _is_of(structure: Structure, slot: MatrixState, G: Matrices) -> bool:
    """Whether what is kept was made for matrices like G."""
    count, shape = G.shape[:-2], G.shape[-2:]
    if any(x.shape[: G.ndim - 2] != count for x in jax.tree.leaves(slot)):
        return False
    if slot.frame is not None and slot.frame.shape != shape:
        return False
    if has_bases(structure):
        return True
    if slot.momentum is not None and slot.momentum.shape != G.shape:  # without bases it is like G itself
        return False
    kept = jax.tree.map(lambda x: x.shape[len(count) :], slot.averaged)
    made = [
        jax.eval_shape(lambda average=average: zero_state(structure, shape, average)[1]) for average in ("statistics", "fits")
    ]
    return slot.averaged is None or kept in [jax.tree.map(jnp.shape, averaged) for averaged in made]


def _leaf_by_leaf(structure: Structure, treedef: Any, leaves: list[Array], state: StructureState) -> list[MatrixState]:
    frames = [structure.frame(*G.shape[-2:]) for G in leaves]
    momenta = [None] * len(leaves) if state.momentum is None else treedef.flatten_up_to(state.momentum)
    if not jax.tree.leaves(state.averaged):
        return [MatrixState(frame, None, momentum) for frame, momentum in zip(frames, momenta, strict=True)]
    is_part = lambda x: jax.tree.structure(x) == treedef  # noqa: E731
    parts, inner = jax.tree.flatten(state.averaged, is_leaf=is_part)
    averaged = [inner.unflatten(part) for part in zip(*(treedef.flatten_up_to(part) for part in parts), strict=True)]
    return [MatrixState(*kept) for kept in zip(frames, averaged, momenta, strict=True)]


def members_of(structure: Structure, slot: MatrixState, weight: Any, average: str, G: Matrices) -> Params:
    slot = jax.tree.map(lambda x: x.astype(G.dtype), slot)
    averaged = jax.tree.map(lambda x: x / jnp.asarray(weight, x.dtype), slot.averaged)
    return over(G, structure.fit)(averaged, slot.frame) if average == "statistics" else Params(slot.frame, averaged)


def carried_by(
    structure: Structure, state: StructureState, updates: PyTree, left: PyTree, right: PyTree | None = None
) -> StructureState:
    """The state for left G right^T in place of G: momentum and statistics carried along, matrices for each of `updates`."""
    stacked = has_bases(structure)
    leaves, treedef = jax.tree.flatten(views(updates, stacked))
    lefts, rights = (
        [None] * len(leaves) if side is None else treedef.flatten_up_to(views(side, stacked, by=updates))
        for side in (left, right)
    )
    slots = []
    for slot, G, L, R in zip(unpack_state(structure, treedef, leaves, state), leaves, lefts, rights, strict=True):
        averaged = jax.tree.map(lambda x, G=G: x.astype(G.dtype), slot.averaged)
        averaged = over(G, structure.carried_by)(L, R, averaged)
        momentum = None
        if slot.momentum is not None:
            momentum = L @ slot.momentum.astype(G.dtype)
            momentum = momentum if R is None else momentum @ R.mT
        moved = slot._replace(averaged=averaged, momentum=momentum)
        slots.append(jax.tree.map(lambda x, like: x.astype(like.dtype), moved, slot))
    kept = pack_state(structure, treedef, slots)
    return state._replace(frame=kept.frame, averaged=kept.averaged, momentum=kept.momentum)


def refreshed_if_due(count: Array, interval: Any, kept: Tree, turn: Callable[[], Tree], start: Callable[[], Tree]) -> Tree:
    """What is kept: `start`ed at the first step, `turn`ed every `interval` steps, else as it is; None never turns it."""
    if interval is None:
        return jax.lax.cond(count == 0, start, lambda: kept)
    which = jnp.where(count == 0, 2, count % interval == 0)
    return jax.lax.switch(which, [lambda: kept, turn, start])

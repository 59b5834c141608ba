"""What `scale_by_structure` keeps, per leaf or per stack of one shape, and what can be asked of it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from fimlens.solver.sizes import zero_state
from fimlens.structure import Frame, Structure, Tree
from fimlens.transforms.matrix_step import MatrixState, fitted_members
from fimlens.transforms.stacking import Matrices, split_stacks, stack_matrices


class StructureState(NamedTuple):
    """The state of `scale_by_structure`: a plain pytree of arrays.

    `weight` is the sum of the averaging weights: the divisor of bias correction. `key` is what random bases draw from, None
    where nothing is drawn. Where the structure has no bases, `momentum` is a tree like the parameters, and so is each entry
    of `averaged` (for RACS, one of row factors and one of column factors). Where it has bases, `frame`, `covariances` (what
    the bases follow), `averaged` and `momentum` are dicts with one entry per matrix shape, named "m x n" (float64 ones
    apart), whose matrices are stacked. `members` gives the view per parameter.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> weights = {"w": jnp.ones((2, 3))}
        >>> adam = fl.scale_by_structure(fl.Diagonal()).init(weights)
        >>> adam.averaged["w"].shape, adam.frame, adam.key
        ((2, 3), None, None)
        >>> soap = fl.scale_by_structure(fl.Rotated(fl.Diagonal(), "LR")).init(weights)
        >>> soap.averaged["2 x 3"].shape, soap.covariances["2 x 3"].left.shape, soap.frame["2 x 3"].bases.left.shape
        ((1, 2, 3), (1, 2, 2), (1, 2, 2))
    """

    count: Int[Array, ""]
    weight: Float[Array, ""]
    key: Array | None
    frame: Tree
    covariances: Tree
    averaged: Tree
    momentum: Tree


def members(structure: Structure, state: StructureState, params: PyTree, *, average: str = "statistics") -> PyTree:
    """The member F~ that scales each parameter at this state: use it to look at what an optimizer has learnt.

    Args:
        structure: the one that the transform was made of.
        state: of `scale_by_structure`.
        params: the parameters that the state was made for, or arrays like them.
        average: as in `scale_by_structure`.

    Returns:
        A tree of `Params`, mapped over a leaf's leading axes (flattened into one where the structure has bases).

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> tx = fl.scale_by_structure(fl.Rows())
        >>> _, state = tx.update({"w": jnp.ones((3, 4))}, tx.init({"w": jnp.ones((3, 4))}))
        >>> fl.members(fl.Rows(), state, {"w": jnp.ones((3, 4))})["w"].coords.shape
        (3, 1)
    """
    stacked = has_bases(structure)
    leaves, treedef = jax.tree.flatten(stack_matrices(params, stacked))
    states = unpack_state(structure, stacked, treedef, leaves, state)
    fitted = treedef.unflatten(
        [fitted_members(structure, kept, state.weight, average, G) for kept, G in zip(states, leaves, strict=True)]
    )
    if not stacked:
        return fitted

    def own(leaf: Array, part: Tree) -> Tree:
        return jax.tree.map(lambda x: x[0], part) if jnp.ndim(leaf) <= 2 else part

    return split_stacks(fitted, params, own)


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

    def at(side: int, otherwise: bool) -> bool:
        try:
            return bool(jax.tree.leaves(jax.eval_shape(lambda: structure.frame(side, side))))
        except ValueError:  # it suits other shapes only; a stack serves every structure
            return otherwise

    return at(4096, True) or at(1, False)  # long sides may have no bases


def pack_state(stacked: bool, treedef: Any, states: Sequence[MatrixState]) -> MatrixState:
    """One MatrixState of trees, from one MatrixState per leaf or stack.

    Leaf by leaf, the parameters' tree is innermost, as other tools for Optax states expect it.
    """
    fields = [treedef.unflatten(field) for field in zip(*states, strict=True)] if states else [treedef.unflatten([])] * 4
    kept = MatrixState(*fields)
    if stacked:
        return kept
    inner = jax.tree.structure(states[0].averaged) if states else jax.tree.structure(None)
    parts = [treedef.unflatten(part) for part in zip(*(jax.tree.leaves(state.averaged) for state in states), strict=True)]
    momentum = kept.momentum if any(state.momentum is not None for state in states) else None
    return MatrixState(None, None, inner.unflatten(parts), momentum)


def unpack_state(
    structure: Structure, stacked: bool, treedef: Any, leaves: list[Array], state: StructureState
) -> list[MatrixState]:
    """One MatrixState per leaf or stack: what `pack_state` did, undone.

    Raises:
        ValueError: the state was made for other matrices than `leaves`.
    """
    kept = MatrixState(*state[3:])
    try:
        if not stacked:
            return _leaf_by_leaf(structure, treedef, leaves, kept)
        # The names of stacks are shapes and dtypes; their lengths are left to compare.
        states = list(map(MatrixState, *map(treedef.flatten_up_to, kept)))
        lengths = [len(x) for one in states for x in jax.tree.leaves(one)[:1]]
        if lengths == list(map(len, leaves))[: len(lengths)]:
            return states
    except (ValueError, TypeError):  # other names, or other leaves
        pass
    raise state_of_others("scale_by_structure", treedef.unflatten(leaves))


def state_of_others(call: str, matrices: PyTree) -> ValueError:
    """The error for a state that was made for other matrices."""
    return ValueError(
        f"{call}: the updates are matrices {jax.tree.map(jnp.shape, matrices)}, and the state was made for others. Pass the "
        "state that init made from parameters of these shapes and dtypes."
    )


def _leaf_by_leaf(structure: Structure, treedef: Any, leaves: list[Array], kept: MatrixState) -> list[MatrixState]:
    frames = [structure.frame(*G.shape[-2:]) for G in leaves]
    momenta = [None] * len(leaves) if kept.momentum is None else treedef.flatten_up_to(kept.momentum)
    averaged = [None] * len(leaves)
    if jax.tree.leaves(kept.averaged):
        parts, inner = jax.tree.flatten(kept.averaged, is_leaf=lambda x: jax.tree.structure(x) == treedef)
        columns = zip(*map(treedef.flatten_up_to, parts), strict=True)
        averaged = [inner.unflatten(column) for column in columns]
    states = [MatrixState(frame, None, *rest) for frame, *rest in zip(frames, averaged, momenta, strict=True)]
    for one, G in zip(states, leaves, strict=True):
        _require_like(structure, one, G)
    return states


def _require_like(structure: Structure, kept: MatrixState, G: Matrices) -> None:
    """Raise a ValueError where what is kept was made for matrices unlike G."""
    if kept.momentum is not None and kept.momentum.shape != G.shape:
        raise ValueError(f"the momentum has shape {kept.momentum.shape}, the updates {G.shape}")
    shapes = jax.tree.map(lambda x: x.shape[G.ndim - 2 :], kept.averaged)
    made = (jax.eval_shape(lambda a=average: zero_state(structure, G.shape[-2:], a)[1]) for average in ("statistics", "fits"))
    if kept.averaged is not None and not any(shapes == jax.tree.map(jnp.shape, stats.spectrum) for stats in made):
        raise ValueError(f"averages of shapes {shapes} are not those of {structure}")

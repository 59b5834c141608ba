"""What `scale_by_structure` keeps, per leaf or per stack of one shape, and what can be asked of it."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from fimlens.solver.sizes import zero_state
from fimlens.structure import Frame, Params, Structure, Tree
from fimlens.transforms.drop_in import remembered
from fimlens.transforms.leaf_rules import Leaf
from fimlens.transforms.matrix_step import MatrixState, fitted_member, vmap_leading, with_frames
from fimlens.transforms.stacking import Matrices, split_stacks, stack_matrices


class StructureState(NamedTuple):
    """The state of `scale_by_structure`: a plain pytree of arrays.

    `weight` is the sum of the averaging weights: the divisor of bias correction. `key` is what random bases draw from, None
    where nothing is drawn. Where the structure has no bases, `momentum` is a tree like the parameters, and so is each entry of
    `averaged`. For RACS these are one of row factors and one of column factors. Where it has bases, `bases`, `covariances`,
    `averaged` and `momentum` are dicts of stacked matrices, with one entry per shape, named "m x n" (float64 ones apart). The
    bases follow the covariances. `members` gives the view per parameter.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> weights = {"w": jnp.ones((2, 3))}
        >>> adam = fl.scale_by_structure(fl.Diagonal()).init(weights)
        >>> adam.averaged["w"].shape, adam.bases, adam.key
        ((2, 3), None, None)
        >>> soap = fl.scale_by_structure(fl.Rotated(fl.Diagonal(), "LR")).init(weights)
        >>> soap.averaged["2 x 3"].shape, soap.covariances["2 x 3"].left.shape, soap.bases["2 x 3"].left.shape
        ((1, 2, 3), (1, 2, 2), (1, 2, 2))
    """

    count: Int[Array, ""]
    weight: Float[Array, ""]
    key: Array | None
    bases: Tree
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
    layout = state_layout(structure, average)
    leaves, treedef = jax.tree.flatten(stack_matrices(params, layout.stacked))
    states = unpack_state(layout, treedef, leaves, state)

    def fit(G: Matrices, kept: MatrixState) -> Params:
        return vmap_leading(G, partial(fitted_member, structure, average, state.weight))(with_frames(structure, kept, G))

    fitted = treedef.unflatten(map(fit, leaves, states))
    if not layout.stacked:
        return fitted

    def own(leaf: Array, part: Tree) -> Tree:
        return jax.tree.map(lambda x: x[0], part) if jnp.ndim(leaf) <= 2 else part

    return split_stacks(fitted, params, own)


def start_from(state: StructureState, frame: Frame) -> StructureState:
    """The state of a single matrix, in a given frame; the state itself where the structure has no bases."""
    if state.bases is None:
        return state
    given, kept = jax.tree.leaves(frame), jax.tree.leaves(state.bases)
    if len(state.bases) != 1 or [x.size for x in given] != [x.size for x in kept]:
        raise ValueError(f"start_from: the frame is for one {frame.shape} matrix; the state holds {list(state.bases)}.")
    leaves = [new.reshape(old.shape).astype(old.dtype) for old, new in zip(kept, given, strict=True)]
    return state._replace(bases=jax.tree.structure(state.bases).unflatten(leaves))


class StateLayout(NamedTuple):
    """Where a structure's state keeps its matrices: in one stack per shape, or leaf by leaf, in trees like the parameters.

    `whole` has a bool for each array of averages: whether it has the matrix's own shape, as Adam's second moments have.
    """

    structure: Structure
    average: str
    stacked: bool
    whole: Tree


@remembered
def state_layout(structure: Structure, average: str) -> StateLayout:
    """The layout of a structure's state. Matrices are stacked where there are bases, for their decompositions."""
    probe = (4096, 4096)
    try:
        frame, stats = jax.eval_shape(partial(zero_state, structure, probe, average))
    except ValueError:  # it suits other shapes only; a stack serves every structure
        return StateLayout(structure, average, True, None)
    stacked = bool(jax.tree.leaves(frame)) or _has_bases(structure, (1, 1))  # long sides may have none
    return StateLayout(structure, average, stacked, jax.tree.map(lambda x: x.shape == probe, stats.spectrum))


def _has_bases(structure: Structure, shape: tuple[int, int]) -> bool:
    try:
        return bool(jax.tree.leaves(jax.eval_shape(partial(structure.frame, *shape))))
    except ValueError:  # it does not suit the shape
        return False


def pack_state(layout: StateLayout, treedef: Any, states: Sequence[MatrixState], tree: PyTree) -> MatrixState:
    """One MatrixState of trees, from one MatrixState per stack, or per leaf of `tree`.

    Leaf by leaf, the parameters' tree is innermost, as other tools for Optax states expect it. What has a parameter's shape is
    kept in it: a vector's momentum is a vector.
    """
    if layout.stacked:
        return MatrixState(*map(treedef.unflatten, zip(*states, strict=True) if states else [()] * 4))
    columns = zip(*(jax.tree.leaves(state.averaged) for state in states), strict=True)
    flags, inner = jax.tree.flatten(layout.whole if any(state.averaged is not None for state in states) else None)

    def in_shape_of(leaf: Leaf, x: Array | None) -> Array:
        # An empty leaf has no matrices. It keeps one dtype, whether `tree` holds bfloat16 weights or their float32 gradients.
        return jnp.zeros(jnp.shape(leaf)) if x is None else x.reshape(jnp.shape(leaf))

    def in_shapes_of_leaves(matrices: Iterable[Array]) -> PyTree:
        return jax.tree.map(in_shape_of, tree, treedef.unflatten(matrices))

    parts = [
        in_shapes_of_leaves(part) if whole else treedef.unflatten(part) for part, whole in zip(columns, flags, strict=True)
    ]
    momenta = [state.momentum for state in states]
    momentum = in_shapes_of_leaves(momenta) if any(x is not None for x in momenta) else None
    return MatrixState(None, None, inner.unflatten(parts), momentum)


def placeholder_state(layout: StateLayout, params: PyTree, momentum: bool, averaged: bool) -> MatrixState:
    """What `pack_state` makes of Optax's placeholder: the placeholder where parameters stand, one leaf for anything else."""
    other = jnp.zeros([])
    if layout.stacked:
        return MatrixState(other, other, other, other)
    parts = jax.tree.map(lambda whole: params if whole else other, layout.whole) if averaged else None
    return MatrixState(None, None, parts, params if momentum else None)


def unpack_state(layout: StateLayout, treedef: Any, leaves: list[Array], state: StructureState) -> list[MatrixState]:
    """One MatrixState per leaf or stack: what `pack_state` did, undone.

    Raises:
        ValueError: the state was made for other matrices than `leaves`.
    """
    kept = MatrixState(*state[3:])
    try:
        if not layout.stacked:
            return _leaf_by_leaf(layout, treedef, leaves, kept)
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


def _leaf_by_leaf(layout: StateLayout, treedef: Any, leaves: list[Array], kept: MatrixState) -> list[MatrixState]:
    kept = jax.tree.map(lambda x: x if x.size else None, kept)  # as in `stack_matrices`
    momenta = averaged = [None] * len(leaves)
    if kept.momentum is not None:
        momenta = list(map(_reshaped, treedef.flatten_up_to(kept.momentum), leaves))
    if jax.tree.leaves(kept.averaged):
        flags, inner = jax.tree.flatten(layout.whole)
        parts = inner.flatten_up_to(kept.averaged)
        columns = [treedef.flatten_up_to(part) for part in parts]
        columns = [list(map(_reshaped, part, leaves)) if whole else part for part, whole in zip(columns, flags, strict=True)]
        averaged = list(map(inner.unflatten, zip(*columns, strict=True)))
        if not all(flags):
            for average, G in zip(averaged, leaves, strict=True):
                _require_like(layout, average, G)
    return [MatrixState((), None, *rest) for rest in zip(averaged, momenta, strict=True)]


def _reshaped(x: Array, G: Matrices) -> Array:
    """A leaf as the matrices that it was: only vectors and numbers change, which are matrices of one column.

    Raises:
        TypeError: the array has another shape than that.
    """
    if x.shape != G.shape and x.ndim > 1:
        raise TypeError(f"an array of shape {x.shape} is not of shape {G.shape}")
    return x.reshape(G.shape)


def _require_like(layout: StateLayout, averaged: Tree, G: Matrices) -> None:
    """Raise a ValueError where the averages were made for matrices unlike G."""
    shapes = jax.tree.map(lambda x: x.shape[G.ndim - 2 :], averaged)
    _, made = jax.eval_shape(partial(zero_state, layout.structure, G.shape[-2:], layout.average))
    if shapes != jax.tree.map(jnp.shape, made.spectrum):
        raise ValueError(f"averages of shapes {shapes} are not those of {layout.structure}")

"""The optimizer of any structure, as an Optax transform: update = Mat( f(F~) Vec(G) ) with f(x) = 1/(sqrt(x) + eps)."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from fimlens._fit import blank
from fimlens.fisher import Fisher
from fimlens.structure import Frame, Params, Structure, Tree, scale

Decay = float | Callable[[Float[Array, ""]], Float[Array, ""]]
Stack = Float[Array, "k m n"]


class Slot(NamedTuple):
    """What is kept for all matrices of one shape, stacked along a leading axis."""

    frame: Frame
    averaged: Tree  # statistics, or fits
    momentum: Tree  # None without momentum


class StructureState(NamedTuple):
    """The state of `scale_by_structure`: a plain pytree of arrays.

    `weight` is what the averaged statistics sum up to, which bias correction divides by. `slots` has one entry per
    matrix shape, named "m x n" (float64 ones apart); `members` gives the view per parameter.
    """

    count: Int[Array, ""]
    weight: Float[Array, ""]
    key: Array
    slots: dict[str, Slot]


def inverse_root(eps: Float[ArrayLike, ""]) -> Callable[[Array], Array]:
    """f(x) = 1 / (sqrt(x) + eps), and 0 where that is 1/0: a direction never seen."""

    def f(x: Array) -> Array:
        scale = jnp.sqrt(x) + eps
        return jnp.where(scale > 0, 1 / jnp.where(scale > 0, scale, 1), 0)

    return f


def scale_by_structure(
    structure: Structure,
    *,
    b1: float | None = 0.9,
    b2: Decay = 0.999,
    eps: Float[ArrayLike, ""] = 1e-8,
    update_interval: int | None = 1,
    momentum: str = "original",
    average: str = "statistics",
    bias_correction: bool = True,
    seed: int = 0,
) -> optax.GradientTransformation:
    """Scale each matrix by the inverse root of the structure's nearest member to the Fisher of its gradients.

    With `Diagonal()` this is `optax.scale_by_adam()`. Statistics, bases and roots are float32 (float64 for float64
    gradients); updates keep the gradients' dtype. Matrices of one shape are one stack. The last two axes of a leaf are its
    matrix, leading axes are more matrices, and vectors and scalars are matrices of one column.

    Args:
        structure: the family, such as fl.Rotated(fl.Diagonal(), "LR").
        b1: decay of the momentum; None for none.
        b2: decay of the averages: a number, or a function of the step t = 1, 2, ... that starts at 0, such as
            t -> 1 - 1/t for the plain mean, and then needs no bias correction.
        eps: added to the root of each eigenvalue.
        update_interval: steps between turns of the basis, the first at the first step; None to never turn.
        momentum: "original", averaged as gradients, or "rotated", averaged as coordinates X and carried along as the
            basis turns.
        average: "statistics", a fit of averages, or "fits", an average of fits (for `RowColumn()` m + n numbers, not m n).
        bias_correction: divide momentum and averages by the weight they have gathered.
        seed: of the key that turns at random draw from, kept in the state.

    Raises:
        ValueError: an option is none of these, or (at init) the structure does not suit a parameter.

    Example:
        >>> import jax.numpy as jnp, optax, fimlens as fl
        >>> soap = optax.chain(fl.scale_by_structure(fl.Rotated(fl.Diagonal(), "LR"), update_interval=10), optax.scale(-3e-3))
        >>> state = soap.init({"w": jnp.ones((3, 4)), "b": jnp.zeros(4)})
        >>> updates, state = soap.update({"w": jnp.ones((3, 4)), "b": jnp.ones(4)}, state)
        >>> updates["w"].shape
        (3, 4)
    """
    if momentum not in ("original", "rotated"):
        raise ValueError(f'scale_by_structure: momentum is "original" or "rotated"; got {momentum!r}')
    if update_interval is not None and update_interval < 1:
        raise ValueError(f"scale_by_structure: update_interval is at least 1, or None; got {update_interval}")
    if average not in ("statistics", "fits"):
        raise ValueError(f'scale_by_structure: average is "statistics" or "fits"; got {average!r}')
    into, out = jax.vmap(structure.into), jax.vmap(structure.out)
    fit = jax.vmap(structure.fit)

    def first_slot(G: Stack) -> Slot:
        frame, averaged = jax.tree.map(
            lambda x: jnp.broadcast_to(x, (len(G), *x.shape)), blank(structure, G.shape[1:], average, G.dtype)
        )
        if b1 is None:
            return Slot(frame, averaged, None)
        return Slot(frame, averaged, jnp.zeros_like(G) if momentum == "original" else into(frame, jnp.zeros_like(G)))

    def init(params: PyTree) -> StructureState:
        _require_fit(structure, params)
        slots = {name: first_slot(jnp.zeros_like(G)) for name, G in stacks(params).items()}
        return StructureState(jnp.zeros([], jnp.int32), jnp.zeros([]), jax.random.PRNGKey(seed), slots)

    def stats(G: Stack, frame: Frame) -> Tree:
        return jax.vmap(lambda g, frame: structure.stats(Fisher.from_gradients(g[None]), frame))(G, frame)

    def measure(G: Stack, frame: Frame) -> Tree:
        return stats(G, frame) if average == "statistics" else fit(stats(G, frame), frame).coords

    def turn(slot: Slot, G: Stack, b: Array | float, key: Array) -> Slot:
        seen = stats(G, slot.frame)
        if average == "statistics":
            seen = _mix(b, slot.averaged, seen)
        keys = jax.random.split(key, len(G))
        turned = jax.vmap(lambda s, f, g, k: structure.turn(s, f, Fisher.from_gradients(g[None]), k))
        frame = turned(seen, slot.frame, G, keys)
        averaged = slot.averaged
        if average == "statistics":
            averaged = jax.vmap(structure.carry)(averaged, slot.frame, frame)
        carried = slot.momentum
        if momentum == "rotated" and b1 is not None:
            carried = into(frame, out(slot.frame, carried))
        return Slot(frame, averaged, carried)

    def step(slot: Slot, G: Stack, state: StructureState, b: Array | float, weights: tuple[Array, Array]) -> tuple[Slot, Stack]:
        if update_interval is not None and jax.tree.leaves(slot.frame):
            key = jax.random.fold_in(state.key, state.count)
            due = state.count % update_interval == 0
            slot = jax.lax.cond(due, lambda slot: turn(slot, G, b, key), lambda slot: slot, slot)
        averaged = _mix(b, slot.averaged, measure(G, slot.frame))
        X = into(slot.frame, G) if b1 is None or momentum == "rotated" else G
        average_X = None if b1 is None else _mix(b1, slot.momentum, X)
        slot = Slot(slot.frame, averaged, average_X)
        weight_1, weight_2 = weights
        X = jax.tree.map(lambda x: x / weight_1, X if b1 is None else average_X)
        if b1 is not None and momentum == "original":
            X = into(slot.frame, X)
        members = _members(structure, slot, weight_2, average)
        X = jax.vmap(partial(scale, inverse_root(eps)))(jax.vmap(structure.eigenvalues)(members), X)
        return slot, out(slot.frame, X)

    def update(updates: PyTree, state: StructureState, params: PyTree = None) -> tuple[PyTree, StructureState]:
        del params
        with jax.default_matmul_precision("highest"):
            count = optax.safe_increment(state.count)
            G = stacks(updates)
            _require_same(G, state)
            b = b2(count.astype(float)) if callable(b2) else b2
            one = jnp.ones([])
            weight = 1 - b2**count if bias_correction and not callable(b2) else one
            weight_1 = 1 - b1**count if bias_correction and b1 is not None else one
            moved = {name: step(state.slots[name], G[name], state, b, (weight_1, weight)) for name in G}
            slots = {name: slot for name, (slot, _) in moved.items()}
            scaled = unstack({name: U for name, (_, U) in moved.items()}, updates)
            return scaled, StructureState(count, jnp.asarray(weight, state.weight.dtype), state.key, slots)

    return optax.GradientTransformation(init, update)


def members(structure: Structure, state: StructureState, params: PyTree, *, average: str = "statistics") -> PyTree:
    """The member F~ that each parameter is scaled by at this state, stacked along a leading axis per parameter.

    Example:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> tx = fl.scale_by_structure(fl.Rows())
        >>> _, state = tx.update({"w": jnp.ones((3, 4))}, tx.init({"w": jnp.ones((3, 4))}))
        >>> fl.members(fl.Rows(), state, {"w": jnp.ones((3, 4))})["w"].coords.shape
        (1, 3, 1)
    """
    fitted = {name: _members(structure, slot, state.weight, average) for name, slot in state.slots.items()}
    return _shared_out(fitted, params, lambda leaf, part: part)


def start_from(state: StructureState, frame: Frame) -> StructureState:
    """The state of a single matrix, in a given frame."""
    (name, slot), *others = state.slots.items()
    if others or slot.frame.shape != frame.shape:
        raise ValueError(f"start_from: the frame is for one {frame.shape} matrix; the state holds {list(state.slots)}.")
    return state._replace(slots={name: slot._replace(frame=jax.tree.map(lambda x: x[None], frame))})


def _members(structure: Structure, slot: Slot, weight: Array, average: str) -> Params:
    averaged = jax.tree.map(lambda x: x / weight.astype(x.dtype), slot.averaged)
    return jax.vmap(structure.fit)(averaged, slot.frame) if average == "statistics" else Params(slot.frame, averaged)


def _mix(b: Array | float, old: Tree, new: Tree) -> Tree:
    return jax.tree.map(lambda x, y: (b * x + (1 - b) * y).astype(x.dtype), old, new)


def _view(leaf: Array) -> tuple[str, Stack]:
    """The matrices of a leaf, in the dtype of its statistics, and the name of their stack."""
    leaf = jnp.asarray(leaf)
    m, n = leaf.shape[-2:] if leaf.ndim >= 2 else (leaf.size, 1)
    dtype = jnp.promote_types(leaf.dtype, jnp.float32)
    name = f"{m} x {n}" + ("" if dtype == jnp.float32 else f" {dtype}")
    return name, leaf.astype(dtype).reshape(-1, m, n) if leaf.size else jnp.zeros((0, m, n), dtype)


def stacks(tree: PyTree) -> dict[str, Stack]:
    """The matrices of a tree, those of one shape stacked in the order of the leaves."""
    groups: dict[str, list[Stack]] = {}
    for leaf in jax.tree.leaves(tree):
        name, G = _view(leaf)
        if len(G):
            groups.setdefault(name, []).append(G)
    return {name: jnp.concatenate(Gs) if len(Gs) > 1 else Gs[0] for name, Gs in groups.items()}


def unstack(stacked: dict[str, Stack], like: PyTree) -> PyTree:
    """Undo `stacks`, in the shapes and dtypes of a tree."""
    return _shared_out(stacked, like, lambda leaf, part: part.reshape(leaf.shape).astype(leaf.dtype))


def _shared_out(stacked: dict[str, Tree], like: PyTree, own: Callable[[Array, Tree], Tree]) -> PyTree:
    """own(leaf, its part of its stack) over the leaves of a tree, in their order; a leaf without entries stays."""
    taken = dict.fromkeys(stacked, 0)

    def part(leaf: Array) -> Tree:
        name, G = _view(leaf)
        if not len(G):
            return leaf
        first = taken[name]
        taken[name] = first + len(G)
        return own(leaf, jax.tree.map(lambda x: x[first : first + len(G)], stacked[name]))

    return jax.tree.map(part, like)


def _require_fit(structure: Structure, params: PyTree) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        _, G = _view(leaf)
        try:
            jax.eval_shape(lambda shape=G.shape[1:]: structure.frame(*shape))
        except ValueError as error:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(
                f"scale_by_structure: {structure} does not suit parameter {name!r} of shape {leaf.shape}: {error} "
                "Route it to another transform, with optax.partition or optax.masked."
            ) from error


def _require_same(G: dict[str, Stack], state: StructureState) -> None:
    if G.keys() != state.slots.keys():
        raise ValueError(
            f"scale_by_structure: the updates have matrices {sorted(G)}, the state was made for {sorted(state.slots)}. "
            "Pass the state that init made from parameters of these shapes and dtypes."
        )

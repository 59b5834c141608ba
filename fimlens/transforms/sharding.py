"""The sharding of an optimizer's state on a mesh, computed before any array exists."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from fimlens._validate import path_name
from fimlens.linalg.mesh import dividing
from fimlens.transforms.stacking import stack_name

STACK = re.compile(r"\d+ x \d+( \w+)?")


Axes = tuple[Any, ...]  # one entry for each axis of an array: None, a mesh axis, or several mesh axes


def state_partition_specs(tx: Any, params: PyTree, param_specs: PyTree, *, mesh: Mesh | AbstractMesh | None = None) -> PyTree:
    """Compute the PartitionSpecs of `tx.init(params)`, for `jit` and for checkpoints, of any chained or routed transform.

    A state leaf at the place of a parameter, with that parameter's axes, merged or reduced to one, keeps their sharding. So
    does one that stacks several of these along a first axis of its own, as a memory of steps does.
    Matrices that are stacked for their decompositions are split along the stack, over as many mesh axes as divide its length,
    so that each device decomposes its own matrices. The other mesh axes stay where all parameters of the stack have them and
    the state holds that side whole. Everything else, and whatever is not floating (counters, keys), is replicated.

    Args:
        tx: the optimizer.
        params: arrays or jax.ShapeDtypeStructs.
        param_specs: a tree like `params` of PartitionSpecs, or of NamedShardings, which name the mesh.
        mesh: the mesh, for optimizers that stack matrices; needed where `param_specs` do not name it.

    Raises:
        ValueError: matrices are stacked, and no mesh is named.

    Examples:
        >>> import jax, jax.numpy as jnp, optax, fimlens as fl
        >>> from jax.sharding import PartitionSpec as P
        >>> params = {"w": jax.ShapeDtypeStruct((8, 4), jnp.float32)}
        >>> specs = fl.state_partition_specs(fl.scale_by_racs(), params, {"w": P("fsdp", "tensor")})
        >>> specs[0].averaged == ({"w": P("fsdp", None)}, {"w": P(None, "tensor")})
        True
    """
    is_spec = lambda x: isinstance(x, PartitionSpec | NamedSharding)  # noqa: E731
    leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
    specs = treedef.flatten_up_to(param_specs) if not is_spec(param_specs) else [param_specs] * len(leaves)
    for spec in specs:
        mesh = spec.mesh if isinstance(spec, NamedSharding) else mesh
    specs = [tuple(spec.spec if isinstance(spec, NamedSharding) else spec or ()) for spec in specs]
    known = {_path_words(path): (jnp.shape(leaf), spec) for (path, leaf), spec in zip(leaves, specs, strict=True)}
    stacked: dict[str, list[Axes]] = {}
    for shape, spec in known.values():
        # A spec may leave out trailing axes; the stack needs an entry for both sides of the matrix.
        ends = (*spec, *(None,) * (max(len(shape), 2) - len(spec)))[-2:]
        stacked.setdefault(stack_name(jax.ShapeDtypeStruct(shape, "float32")), []).append(ends)

    def spec_of(path: Any, leaf: Any) -> PartitionSpec:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return PartitionSpec()
        words = _path_words(path)
        name = next((word for word in words if STACK.fullmatch(word)), None)
        if name is not None:
            if mesh is None:
                raise ValueError("state_partition_specs: matrices are stacked; name the mesh, as in mesh=mesh.")
            stack = name.rsplit(" float", 1)[0]  # matrices of another dtype have their own stack, named "m x n float64"
            return PartitionSpec(*_stack_axes(leaf.shape, mesh, stack, stacked.get(stack, [])))
        # Parameter names may occur elsewhere in the path: the leaf's own parameter ends last and is the longest to end there.
        end, _, parameter = max(((_match_end(part, words), len(part), part) for part in known), default=(0, 0, ()))
        if not end:
            return PartitionSpec()
        shape, spec = known[parameter]
        whole = spec + (None,) * (len(shape) - len(spec))
        if len(leaf.shape) > len(shape):
            return PartitionSpec(None, *_leaf_axes(leaf.shape[1:], shape, whole))
        return PartitionSpec(*_leaf_axes(leaf.shape, shape, whole))

    return jax.tree_util.tree_map_with_path(spec_of, jax.eval_shape(tx.init, params))


def _path_words(path: Any) -> tuple[str, ...]:
    return tuple(path_name((key,)) for key in path)


def _match_end(part: tuple[str, ...], words: tuple[str, ...]) -> int:
    """The end, counted from 1, of the last occurrence of a parameter's path in the path of a state leaf; 0 without one."""
    ends = (i + len(part) + 1 for i in range(len(words) - len(part) + 1) if words[i : i + len(part)] == part)
    return max(ends, default=0)


def _leaf_axes(shape: tuple[int, ...], of: tuple[int, ...], spec: Axes) -> Axes:
    """The sharding of a state leaf whose axes are a parameter's: neighbours merged, or reduced to length 1."""
    if math.prod(shape) == 1:
        return ()
    groups = _axis_groups(shape, of)
    if groups is None:
        return ()
    axes, first = [], 0
    for size, count in zip(shape, groups, strict=True):
        wide = [spec[i] for i in range(first, first + count) if of[i] > 1]
        whole = size > 1 and not any(wide[1:])  # only the slowest of merged axes can stay sharded
        axes.append(wide[0] if wide and whole else None)
        first += count
    return tuple(axes)


def _axis_groups(shape: tuple[int, ...], of: tuple[int, ...]) -> tuple[int, ...] | None:
    """How many neighbouring axes of `of` each axis of `shape` merges; None if it does not come from `of` in this way."""
    if not shape:
        return None if of else ()
    for count in range(len(of) + 1):
        if shape[0] in (1, math.prod(of[:count])):
            rest = _axis_groups(shape[1:], of[count:])
            if rest is not None:
                return (count, *rest)
    return None


def _stack_axes(shape: tuple[int, ...], mesh: Mesh | AbstractMesh, stack: str, ends: list[Axes]) -> Axes:
    """The sharding of a state leaf of the stack "m x n": the stack first, then the sides as all its parameters have them.

    A leaf may have the sides in either order; `ends` holds the sharding of each parameter's last two axes.
    """
    taken = dividing(shape[0], mesh)
    common = ends[0] if len(set(ends)) == 1 else (None, None)
    sides = list(zip(map(int, stack.split(" x ")), common, strict=True))
    in_order = any(size == side for size, (side, _) in zip(shape[1:], sides, strict=False))

    def side_axis(size: int, side: int, axis: Any) -> Any:
        names = set(() if axis is None else _tuple(axis))
        # A mesh axis splits one axis of an array only, and the stack has the first choice.
        return axis if size == side and not names & set(taken) and size % math.prod(mesh.shape[a] for a in names) == 0 else None

    left = [side_axis(size, *end) for size, end in zip(shape[1:], sides if in_order else sides[::-1], strict=False)]
    return (taken or None, *left, *(None,) * (len(shape) - 1 - len(left)))


def _tuple(axis: Any) -> tuple[str, ...]:
    return axis if isinstance(axis, tuple) else (axis,)

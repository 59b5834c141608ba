"""How an optimizer's state lies on a mesh, told before any array exists."""

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


Axes = tuple[Any, ...]  # one entry an axis: None, a mesh axis, or several


def state_partition_specs(tx: Any, params: PyTree, param_specs: PyTree, *, mesh: Mesh | AbstractMesh | None = None) -> PyTree:
    """The PartitionSpecs of `tx.init(params)`, for `jit` and for checkpoints; of any transform, chained or routed.

    A state leaf that lies in the tree where a parameter does, and has its axes, merged or reduced to one as may be, keeps
    their sharding. Matrices that are stacked for their decompositions lie along the stack: as many mesh axes as divide its
    length, so that each device decomposes matrices of its own; mesh axes left over stay where all parameters of
    the stack have them and the side is whole in the state. All else, and what is not floating (counters, keys), is replicated.

    Args:
        tx: the optimizer.
        params: arrays or jax.ShapeDtypeStructs.
        param_specs: a tree like `params` of PartitionSpecs, or of NamedShardings, which name the mesh.
        mesh: needed for stacks where `param_specs` do not name it.

    Raises:
        ValueError: there are stacks, and no mesh is named.

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
    known = {_words(path): (leaf.shape, spec) for (path, leaf), spec in zip(leaves, specs, strict=True)}
    stacked: dict[str, list[Axes]] = {}
    for shape, spec in known.values():
        ends = (*spec, *(None,) * (max(len(shape), 2) - len(spec)))[-2:]
        stacked.setdefault(stack_name(jax.ShapeDtypeStruct(shape, "float32")), []).append(ends)

    def spec_of(path: Any, leaf: Any) -> PartitionSpec:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return PartitionSpec()
        words = _words(path)
        name = next((word for word in words if STACK.fullmatch(word)), None)
        if name is not None:
            if mesh is None:
                raise ValueError("state_partition_specs: matrices are stacked; name the mesh, as in mesh=mesh.")
            stack = name.rsplit(" float", 1)[0]
            return PartitionSpec(*_along_stack(leaf.shape, mesh, stack, stacked.get(stack, [])))
        found = max((_ends(part, words), len(part), part) for part in known) if known else (0,)
        if not found[0]:
            return PartitionSpec()
        shape, spec = known[found[2]]
        return PartitionSpec(*_kept(leaf.shape, shape, spec + (None,) * (len(shape) - len(spec))))

    return jax.tree_util.tree_map_with_path(spec_of, jax.eval_shape(tx.init, params))


def _words(path: Any) -> tuple[str, ...]:
    return tuple(path_name((key,)) for key in path)


def _ends(part: tuple[str, ...], words: tuple[str, ...]) -> int:
    """Where the last occurrence of a parameter's path within a path ends, counted from 1; 0 where there is none."""
    ends = (i + len(part) + 1 for i in range(len(words) - len(part) + 1) if words[i : i + len(part)] == part)
    return max(ends, default=0)


def _kept(shape: tuple[int, ...], of: tuple[int, ...], spec: Axes) -> Axes:
    """The sharding of a leaf whose axes are those of a parameter, neighbours merged, or reduced to 1."""
    if math.prod(shape) == 1:
        return ()
    groups = _grouped(shape, of)
    if groups is None:
        return ()
    kept, first = [], 0
    for size, count in zip(shape, groups, strict=True):
        wide = [spec[i] for i in range(first, first + count) if of[i] > 1]
        whole = size > 1 and not any(wide[1:])  # only the slowest of merged axes can stay sharded
        kept.append(wide[0] if wide and whole else None)
        first += count
    return tuple(kept)


def _grouped(shape: tuple[int, ...], of: tuple[int, ...]) -> tuple[int, ...] | None:
    """How many neighbouring axes of `of` make up each axis of `shape`; None where they do not."""
    if not shape:
        return None if of else ()
    for count in range(len(of) + 1):
        if shape[0] in (1, math.prod(of[:count])):
            rest = _grouped(shape[1:], of[count:])
            if rest is not None:
                return (count, *rest)
    return None


def _along_stack(shape: tuple[int, ...], mesh: Mesh | AbstractMesh, stack: str, ends: list[Axes]) -> Axes:
    """Of what is kept of matrices "m x n": the stack first, then sides as all `ends` have them, in either order."""
    taken = dividing(shape[0], mesh)
    common = ends[0] if len(set(ends)) == 1 else (None, None)
    sides = list(zip(map(int, stack.split(" x ")), common, strict=True))
    straight = any(size == side for size, (side, _) in zip(shape[1:], sides, strict=False))

    def kept(size: int, side: int, axis: Any) -> Any:
        names = set(() if axis is None else _tuple(axis))
        return axis if size == side and not names & set(taken) and size % math.prod(mesh.shape[a] for a in names) == 0 else None

    left = [kept(size, *end) for size, end in zip(shape[1:], sides if straight else sides[::-1], strict=False)]
    return (taken or None, *left, *(None,) * (len(shape) - 1 - len(left)))


def _tuple(axis: Any) -> tuple[str, ...]:
    return axis if isinstance(axis, tuple) else (axis,)

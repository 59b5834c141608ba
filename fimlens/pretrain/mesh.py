"""One mesh of three axes under `jit`: data, fsdp and tensor; and where weights, optimizer state and batches lie on it."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from fimlens.transforms.sharding import state_partition_specs

AXES = ("data", "fsdp", "tensor")


def mesh_of(sizes: dict[str, int] | None = None) -> Mesh:
    """All devices, of all hosts, in a grid; axes that are not named have size 1, and by default all lie along data.

    Raises:
        ValueError: an axis is none of ours, or the sizes do not multiply to the number of devices.
    """
    count = jax.device_count()
    sizes = {"data": count} if sizes is None else sizes
    wrong = sorted(set(sizes) - set(AXES))
    if wrong or math.prod(sizes.values()) != count:
        raise ValueError(
            f"pretrain: a mesh has the axes {', '.join(AXES)}, whose sizes multiply to the {count} devices there are; got "
            f"{', '.join(f'{name}={size}' for name, size in sizes.items())}."
        )
    return jax.make_mesh([sizes.get(name, 1) for name in AXES], AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))


def weight_shardings(mesh: Mesh, weights: PyTree) -> PyTree:
    """Inputs of a matrix along fsdp and outputs along tensor, where those divide them; all else on every device."""

    def sharding(leaf: Any) -> NamedSharding:
        if leaf.ndim < 2:
            return NamedSharding(mesh, PartitionSpec())
        last = [name if side % mesh.shape[name] == 0 else None for name, side in zip(AXES[1:], leaf.shape[-2:], strict=True)]
        return NamedSharding(mesh, PartitionSpec(*[None] * (leaf.ndim - 2), *last))

    return jax.tree.map(sharding, weights)


def state_shardings(mesh: Mesh, tx: Any, weights: PyTree) -> PyTree:
    """Where the optimizer's state lies, beside the weights that it is of."""
    specs = state_partition_specs(tx, weights, jax.tree.map(lambda s: s.spec, weight_shardings(mesh, weights)), mesh=mesh)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, PartitionSpec))


def batch_sharding(mesh: Mesh, axes: int = 2) -> NamedSharding:
    """Rows along data and fsdp; `axes` counts the axes of the array, rows the last but one."""
    return NamedSharding(mesh, PartitionSpec(*[None] * (axes - 2), AXES[:2], None))


def lanes(mesh: Mesh) -> int:
    """How many parts a batch's rows lie in."""
    return math.prod(mesh.shape[name] for name in AXES[:2])


def on_mesh(mesh: Mesh, shape: tuple[int, ...], part: Callable[[tuple[slice, ...]], np.ndarray]) -> jax.Array:
    """One array over all hosts, rows lying as `batch_sharding` says, of which each host makes the parts that it holds."""
    return jax.make_array_from_callback(shape, batch_sharding(mesh, len(shape)), part)

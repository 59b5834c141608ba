"""The mesh of a training and the placement of weights, optimizer state and batches on it.

The mesh has three axes. Rows of a batch are split over `data` and `fsdp`, matrices over `fsdp` and `tensor`. `jax.jit` inserts
the communication that these placements imply, so that the step is written as for one device.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from fimlens.transforms.sharding import state_partition_specs

AXES = ("data", "fsdp", "tensor")


def make_mesh(sizes: dict[str, int] | None = None) -> Mesh:
    """Arrange all devices of all hosts in a mesh.

    Args:
        sizes: the size of each axis, by its name; an axis that is not named has size 1. By default all devices lie along data.

    Raises:
        ValueError: an axis is not in AXES, or the sizes do not multiply to the number of devices.
    """
    count = jax.device_count()
    sizes = {"data": count} if sizes is None else sizes
    wrong = sorted(set(sizes) - set(AXES))
    if wrong or math.prod(sizes.values()) != count:
        raise ValueError(
            f"make_mesh: a mesh has the axes {', '.join(AXES)}, whose sizes multiply to the {count} devices there are; got "
            f"{', '.join(f'{name}={size}' for name, size in sizes.items())}."
        )
    return jax.make_mesh([sizes.get(name, 1) for name in AXES], AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))


def weight_shardings(mesh: Mesh, weights: PyTree) -> PyTree:
    """Place the weights: inputs of a matrix along fsdp, outputs along tensor. Vectors are copied to every device.

    A side that its axis does not divide is not split.
    """

    def sharding(leaf: Any) -> NamedSharding:
        if leaf.ndim < 2:
            return NamedSharding(mesh, PartitionSpec())
        last = [name if side % mesh.shape[name] == 0 else None for name, side in zip(AXES[1:], leaf.shape[-2:], strict=True)]
        return NamedSharding(mesh, PartitionSpec(*[None] * (leaf.ndim - 2), *last))

    return jax.tree.map(sharding, weights)


def state_shardings(mesh: Mesh, tx: Any, weights: PyTree) -> PyTree:
    """Place the state of an optimizer beside the weights that each part of it belongs to."""
    specs = state_partition_specs(tx, weights, jax.tree.map(lambda s: s.spec, weight_shardings(mesh, weights)), mesh=mesh)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, PartitionSpec))


def batch_sharding(mesh: Mesh, before: int = 0) -> NamedSharding:
    """Place a batch: rows along data and fsdp together. `before` is the number of axes before that of the rows."""
    return NamedSharding(mesh, PartitionSpec(*[None] * before, AXES[:2]))


def row_shards(mesh: Mesh) -> int:
    """Return into how many parts a mesh splits the rows of a batch."""
    return math.prod(mesh.shape[name] for name in AXES[:2])


def array_of_rows(
    mesh: Mesh, shape: tuple[int, ...], read: Callable[[tuple[slice, ...]], np.ndarray], *, before: int = 0
) -> jax.Array:
    """Make one array over all hosts, placed by `batch_sharding`, of which each host reads only the rows that it holds.

    Args:
        mesh: the mesh.
        shape: the shape of the whole array.
        read: maps the indices of a part to the part.
        before: the number of axes before that of the rows.
    """
    return jax.make_array_from_callback(shape, batch_sharding(mesh, before), read)

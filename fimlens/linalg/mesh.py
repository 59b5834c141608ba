"""The axes of a device mesh that a stack of matrices is sharded along."""

import math

from jax.sharding import AbstractMesh, Mesh


def dividing(length: int, mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    """Return the axes of a mesh, longest first, whose sizes together divide a length: as many as fit."""
    taken: list[str] = []  # greedily: an axis that does not divide what is left is skipped
    for axis, size in sorted(mesh.shape.items(), key=lambda item: -item[1]):
        if size > 1 and length % (size * math.prod(mesh.shape[a] for a in taken)) == 0:
            taken.append(axis)
    return tuple(taken)

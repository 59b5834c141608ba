"""What of a mesh matters to stacked matrices: the axes that a stack lies along."""

import math

from jax.sharding import AbstractMesh, Mesh


def dividing(length: int, mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    """As many axes of a mesh, the longest first, as divide a length."""
    taken: list[str] = []
    for axis, size in sorted(mesh.shape.items(), key=lambda item: -item[1]):
        if size > 1 and length % (size * math.prod(mesh.shape[a] for a in taken)) == 0:
            taken.append(axis)
    return tuple(taken)

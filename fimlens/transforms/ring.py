"""A ring: the last gradients of every matrix, kept in a state."""

from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from fimlens._validate import path_name
from fimlens.transforms.dtypes import narrowed
from fimlens.transforms.evidence import words_of
from fimlens.transforms.readings import is_read
from fimlens.transforms.routing import leaf_views

Ring = PyTree  # of arrays (size, *stack, m, n) like the parameters, without leaves where these are no matrices


def empty_ring(axes: Any, params: PyTree, size: int) -> Ring:
    """Room for `size` gradients of each matrix, where the parameters are."""
    # Zeros of one matrix are repeated, as those of a repeated matrix would take the memory of the ring twice.
    return jax.tree.map(lambda W: jnp.broadcast_to(jnp.zeros_like(W), (size, *W.shape)), _matrices(axes, params, params))


def record(axes: Any, ring: Ring, params: PyTree, gradients: PyTree, step: Int[Array, ""]) -> Ring:
    """Put the gradients of a step in the place of the oldest."""
    kept, treedef = jax.tree.flatten(ring)
    found = jax.tree.leaves(_matrices(axes, params, gradients)) if kept else []
    # By leaves, as `init` sees the boxes of Flax and `update` may not.
    return treedef.unflatten(
        jax.lax.dynamic_update_index_in_dim(old, narrowed(G, old), step % len(old), 0)
        for old, G in zip(kept, found, strict=True)
    )


def in_order(ring: Ring, steps: int) -> dict[str, Float[Array, "N m n"]]:
    """The gradients by the name of each matrix, the oldest first, after that many steps."""
    found = {}
    for path, kept in jax.tree_util.tree_leaves_with_path(ring):
        ordered = jnp.roll(kept, -steps % len(kept), axis=0)[max(0, len(kept) - steps) :]
        for index in product(*map(range, kept.shape[1:-2])):
            found["/".join([*words_of(path), *map(str, index)])] = ordered[(slice(None), *index)]
    return found


def _matrices(axes: Any, params: PyTree, tree: PyTree) -> PyTree:
    """The leaves of `tree` that are matrices, as such; None in place of the others."""
    views = leaf_views("monitor", None, False, axes)(params)

    def matrix(path: Any, W: Array, x: Array) -> Float[Array, "*stack m n"] | None:
        view = views[path_name(path)]
        return view.to_matrix(jnp.asarray(x)) if view is not None and is_read(W) else None

    return jax.tree_util.tree_map_with_path(matrix, params, tree)

"""A ring: the last gradients of every matrix, kept in a state."""

from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from fimlens._validate import path_name
from fimlens.transforms.evidence import words_of
from fimlens.transforms.routing import leaf_views

Ring = dict[str, Float[Array, "size *stack m n"]]  # by the name of the leaf


def empty_ring(axes: Any, params: PyTree, size: int) -> Ring:
    """Room for `size` gradients of each matrix, where the parameters are."""
    matrices = _matrices(axes, params, params)
    return {name: jnp.zeros_like(jnp.broadcast_to(W, (size, *W.shape))) for name, W in matrices.items()}


def record(axes: Any, ring: Ring, params: PyTree, gradients: PyTree, step: Int[Array, ""]) -> Ring:
    """Put the gradients of a step in the place of the oldest."""
    found = _matrices(axes, params, gradients) if ring else {}

    def put(kept: Array, G: Array) -> Array:
        return jax.lax.dynamic_update_index_in_dim(kept, G.astype(kept.dtype), step % len(kept), 0)

    return {name: put(kept, found[name]) for name, kept in ring.items()}


def in_order(ring: Ring, steps: int) -> dict[str, Float[Array, "N m n"]]:
    """The gradients by the name of each matrix, the oldest first, after that many steps."""
    found = {}
    for name, kept in ring.items():
        ordered = jnp.roll(kept, -steps % len(kept), axis=0)[-min(steps, len(kept)) :] if steps else kept[:0]
        for index in product(*map(range, kept.shape[1:-2])):
            found["/".join([name, *map(str, index)])] = ordered[(slice(None), *index)]
    return found


def _matrices(axes: Any, params: PyTree, tree: PyTree) -> dict[str, Float[Array, "*stack m n"]]:
    """The leaves of `tree` that are matrices, as such, by name."""
    views = leaf_views("monitor", None, False, axes)(params)
    found = {}
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        view = views[path_name(path)]
        if view is not None and jnp.size(x) and jnp.issubdtype(jnp.result_type(x), jnp.floating):
            found["/".join(words_of(path))] = view.to_matrix(jnp.asarray(x))
    return found

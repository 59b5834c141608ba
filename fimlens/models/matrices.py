"""Which matrices a tree of parameters holds, by name, and how gradients of its leaves become theirs."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from fimlens._validate import names_like, path_name, require_own_names
from fimlens.transforms.as_matrix import LeafView
from fimlens.transforms.axes import Axes
from fimlens.transforms.leaf_rules import Rule
from fimlens.transforms.routing import leaf_views

Matrices = dict[str, Array]  # by name: a leaf's path and, in a stack, the matrix's place, as in "layers/w/0"


class Selection(NamedTuple):
    """The chosen leaves by path, all other arrays by path, and two functions.

    `merge` puts leaves of both kinds back among the parameters. `take_apart` takes gradients of the chosen leaves apart into
    those of the chosen matrices.

    Programs take both kinds as arguments: arrays that a program holds as constants are copied and folded when it is compiled.
    """

    leaves: Matrices
    others: Matrices
    merge: Callable[[Matrices], PyTree]
    take_apart: Callable[[Matrices], Matrices]


def select_matrices(
    call: str,
    params: PyTree,
    patterns: Sequence[str],
    route: Rule | str | PyTree | None = None,
    axes: Axes | Rule | PyTree | None = None,
) -> Selection:
    """Choose the matrices that patterns name, by their own names or by the paths of their leaves.

    Leaves that are no arrays of floating point, such as the functions of an Equinox module, are passed by.
    """
    if not jax.tree.leaves(params):
        raise ValueError(f"{call}: the parameters are an empty pytree. Pass the model's parameters.")
    patterns = (patterns,) if isinstance(patterns, str) else patterns
    if not patterns:
        raise ValueError(f"{call}: matrices is empty. Name some, or leave it out for all.")
    arrays = jax.tree.map(lambda leaf: leaf if _is_floating(leaf) else None, params)
    fate = "Until then there is no Fisher of them."
    views = leaf_views(call, "" if route is None else route, True, axes, fate)(arrays, warn=True)
    leaves = [(path_name(path), jnp.asarray(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)]
    places = [(name, path) for path, _ in leaves for name in (_names(path, views[path]) if views[path] else (path,))]
    require_own_names(call, (name for name, _ in places))
    found = {name: path for name, path in places if views[path]}
    if not found:
        shapes = [leaf.shape for _, leaf in leaves]
        raise ValueError(f"{call}: no parameter is a matrix (two axes or more, floating); the shapes are {shapes}.")
    named: set[str] = set()
    for pattern in patterns:
        like = set(names_like([*found, *found.values()], pattern))
        matching = [name for name, path in found.items() if {name, path} & like]
        if not matching:
            raise ValueError(f"{call}: no matrix is named {pattern!r}. The matrices are {', '.join(found)}.")
        named.update(matching)
    chosen = {path: leaf for path, leaf in leaves if any(path == found[name] for name in named)}
    every = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    others = {path: x for path, x in every.items() if path not in chosen and isinstance(x, jax.Array | np.ndarray)}

    def merge(changed: Matrices) -> PyTree:
        return jax.tree_util.tree_map_with_path(lambda path, leaf: changed.get(path_name(path), leaf), params)

    def take_apart(gradients: Matrices) -> Matrices:
        parts: Matrices = {}
        for path, gradient in gradients.items():
            matrices = views[path].to_matrix(gradient)
            stack = matrices.reshape(-1, *matrices.shape[-2:])
            parts |= {name: G for name, G in zip(_names(path, views[path]), stack, strict=True) if name in named}
        return parts

    return Selection(chosen, others, merge, take_apart)


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.floating)


def _names(path: str, view: LeafView) -> list[str]:
    """The names of the matrices in a leaf: its path, followed in a stack by the place of each."""
    return ["/".join([path, *map(str, place)]) for place in np.ndindex(view.matrix[:-2])]

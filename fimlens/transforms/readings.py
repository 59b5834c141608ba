"""All readings of one step, by matrix: from a gradient, an update and weights, and from the bases in a state."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import chain, product
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree

from fimlens._validate import path_name
from fimlens.transforms.as_matrix import LeafView, Views
from fimlens.transforms.evidence import words_of
from fimlens.transforms.measures import cosine, gram, off_diagonal, outside, ratio, rms, size, stable_rank
from fimlens.transforms.norms import at_least_float32
from fimlens.transforms.routing import leaf_views
from fimlens.transforms.stacked_bases import Place, Sides
from fimlens.transforms.stacking import Matrices, Stack, sides

# For each reading, names as the keys of a dict without leaves, and their values in the order of the sorted names.
Readings = dict[str, tuple[dict[str, tuple[()]], Float[Array, " k"]]]
Entry = tuple[str, list[str], Array]  # a reading, the names of matrices, and its value for each


class Given(NamedTuple):
    """What a step has to measure: three trees of one layout, and for each state with bases its stacks (`stacks_with_bases`)."""

    gradients: PyTree
    updates: PyTree
    params: PyTree
    bases: list[dict[str, Sides]]


def all_readings(axes: Any, places: tuple[Place, ...], given: Given) -> Readings:
    """The readings that `fl.monitor` describes; `places` are those of the optimizer's bases, by `places_in_stacks`."""
    found: dict[str, dict[str, Array]] = defaultdict(dict)
    with jax.default_matmul_precision("highest"):
        views = leaf_views("monitor", None, False, axes)(given.params)
        for reading, names, values in [*_of_leaves(views, given), *_of_bases(views, places, given)]:
            values = values.reshape(len(names)).astype(jnp.float32)
            # Of chained transforms with bases, the first sees the gradient.
            found[reading] = dict(zip(names, values, strict=True)) | found[reading]
    return {reading: _in_order(of) for reading, of in found.items()}


def is_read(weights: ArrayLike) -> bool:
    """Whether a leaf has readings: by its weights, as `init` sees no gradients, whose dtype may be another."""
    return bool(jnp.size(weights)) and jnp.issubdtype(jnp.result_type(weights), jnp.floating)


def _in_order(values: dict[str, Array]) -> tuple[dict[str, tuple[()]], Array]:
    names = sorted(values)
    return dict.fromkeys(names, ()), jnp.stack([values[name] for name in names])


def _of_leaves(views: Views, given: Given) -> Iterator[Entry]:
    """The readings of every leaf, and the stable ranks of matrices."""
    grams: dict[int, list[tuple[list[str], Array]]] = defaultdict(list)
    gradients = jax.tree_util.tree_leaves_with_path(given.gradients)
    for (path, G), U, W in zip(gradients, jax.tree.leaves(given.updates), jax.tree.leaves(given.params), strict=True):
        if not is_read(W):
            continue
        view = views[path_name(path)]
        G, U, W = (_as_matrices(x, view) for x in (G, U, W))
        names = _names(path, () if view is None else G.shape[:-2])
        within = tuple(range(G.ndim)) if view is None else (-2, -1)  # what is no matrix has one reading for the whole leaf
        yield "update_rms", names, rms(U, within)
        yield "relative_update", names, ratio(size(U, within), size(W, within))
        yield "cosine", names, cosine(U, G, within)
        if view is not None:
            A = gram(G)
            grams[A.shape[-1]].append((names, A.reshape(-1, *A.shape[-2:])))
    for group in grams.values():  # all matrices of one shorter side at once
        names, stacks = zip(*group, strict=True)
        yield "stable_rank", list(chain(*names)), stable_rank(jnp.concatenate(stacks))


def _as_matrices(x: ArrayLike, view: LeafView | None) -> Matrices:
    x = at_least_float32(x)
    if view is not None:
        return view.to_matrix(x)
    return x if x.ndim > 1 else x.reshape(-1, 1)


def _of_bases(views: Views, places: tuple[Place, ...], given: Given) -> Iterator[Entry]:
    """The readings of matrices whose bases are in a state."""
    gradients = {path_name(path): (path, G) for path, G in jax.tree_util.tree_leaves_with_path(given.gradients)}
    for place in places:
        if 0 in place.shape:
            continue
        path, G = gradients[place.path]
        names, G = _names(path, place.shape[:-2]), _as_seen(G, views[place.path], place.shape)
        kept = given.bases[place.state].get(place.stack)
        if G is None or kept is None or 1 in sides(place.shape):
            continue
        left, right = jax.tree.map(itemgetter(slice(place.first, place.first + len(names))), kept)
        projected = outside(G, left, right)
        if projected is not None:
            yield "outside", names, projected
        if left:
            yield "staleness_left", names, off_diagonal(G, left)
        if right:
            yield "staleness_right", names, off_diagonal(G.mT, right)


def _as_seen(G: ArrayLike, view: LeafView | None, shape: tuple[int, ...]) -> Stack | None:
    """The matrices of a leaf as a transform sees them, in this shape; None if the view of the leaf is another one."""
    if jnp.shape(G) != shape:
        G = view.to_matrix(G) if view is not None and view.matrix == shape else None
    return None if G is None else at_least_float32(G).reshape(-1, *sides(shape))


def _names(path: Any, leading: tuple[int, ...]) -> list[str]:
    """A name for each matrix of a leaf: its path, and its index along the leading axes."""
    words = words_of(path)  # without what Flax's boxes add, as `init` sees boxes and `update` none
    return ["/".join([*words, *map(str, index)]) for index in product(*map(range, leading))]

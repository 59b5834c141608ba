"""The optimizer of `Corner`, low-rank SOAP: with A = U^T G, B = G V, X = U^T G V and D what the inner structure makes of X,

    update = c G + U ((a - c) A + (D - (a + b - c) X) V^T) + ((b - c) B) V^T

where a (one a row of A), b (one a column of B) and c are the inverse roots of the tied eigenvalues. No rest is formed: squares
are differences, ||A_i||^2 - ||X_i||^2 and so on.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from fimlens._validate import require_real
from fimlens.linalg.bases import above_rounding
from fimlens.linalg.spectral_functions import inverse_root
from fimlens.structure import Tree
from fimlens.structures.corner import Corner, Parts
from fimlens.structures.subspaces import SubspaceTracker
from fimlens.transforms.dtypes import StateDtypes, state_dtypes
from fimlens.transforms.norms import growth_limit
from fimlens.transforms.stacked_subspaces import Stack, Subspaces, require_options
from fimlens.transforms.stacking import clip_for_squaring, clip_squares, unview, views
from fimlens.transforms.state import StructureState, refreshed_if_due, require_state
from fimlens.transforms.structure_transform import scale_by_structure


class CornerState(NamedTuple):
    """The state of `scale_by_corner`: dicts with one entry per matrix shape, whose matrices are stacked.

    `subspaces` is what the tracker keeps of the left and of the right side, `inner` the state of the inner structure's
    transform over the corners, `tied` the averages of the other parts, `norms` those of the limiter.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> state = fl.scale_by_corner(fl.Corner(2), fl.SubspaceIteration(leading=1)).init(jnp.ones((3, 4)))
        >>> state.inner.momentum["3 x 4"].shape  # of the corner
        (1, 2, 2)
        >>> [part.shape for part in state.tied["3 x 4"][1:]]  # rows, columns, tail
        [(1, 2, 1), (1, 1, 2), (1, 1, 1)]
    """

    count: Int[Array, ""]
    key: Array
    subspaces: dict[str, tuple[Tree, Tree]]
    inner: StructureState
    tied: dict[str, Parts]
    norms: dict[str, Array | None]


def scale_by_corner(
    structure: Corner,
    tracker: SubspaceTracker,
    *,
    b1: Float[ArrayLike, ""] = 0.9,
    b2: Float[ArrayLike, ""] = 0.9,
    b_tied: Float[ArrayLike, ""] | None = None,
    alpha_c: Float[ArrayLike, ""] = 0.4,
    gamma: Float[ArrayLike, ""] | None = 1.01,
    eps: Float[ArrayLike, ""] = 1e-8,
    update_interval: Int[ArrayLike, ""] | None = 200,
    moments: str = "keep",
    bias_correction: bool = False,
    dtypes: StateDtypes | DTypeLike | None = None,
    seed: Int[ArrayLike, ""] = 0,
) -> optax.GradientTransformation:
    """Scale each matrix by the inverse root of a `Corner`: momentum in the corner alone, compensation outside it.

    The tracker follows both sides, G for the left and G^T for the right. Arguments are those of `scale_by_low_rank`; "reset"
    spares the tail's average, which is of no basis;
    `b_tied` is the decay of the tied numbers, b1 by default, alpha_c and gamma are of all three tied parts together.

    Raises:
        TypeError: the first arguments are not a Corner and a tracker, or (at init) a parameter is not of real floating point.
        ValueError: an option is out of its range.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> tx = fl.scale_by_corner(fl.Corner(2), fl.SubspaceIteration(leading=1))
        >>> [side.basis.shape for side in tx.init({"w": jnp.ones((3, 4))}).subspaces["3 x 4"]]
        [(1, 3, 2), (1, 4, 2)]
    """
    if not isinstance(structure, Corner):
        raise TypeError(f"scale_by_corner: expected a fl.Corner first; got {structure!r}.")
    b_tied = b1 if b_tied is None else b_tied
    require_options("scale_by_corner", tracker, moments, update_interval, b_tied, alpha_c, gamma, eps)
    dtypes = state_dtypes(dtypes)
    inner = scale_by_structure(
        structure.inner,
        b1=b1,
        b2=b2,
        eps=eps,
        update_interval=update_interval,
        bias_correction=bias_correction,
        dtypes=dtypes,
        seed=seed,
    )
    subspaces_of = Subspaces(tracker, moments, dtypes.basis)

    def ranks(G: Stack) -> tuple[int, int]:
        return tuple(min(side, structure.rank) for side in G.shape[1:])

    def sides(G: Stack) -> tuple[Array, Array]:
        return G, G.mT

    def counts(G: Stack) -> tuple[int, int, int]:
        (_, m, n), (r1, r2) = G.shape, ranks(G)
        return n - r2, m - r1, (m - r1) * (n - r2)

    def init(params: PyTree) -> CornerState:
        require_real("scale_by_corner", params)
        subspaces, tied, norms, corners = {}, {}, {}, {}
        for name, G in views(params, stacked=True).items():
            k, (r1, r2) = len(G), ranks(G)
            subspaces[name] = tuple(map(subspaces_of.zero_state, sides(G), ranks(G)))
            corners[name] = jnp.zeros((k, r1, r2), G.dtype)
            shapes = zip(((k, r1, 1), (k, 1, r2), (k, 1, 1)), counts(G), strict=True)
            numbers = [jnp.zeros(shape, dtypes.second_moment or G.dtype) if count else None for shape, count in shapes]
            tied[name] = Parts(None, *numbers)
            norms[name] = None if gamma is None else jnp.zeros((k, 1, 1), G.dtype)
        count = jnp.zeros([], jnp.int32)
        return CornerState(count, jax.random.PRNGKey(seed), subspaces, inner.init(corners), tied, norms)

    def refreshed(state: CornerState, stacks: dict[str, Array], how: Any) -> tuple[dict, StructureState, dict]:
        keys = jax.random.split(jax.random.fold_in(state.key, state.count), max(len(stacks), 1))
        subspaces, tied, turns = {}, dict(state.tied), ({}, {})
        for key, (name, G) in zip(keys, stacks.items(), strict=False):
            of_sides = zip(state.subspaces[name], sides(clip_for_squaring(G)), ranks(G), jax.random.split(key), strict=True)
            moved = [subspaces_of.refreshed(how, old, seen, r, own) for old, seen, r, own in of_sides]
            subspaces[name], (L, R) = tuple(kept for kept, _ in moved), (T for _, T in moved)
            turns[0][name], turns[1][name] = L, R
            if moments == "rotate":
                rows, columns = tied[name].rows, tied[name].columns
                rows = None if rows is None else (L**2 @ rows.astype(G.dtype)).astype(rows.dtype)
                columns = None if columns is None else (columns.astype(G.dtype) @ (R**2).mT).astype(columns.dtype)
                tied[name] = tied[name]._replace(rows=rows, columns=columns)
            if moments == "reset":  # but for the tail's, whose one number is of no basis
                tied[name] = jax.tree.map(jnp.zeros_like, tied[name])._replace(tail=tied[name].tail)
        corners = {name: jnp.zeros((len(G), *ranks(G)), G.dtype) for name, G in stacks.items()}
        return subspaces, subspaces_of.moved(structure.inner, inner, state.inner, corners, *turns), tied

    def squares(G: Stack, A: Array, B: Array, X: Array) -> tuple[Array, Array, Array]:
        """Of what is left of each row of A, of each column of B, and of G; 0 where that is rounding."""
        rows, columns, total = _squares(A, 2), _squares(B, 1), _squares(G, (1, 2))
        left = (
            (rows - _squares(X, 2), rows),
            (columns - _squares(X, 1), columns),
            (total - _squares(A, (1, 2)) - _squares(B, (1, 2)) + _squares(X, (1, 2)), total),
        )
        return tuple(subspaces_of.remaining(rest, whole) for rest, whole in left)

    def scales(G: Stack, left: tuple, tied: Parts, phi: Array | None, weights: tuple) -> tuple[list, Parts, Array | None]:
        """a, b and c, zero where nothing is left, with the limiter's and alpha_c's factors; and what is kept."""
        kept, found, norm = [], [], 0.0
        for square, count, old, weight in zip(left, counts(G), tied[1:], weights, strict=True):
            now = None if old is None else b_tied * old.astype(G.dtype) + (1 - b_tied) * square / count
            kept.append(None if old is None else now.astype(old.dtype))
            scale = jnp.zeros_like(square) if old is None else inverse_root(0.0)(now / weight.astype(G.dtype))
            found.append(jnp.where(square == 0, square, scale))
            norm = norm + jnp.sum(found[-1] ** 2 * square, (1, 2), keepdims=True)
        eta = jnp.ones([], G.dtype)
        if gamma is not None:
            norm = jnp.sqrt(norm)
            eta = growth_limit(norm, phi.astype(G.dtype), gamma)
            phi = (norm * eta).astype(phi.dtype)
        return [scale * eta * alpha_c for scale in found], Parts(None, *kept), phi

    def update(updates: PyTree, state: CornerState, params: PyTree = None) -> tuple[PyTree, CornerState]:
        del params
        require_state("scale_by_corner", init, updates, state)
        with jax.default_matmul_precision("highest"):
            stacks = views(updates, stacked=True)
            as_it_is = dict(state.subspaces), state.inner, dict(state.tied)
            hows = [lambda how=how: refreshed(state, stacks, how) for how in (tracker.update_basis, tracker.start)]
            subspaces, kept, tied = refreshed_if_due(state.count, update_interval, as_it_is, *hows)
            seen = {}
            for name, G in stacks.items():
                U, V = map(subspaces_of.bases, subspaces[name], sides(G), ranks(G))
                A = above_rounding(clip_for_squaring(U.mT @ G), _squares(G, 1))
                B = above_rounding(clip_for_squaring(G @ V), _squares(G, 2))
                seen[name] = U, V, A, B, above_rounding(A @ V, _squares(A, 2), _squares(B, 1), times=32)
            D, kept = inner.update({name: X for name, (*_, X) in seen.items()}, kept)
            count = optax.safe_increment(state.count)
            rows_and_columns, tail = (jnp.asarray(1 - b_tied**t if bias_correction else 1.0) for t in (kept.count, count))
            weights = rows_and_columns, rows_and_columns, tail  # the inner transform counts from the last reset
            scaled, norms = {}, {}
            for name, G in stacks.items():
                U, V, A, B, X = seen[name]
                (a, b, c), tied[name], norms[name] = scales(G, squares(G, A, B, X), tied[name], state.norms[name], weights)
                rows = (a - c) * A + (D[name] - (a + b - c) * X) @ V.mT
                scaled[name] = c * G + U @ rows + ((b - c) * B) @ V.mT
                subspaces[name] = tuple(map(subspaces_of.followed, subspaces[name], sides(G), (A, B.mT)))
            return unview(scaled, updates, stacked=True), CornerState(count, state.key, subspaces, kept, tied, norms)

    return optax.GradientTransformation(init, update)


def _squares(X: Stack, axis: int | tuple[int, int]) -> Array:
    """||X||^2 of each matrix, or of each of its columns (1) or rows (2)."""
    return clip_squares(jnp.sum(X**2, axis, keepdims=True))

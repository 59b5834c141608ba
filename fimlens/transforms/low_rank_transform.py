"""The optimizers of low rank, as one Optax transform: update = U (D - sigma Diag d) + G Diag d, with sigma = U^T G.

D is what the inner structure makes of sigma, and d what a compensation gives each column; two products of the subspace with
a matrix, and no residual is formed: ||g_j - U U^T g_j||^2 = ||g_j||^2 - ||U^T g_j||^2.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from fimlens._validate import require_real
from fimlens.linalg.bases import above_rounding
from fimlens.structure import Tree
from fimlens.structures.low_rank import LowRank
from fimlens.structures.subspaces import SubspaceTracker
from fimlens.transforms.compensation import Compensation, Seen, nearest
from fimlens.transforms.dtypes import StateDtypes, state_dtypes
from fimlens.transforms.norms import growth_limit
from fimlens.transforms.stacked_subspaces import Stack, Subspaces, require_options
from fimlens.transforms.stacking import clip_for_squaring, clip_squares, unview, views
from fimlens.transforms.state import StructureState, refreshed_if_due, require_state
from fimlens.transforms.structure_transform import scale_by_structure


class LowRankState(NamedTuple):
    """The state of `scale_by_low_rank`: dicts with one entry per matrix shape, named "m x n", whose matrices are stacked.

    `subspaces` is what the tracker keeps, `inner` the state of the inner structure's transform over the leads, `tail` what is
    averaged of the complement, `norms` the norm of the last compensation, which the limiter needs.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> alice = fl.scale_by_low_rank(fl.LowRank(fl.Diagonal(), 2), fl.SubspaceIteration(leading=1))
        >>> state = alice.init([jnp.ones((3, 4)), jnp.ones((3, 4)), jnp.ones((4, 3))])
        >>> {name: kept.basis.shape for name, kept in state.subspaces.items()}  # of the shorter side
        {'3 x 4': (2, 3, 2), '4 x 3': (1, 3, 2)}
        >>> state.inner.momentum["3 x 4"].shape, state.tail["3 x 4"].shape  # of the leads; one number a column
        ((2, 2, 4), (2, 1, 4))
    """

    count: Int[Array, ""]
    key: Array
    subspaces: dict[str, Tree]
    inner: StructureState
    tail: dict[str, Tree]
    norms: dict[str, Array | None]


def scale_by_low_rank(
    structure: LowRank,
    tracker: SubspaceTracker,
    *,
    compensation: Compensation = nearest,
    lift: bool = True,
    b1: Float[ArrayLike, ""] = 0.9,
    b2: Float[ArrayLike, ""] = 0.999,
    b_tail: Float[ArrayLike, ""] | None = None,
    alpha_c: Float[ArrayLike, ""] = 1.0,
    gamma: Float[ArrayLike, ""] | None = 1.01,
    eps: Float[ArrayLike, ""] = 1e-8,
    update_interval: Int[ArrayLike, ""] | None = 200,
    moments: str = "keep",
    bias_correction: bool = True,
    dtypes: StateDtypes | DTypeLike | None = None,
    seed: Int[ArrayLike, ""] = 0,
) -> optax.GradientTransformation:
    """Scale each matrix's lead by the inner structure's inverse root, and each column of the rest by its compensation.

    Matrices of one shape are one stack; one with m > n is transposed at the door. One whose shorter side is at most the rank
    is seen whole, with nothing left to compensate. Columns with less than 1e-5 of their square in the rest (in float64,
    2e-14) get no compensation, and coordinates of the lead at rounding no update.

    Args:
        structure: the family: its inner structure, rank and complement.
        tracker: how the subspace is found and followed.
        compensation: the rule for d; `nearest` is the complement's own, and Theorem 5.1's for Columns(). One that needs no
            average of the tail spares it with Drop().
        lift: whether the update has the lead's. If not it is G Diag d, and the subspace only measures (Apollo).
        b1, b2: decays of the lead's momentum and statistics.
        b_tail: decay of the tail's statistics; b1 by default, as in [G].
        alpha_c, gamma: scale of the compensation, and how much its norm may grow in a step (None: any).
        eps: added to the roots of the lead's eigenvalues.
        update_interval: steps between refreshes, the first at the first step; None for that one alone.
        moments: what becomes of the lead's averages at a refresh: "keep" (as if the basis had not moved), "rotate"
            (into the new basis, by T = U_new^T U_old), or "reset".
        bias_correction: divide all averages by the weight they have gathered.
        dtypes: `fl.StateDtypes` of the stored state, or one dtype for all of it. By default the dtype of the computation.
        seed: of the key that refreshes draw from, kept in the state.

    Raises:
        TypeError: the first arguments are not a LowRank and a tracker, or (at init) a parameter is not of real floating point.
        ValueError: an option is out of its range.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> alice = fl.scale_by_low_rank(fl.LowRank(fl.Diagonal(), 2), fl.SubspaceIteration(leading=1))
        >>> state = alice.init({"w": jnp.ones((3, 4))})
        >>> state.subspaces["3 x 4"].basis.shape
        (1, 3, 2)
    """
    if not isinstance(structure, LowRank):
        raise TypeError(f"scale_by_low_rank: expected a fl.LowRank first; got {structure!r}.")
    b_tail = b1 if b_tail is None else b_tail
    require_options("scale_by_low_rank", tracker, moments, update_interval, b_tail, alpha_c, gamma, eps)
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

    def rank(G: Stack) -> int:
        return min(structure.rank, G.shape[1])

    def tail_moments(G: Stack, left: Float[Array, "k 1 n"]) -> Tree:
        """Means over the complement's dimensions; None where there is none."""
        dimensions = G.shape[1] - rank(G)
        return jax.vmap(structure.complement.moments)(left / dimensions) if dimensions else None

    def init(params: PyTree) -> LowRankState:
        require_real("scale_by_low_rank", params)
        stacks = _lying(views(params, stacked=True))
        subspaces, tails, norms, leads = {}, {}, {}, {}
        for name, G in stacks.items():
            (k, _, n), r = G.shape, rank(G)
            subspaces[name] = subspaces_of.zero_state(G, r)
            leads[name] = jnp.zeros((k, r, n), G.dtype)
            tail = tail_moments(G, jnp.zeros((k, 1, n), G.dtype))
            tails[name] = jax.tree.map(lambda x: x.astype(dtypes.second_moment or x.dtype), tail)
            norms[name] = None if gamma is None else jnp.zeros((k, 1, 1), G.dtype)
        count = jnp.zeros([], jnp.int32)
        return LowRankState(count, jax.random.PRNGKey(seed), subspaces, inner.init(leads), tails, norms)

    def refreshed(state: LowRankState, stacks: dict[str, Array], how: Callable[..., Any]) -> tuple[dict, StructureState]:
        keys = jax.random.split(jax.random.fold_in(state.key, state.count), max(len(stacks), 1))
        subspaces, turns = {}, {}
        for key, (name, G) in zip(keys, stacks.items(), strict=False):
            old = state.subspaces[name]
            subspaces[name], turns[name] = subspaces_of.refreshed(how, old, clip_for_squaring(G), rank(G), key)
        leads = {name: jnp.zeros((len(G), rank(G), G.shape[2]), G.dtype) for name, G in stacks.items()}
        return subspaces, subspaces_of.moved(structure.inner, inner, state.inner, leads, turns)

    def compensated(
        G: Stack, whole: Array, sigma: Array, D: Array, tail: Tree, phi: Array | None, weight: Array
    ) -> tuple[Array | None, Tree, Array | None]:
        """The scale d of each column, and what is kept for the next."""
        left = subspaces_of.remaining(whole - jnp.sum(sigma**2, 1, keepdims=True), whole)
        new = tail_moments(G, left)
        tail = jax.tree.map(lambda old, x: b_tail * old.astype(x.dtype) + (1 - b_tail) * x, tail, new)
        eigenvalue = None
        if new is not None:
            now = jax.tree.map(lambda x: x / weight.astype(x.dtype), tail)
            eigenvalue = jax.vmap(lambda x: structure.complement.expand(structure.complement.project(x), G.shape[1:]))(now)
        d = compensation(Seen(sigma, D, left, eigenvalue))
        if d is None:
            return None, tail, phi
        scaled = left if lift else whole
        d = jnp.where(scaled == 0, scaled, d)
        if gamma is not None:
            norm = jnp.sqrt(jnp.sum(d**2 * scaled, -1, keepdims=True))
            eta = growth_limit(norm, phi.astype(d.dtype), gamma)
            d, phi = d * eta, (norm * eta).astype(phi.dtype)
        return d * alpha_c, tail, phi

    def update(updates: PyTree, state: LowRankState, params: PyTree = None) -> tuple[PyTree, LowRankState]:
        del params
        require_state("scale_by_low_rank", init, updates, state)
        with jax.default_matmul_precision("highest"):
            seen = views(updates, stacked=True)
            stacks = _lying(seen)
            hows = [lambda how=how: refreshed(state, stacks, how) for how in (tracker.update_basis, tracker.start)]
            subspaces, kept = refreshed_if_due(state.count, update_interval, (dict(state.subspaces), state.inner), *hows)
            U = {name: subspaces_of.bases(subspaces[name], G, rank(G)) for name, G in stacks.items()}
            whole = {name: clip_squares(jnp.sum(G**2, 1, keepdims=True)) for name, G in stacks.items()}
            sigma = {name: above_rounding(clip_for_squaring(U[name].mT @ G), whole[name]) for name, G in stacks.items()}
            D, kept = inner.update(sigma, kept)
            count = optax.safe_increment(state.count)
            weight = 1 - b_tail**count if bias_correction else jnp.ones([])
            scaled, tails, norms = {}, {}, {}
            for name, G in stacks.items():
                old, lead = state.tail[name], D[name]
                d, tail, norms[name] = compensated(
                    G, whole[name], sigma[name], lead, old, state.norms[name], jnp.asarray(weight)
                )
                tails[name] = jax.tree.map(lambda x, like: x.astype(like.dtype), tail, old)
                low = U[name] @ (lead if d is None else lead - sigma[name] * d) if lift else 0
                scaled[name] = low if d is None else low + G * d
                subspaces[name] = subspaces_of.followed(subspaces[name], G, sigma[name])
            back = {name: scaled[name].mT if _tall(G) else scaled[name] for name, G in seen.items()}
            return unview(back, updates, stacked=True), LowRankState(count, state.key, subspaces, kept, tails, norms)

    return optax.GradientTransformation(init, update)


def _tall(G: Stack) -> bool:
    return G.shape[1] > G.shape[2]


def _lying(stacks: dict[str, Array]) -> dict[str, Array]:
    """Each stack with the shorter side first."""
    return {name: G.mT if _tall(G) else G for name, G in stacks.items()}

"""Transforms that are not structure: what stands before or after one in an optimizer's chain.

Each takes every matrix by itself: the last two axes of a leaf, leading ones mapped; a vector is one matrix.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from fimlens._require import require_real
from fimlens.basis import unit_of
from fimlens.views import clipped, sides, unview, views

Matrix = Float[Array, "*stack m n"]


class MomentumState(NamedTuple):
    """An exponential average of the updates, and its step."""

    count: Int[Array, ""]
    momentum: PyTree


def average_updates(
    decay: Float[ArrayLike, ""], *, nesterov: bool = False, dtype: DTypeLike | None = None
) -> optax.GradientTransformation:
    """The bias-corrected exponential average of the updates; with `nesterov`, looked at one step ahead.

    As in Optax's Adam and Muon: b m_t / (1 - b^(t+1)) + (1 - b) g_t / (1 - b^t) (Dozat, 2016).
    """

    def init(params: PyTree) -> MomentumState:
        require_real("average_updates", params)
        return MomentumState(jnp.zeros([], jnp.int32), jax.tree.map(lambda x: jnp.zeros_like(x, dtype=dtype), params))

    def update(updates: PyTree, state: MomentumState, params: PyTree = None) -> tuple[PyTree, MomentumState]:
        del params
        count = optax.safe_increment(state.count)
        averaged = optax.tree.update_moment(updates, state.momentum, decay, 1)
        if nesterov:
            ahead, now = (optax.tree.bias_correction(x, decay, t) for x, t in ((averaged, count + 1), (updates, count)))
            moved = optax.tree.update_moment(now, ahead, decay, 1)
        else:
            moved = optax.tree.bias_correction(averaged, decay, count)
        kept = jax.tree.map(lambda old, new: new.astype(old.dtype), state.momentum, averaged)
        return jax.tree.map(lambda u, g: u.astype(g.dtype), moved, updates), MomentumState(count, kept)

    return optax.GradientTransformation(init, update)


class NormGrowthState(NamedTuple):
    """phi: the norm of each matrix's last update."""

    norms: PyTree


def growth_limit(norm: Array, phi: Array, gamma: Float[ArrayLike, ""]) -> Array:
    """eta: what lets a norm grow from phi by a factor of gamma at most; 1 where phi is zero."""
    growth = norm / jnp.where(phi == 0, 1, phi)
    return jnp.where(phi == 0, 1, gamma / jnp.maximum(growth, gamma))


def limit_norm_growth(gamma: Float[ArrayLike, ""] = 1.01) -> optax.GradientTransformation:
    """Let the norm of a matrix's update grow by a factor of at most gamma a step. [G] Algorithm 1, after Fira.

    eta = gamma / max(||U||/phi, gamma) scales U, and phi <- eta ||U||. A matrix whose last update was zero is not
    limited: the print would freeze it for ever.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> tx = fl.limit_norm_growth(gamma=1.25)
        >>> first, state = tx.update(jnp.ones((2, 2)), tx.init(jnp.ones((2, 2))))
        >>> second, state = tx.update(jnp.full((2, 2), 9.0), state)
        >>> print(f"{jnp.linalg.norm(first):.2f} {jnp.linalg.norm(second):.2f}")
        2.00 2.50
    """

    def init(params: PyTree) -> NormGrowthState:
        return NormGrowthState(jax.tree.map(lambda x: jnp.zeros_like(_norm(x)), params))

    def update(updates: PyTree, state: NormGrowthState, params: PyTree = None) -> tuple[PyTree, NormGrowthState]:
        del params

        norms = jax.tree.map(_norm, updates)
        etas = jax.tree.map(lambda norm, phi: growth_limit(norm, phi, gamma), norms, state.norms)
        limited = jax.tree.map(lambda x, e: (x * e).astype(x.dtype), updates, etas)
        kept = jax.tree.map(lambda n, e, phi: (n * e).astype(phi.dtype), norms, etas, state.norms)
        return limited, NormGrowthState(kept)

    return optax.GradientTransformation(init, update)


def scale_by_trust_ratio(coefficient: Float[ArrayLike, ""] = 1.0) -> optax.GradientTransformation:
    """Scale each matrix's update U by coefficient * ||W|| / ||U||, and by 1 where either norm is zero.

    `optax.scale_by_trust_ratio`, matrix by matrix where that takes leaf by leaf. LARS, LAMB (You et al., 2017, 2020).
    """

    def ratio(U: Array, W: ArrayLike) -> Array:
        of_weight, of_update = _norm(W), _norm(U)
        untouched = (of_weight == 0) | (of_update == 0)
        r = jnp.where(untouched, 1, coefficient * of_weight / jnp.where(untouched, 1, of_update))
        return (U * r).astype(U.dtype)

    return optax.stateless(lambda updates, params: jax.tree.map(ratio, updates, _required("scale_by_trust_ratio", params)))


def clip_by_rms(threshold: Float[ArrayLike, ""]) -> optax.GradientTransformation:
    """Scale each matrix's update down to a root mean square of at most `threshold`.

    `optax.clip_by_block_rms`, matrix by matrix where that takes leaf by leaf.
    """

    def within(U: Array) -> Array:
        return (U / jnp.maximum(1, _rms(U) / threshold)).astype(U.dtype)

    return optax.stateless(lambda updates, params: jax.tree.map(within, updates))


def scale_by_weight_rms(least: Float[ArrayLike, ""] = 1e-3) -> optax.GradientTransformation:
    """Scale each matrix's update by the root mean square of its weights, or by `least` where that is more.

    `optax.scale_by_param_block_rms`, matrix by matrix where that takes leaf by leaf.
    """

    def scaled(U: Array, W: ArrayLike) -> Array:
        return (U * jnp.maximum(_rms(W), least)).astype(U.dtype)

    return optax.stateless(lambda updates, params: jax.tree.map(scaled, updates, _required("scale_by_weight_rms", params)))


def standardize_rows(eps: Float[ArrayLike, ""] = 1e-8) -> optax.GradientTransformation:
    """Each row less its mean, over its standard deviation: the first half of SWAN (Ma et al., 2024)."""

    def standardized(G: Array) -> Array:
        x = _wide(jnp.atleast_2d(G))
        x = x / unit_of(x, -1)
        x = x - x.mean(-1, keepdims=True)
        spread = jnp.sqrt(jnp.mean(x**2, -1, keepdims=True)) + eps
        return (x / jnp.where(spread == 0, 1, spread)).astype(G.dtype).reshape(G.shape)

    return optax.stateless(lambda updates, params: jax.tree.map(standardized, updates))


def keeping_dtypes(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Let the state of `tx` keep the dtypes that it starts with, when gradients are of another than the weights."""

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        moved, new = tx.update(updates, state, params)
        return moved, jax.tree.map(lambda old, x: x.astype(old.dtype), state, new)

    return optax.GradientTransformation(tx.init, update)


def guarded_adam(*, nesterov: bool = False) -> optax.GradientTransformation:
    """Optax's Adam in float32 at least, of gradients clipped where their squares would leave it."""
    adam = keeping_dtypes(optax.scale_by_adam(nesterov=nesterov))

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        within = jax.tree.map(lambda G: G if jnp.iscomplexobj(G) else clipped(_wide(G)), updates)
        moved, state = adam.update(within, state, params)
        return jax.tree.map(lambda U, G: U.astype(G.dtype), moved, updates), state

    return optax.GradientTransformation(lambda params: adam.init(jax.tree.map(_wide, params)), update)


def kept_in(tx: optax.GradientTransformation, dtype: DTypeLike) -> optax.GradientTransformation:
    """Keep the state of `tx` in a dtype between steps, and compute in its own.

    All that is as large as a row is: moments, statistics, bases. Counts, norms and sums of weights stay as they are.
    """

    def down(state: PyTree) -> PyTree:
        def kept(x: Array) -> Array:
            large = jnp.issubdtype(x.dtype, jnp.floating) and math.prod(x.shape[-2:]) > 1
            return x.astype(dtype) if large else x

        return jax.tree.map(kept, state)

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        own = jax.eval_shape(tx.init, updates if params is None else params)
        moved, new = tx.update(updates, jax.tree.map(lambda x, like: x.astype(like.dtype), state, own), params)
        return moved, down(new)

    return optax.GradientTransformation(lambda params: down(tx.init(params)), update)


def orthogonalize(steps: Int[ArrayLike, ""] = 5, eps: Float[ArrayLike, ""] = 1e-8) -> optax.GradientTransformation:
    """Each matrix's polar factor U V^T, nearly: a quintic Newton-Schulz iteration takes singular values to 0.7 to 1.2.

    With Jordan's coefficients (2024). Matrices of one shape, transposed or not, are one stack with the shorter side first.
    """
    a, b, c = 3.4445, -4.7750, 2.0315

    def iterate(_: Array, X: Matrix) -> Matrix:
        A = X @ X.mT
        return a * X + (b * A + c * A @ A) @ X

    def factor(G: Matrix) -> Matrix:
        unit = unit_of(G, (-2, -1))
        X = G / unit
        size = _norm(X) + eps / unit
        X = X / jnp.where(size == 0, 1, size)
        return jax.lax.fori_loop(0, steps, iterate, X, unroll=True if isinstance(steps, int) else None)

    def update(updates: PyTree, params: PyTree = None) -> PyTree:
        del params
        with jax.default_matmul_precision("highest"):
            factors = jax.tree.map(factor, views(updates, stacked=True))
        return unview(factors, updates, stacked=True)

    return shorter_side_first(optax.stateless(update))


def shorter_side_first(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Let `tx`, which keeps nothing, see every matrix with its shorter side first."""

    def update(updates: PyTree, params: PyTree) -> PyTree:
        del params
        lying = jax.tree.map(_lying, updates)
        moved, _ = tx.update(lying, tx.init(lying))
        return jax.tree.map(lambda G, U: U.mT if _tall(G) else U, updates, moved)

    return optax.stateless(update)


def scale_by_shape(scale: str = "width") -> optax.GradientTransformation:
    """Make up for the norm of a polar factor, which knows only the shorter side of its (m, n) matrix, x @ W.

    "width": sqrt(max(1, n/m)), as Jordan's and Optax's Muon; "fisher": the root of the longer side, with which the polar
    factor is Mat(F~^{-1/2} Vec(G)) ([G] Proposition 2); "rms": 0.2 times that, near Adam's root mean square (Liu et al., 2025).
    """
    if scale not in ("width", "fisher", "rms"):
        raise ValueError(f'scale_by_shape: scale is "width", "fisher" or "rms"; got {scale!r}')

    def scaled(U: Array) -> Array:
        m, n = (max(1, side) for side in sides(U.shape))
        return U * {"width": max(1, n / m) ** 0.5, "fisher": max(m, n) ** 0.5, "rms": 0.2 * max(m, n) ** 0.5}[scale]

    return optax.stateless(lambda updates, params: jax.tree.map(scaled, updates))


def over_longer_side() -> optax.GradientTransformation:
    """Each matrix over the root of its longer side."""
    return optax.stateless(lambda updates, params: jax.tree.map(lambda U: U / max(1, *sides(U.shape)) ** 0.5, updates))


def _wide(x: Array) -> Array:
    """In float32 at least, as statistics and norms are."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _norm(x: ArrayLike) -> Array:
    """Frobenius norms, of the last two axes, which are kept."""
    x = _wide(jnp.asarray(x))
    return jnp.sqrt(jnp.sum(x**2, axis=(-2, -1) if x.ndim >= 2 else None, keepdims=True))


def _rms(x: ArrayLike) -> Array:
    """Root mean squares, as `_norm`; 0 where there is nothing."""
    return _norm(x) / max(1, math.prod(sides(jnp.shape(x)))) ** 0.5


def _tall(G: Array) -> bool:
    return G.ndim >= 2 and G.shape[-2] > G.shape[-1]


def _lying(G: Array) -> Array:
    return G.mT if _tall(G) else G


def _required(call: str, params: PyTree) -> PyTree:
    if params is None:
        raise ValueError(f"{call}: needs the parameters. Call tx.update(gradients, state, params).")
    return params

"""Transforms that are not structure: what stands before or after one in an optimizer's chain.

Each takes every matrix by itself: the last two axes of a leaf, leading ones mapped; a vector is one matrix.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from fimlens.linalg.bases import unit_of
from fimlens.transforms.stacking import sides

Matrix = Float[Array, "*stack m n"]


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


def _required(call: str, params: PyTree) -> PyTree:
    if params is None:
        raise ValueError(f"{call}: needs the parameters. Call tx.update(gradients, state, params).")
    return params

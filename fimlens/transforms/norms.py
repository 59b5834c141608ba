"""Transforms that surround a structure in an optimizer's chain: they limit, clip or rescale the update of each matrix.

A matrix is the last two axes of a leaf; each index of the leading axes is a matrix of its own, and a vector is one matrix.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from fimlens.linalg.decompositions import unit_of
from fimlens.linalg.spectral_functions import root
from fimlens.transforms.stacking import sides

Matrix = Float[Array, "*stack m n"]


class NormGrowthState(NamedTuple):
    """phi, the norm of each matrix's last update."""

    norms: PyTree


def growth_limit(norm: Array, phi: Array, gamma: Float[ArrayLike, ""]) -> Array:
    """Return eta, the scale factor that limits the norm to gamma times the previous norm phi; 1 when phi is zero."""
    growth = norm / jnp.where(phi == 0, 1, phi)
    return jnp.where(phi == 0, 1, gamma / jnp.maximum(growth, gamma))


def limit_norm_growth(gamma: Float[ArrayLike, ""] = 1.01) -> optax.GradientTransformation:
    """Limit how much the norm of each matrix's update grows in one step. Use it against spikes of the loss.

    The update U is scaled by eta = gamma / max(||U|| / phi, gamma), and then phi <- eta ||U||. [G] Algorithm 1 limits RACS in
    this way, after Fira (Chen et al., 2024). Unlike in [G], a matrix whose last update was zero is not limited: with phi = 0
    the formula would keep its updates at zero for ever.

    Args:
        gamma: largest ratio of one update's norm to the norm of the update before it. Default: 1.01, as in [G] and Fira.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> tx = fl.limit_norm_growth(gamma=1.25)
        >>> first, state = tx.update(jnp.ones((2, 2)), tx.init(jnp.ones((2, 2))))
        >>> second, state = tx.update(jnp.full((2, 2), 9.0), state)
        >>> print(f"{jnp.linalg.norm(first):.2f} {jnp.linalg.norm(second):.2f}")
        2.00 2.50
    """

    def init(params: PyTree) -> NormGrowthState:
        return NormGrowthState(jax.tree.map(lambda x: jnp.zeros_like(matrix_norm(x)), params))

    def update(updates: PyTree, state: NormGrowthState, params: PyTree = None) -> tuple[PyTree, NormGrowthState]:
        del params

        norms = jax.tree.map(matrix_norm, updates)
        etas = jax.tree.map(lambda norm, phi: growth_limit(norm, phi, gamma), norms, state.norms)
        limited = jax.tree.map(lambda x, e: (x * e).astype(x.dtype), updates, etas)
        # phi keeps the dtype that it had in the state; a new dtype would compile the next step again.
        phis = jax.tree.map(lambda n, e, phi: (n * e).astype(phi.dtype), norms, etas, state.norms)
        return limited, NormGrowthState(phis)

    return optax.GradientTransformation(init, update)


def scale_by_trust_ratio(coefficient: Float[ArrayLike, ""] = 1.0) -> optax.GradientTransformation:
    """Scale each matrix's update U by coefficient * ||W|| / ||U||, and by 1 where either norm is zero.

    LARS and LAMB (You et al., 2017, 2020). `optax.scale_by_trust_ratio` takes one ratio for each leaf; this takes one for each
    matrix.
    """

    def ratio(U: Array, W: ArrayLike) -> Array:
        weight_norm, update_norm = matrix_norm(W), matrix_norm(U)
        unscaled = (weight_norm == 0) | (update_norm == 0)
        # The inner `where` keeps 0/0 out of the branch that is not taken: its NaN would reach derivatives.
        r = jnp.where(unscaled, 1, coefficient * weight_norm / jnp.where(unscaled, 1, update_norm))
        return (U * r).astype(U.dtype)

    return optax.stateless(lambda updates, params: jax.tree.map(ratio, updates, _required("scale_by_trust_ratio", params)))


def clip_by_rms(threshold: Float[ArrayLike, ""]) -> optax.GradientTransformation:
    """Scale each matrix's update down to a root mean square of at most `threshold`.

    `optax.clip_by_block_rms` clips each leaf; this clips each matrix.
    """

    def clipped(U: Array) -> Array:
        return (U / jnp.maximum(1, _rms(U) / threshold)).astype(U.dtype)

    return optax.stateless(lambda updates, params: jax.tree.map(clipped, updates))


def scale_by_weight_rms(least: Float[ArrayLike, ""] = 1e-3) -> optax.GradientTransformation:
    """Scale each matrix's update by the root mean square of its weights, or by `least` if that is larger.

    `optax.scale_by_param_block_rms` scales each leaf; this scales each matrix.
    """

    def scaled(U: Array, W: ArrayLike) -> Array:
        return (U * jnp.maximum(_rms(W), least)).astype(U.dtype)

    return optax.stateless(lambda updates, params: jax.tree.map(scaled, updates, _required("scale_by_weight_rms", params)))


def standardize_rows(eps: Float[ArrayLike, ""] = 1e-8) -> optax.GradientTransformation:
    """Subtract from each row its mean and divide it by its standard deviation: the first half of SWAN (Ma et al., 2024)."""

    def standardized(G: Array) -> Array:
        x = at_least_float32(jnp.atleast_2d(G))
        x = x / unit_of(x, -1)  # the squares below stay in range for rows of any scale
        x = x - x.mean(-1, keepdims=True)
        spread = jnp.sqrt(jnp.mean(x**2, -1, keepdims=True)) + eps
        return (x / jnp.where(spread == 0, 1, spread)).astype(G.dtype).reshape(G.shape)

    return optax.stateless(lambda updates, params: jax.tree.map(standardized, updates))


def at_least_float32(x: ArrayLike) -> Array:
    """The array in float32, or in its own dtype if that is wider: statistics and norms are computed so."""
    return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))


def matrix_norm(x: ArrayLike) -> Array:
    """Frobenius norms over the last two axes, which stay with length 1."""
    x = at_least_float32(x)
    return root(jnp.sum(x**2, axis=(-2, -1) if x.ndim >= 2 else None, keepdims=True))


def _rms(x: ArrayLike) -> Array:
    """Root mean squares of the matrices, shaped as `matrix_norm`; 0 for empty ones."""
    return matrix_norm(x) / max(1, math.prod(sides(jnp.shape(x)))) ** 0.5


def _required(call: str, params: PyTree) -> PyTree:
    if params is None:
        raise ValueError(f"{call}: needs the parameters. Call tx.update(gradients, state, params).")
    return params

"""Functions of eigenvalues, applied to coordinates: 1 / (sqrt(x) + eps) and the like."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float

Tree = Any  # a pytree of arrays


def inverse_root(eps: Float[ArrayLike, ""]) -> Callable[[Array], Array]:
    """Return f(x) = 1 / (sqrt(x) + eps), with f(0) = 0 when eps = 0: directions without gradients get no step."""
    return partial(_over_root, eps)


def _over_root(eps: Float[ArrayLike, ""], x: Array) -> Array:
    # Both branches are differentiated: the one that is not taken must not divide by zero, nor take the root of zero, whose
    # derivative is infinite. Negative numbers keep their NaN.
    scale = jnp.where(x == 0, 0, jnp.sqrt(jnp.where(x == 0, 1, x))) + eps
    return jnp.where(scale == 0, 0, 1 / jnp.where(scale == 0, 1, scale))


def scale(f: Callable[[Array], Array], eigenvalues: Tree, X: Tree) -> Tree:
    """Return f(eigenvalues) * X, and zero where an eigenvalue is None.

    The tree of eigenvalues is a prefix of that of X: each array is broadcast over its part of X.
    """

    def scaled(value: Array | None, part: Tree) -> Tree:
        return optax.tree.zeros_like(part) if value is None else optax.tree.scale(f(value), part)

    return jax.tree.map(scaled, eigenvalues, X, is_leaf=lambda value: value is None)


def over_parts(pair: Callable[[Array | None, Array], Any], values: Tree, X: Tree) -> Tree:
    """Map pair(value, x) over the leaves x of X, where `values`, None among them, is a prefix of X."""
    return jax.tree.map(
        lambda value, part: jax.tree.map(partial(pair, value), part), values, X, is_leaf=lambda value: value is None
    )


def root(c: Array) -> Array:
    """Return sqrt(c), with derivative 0 at 0, where the derivative of sqrt is infinite.

    A chart moves a coordinate c as (sqrt(c) + z)^2, whose derivative by z at c = z = 0 is 0 indeed.
    """
    positive = c > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, c, 1)), c * 0)  # c * 0 and not 0: NaN must stay NaN

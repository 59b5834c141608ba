"""Functions of eigenvalues, applied to coordinates: 1 / (sqrt(x) + eps) and its relatives."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

Tree = Any  # a pytree of arrays


def inverse_root(eps: Float[ArrayLike, ""]) -> Callable[[Array], Array]:
    """f(x) = 1 / (sqrt(x) + eps), and 0 where that is 1/0: a direction never seen."""

    def f(x: Array) -> Array:
        scale = jnp.sqrt(x) + eps
        return jnp.where(scale == 0, 0, 1 / jnp.where(scale == 0, 1, scale))

    return f


def scale(f: Callable[[Array], Array], eigenvalues: Tree, X: Tree) -> Tree:
    """f(eigenvalues) * X, an array of eigenvalues over all of its part of X, and zero where it is None."""
    return scale_with(lambda value, x: f(value) * x, eigenvalues, X, outside=jnp.zeros_like)


def scale_with(
    pair: Callable[[Array, Array], Any], eigenvalues: Tree, X: Tree, outside: Callable[[Array], Any] = lambda x: None
) -> Tree:
    """pair(eigenvalue, x) over the leaves of X, whose tree the eigenvalues' tree is a prefix of."""

    def part(value: Array | None, part_of_X: Tree) -> Tree:
        return jax.tree.map(outside if value is None else (lambda x: pair(value, x)), part_of_X)

    return jax.tree.map(part, eigenvalues, X, is_leaf=lambda value: value is None)


def root(c: Array) -> Array:
    """sqrt, with derivative 0 at 0: a coordinate at rest there is held by its square."""
    positive = c > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, c, 1)), c * 0)  # what is not a number stays none

"""What a theorem is about, evaluated on symbols by the shipped functions: fits, errors, slopes, updates."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp
from jaxtyping import Array, Float

from fimlens.fisher.fisher import Fisher, unvec, vec
from fimlens.interpreter.interpret import symbolic
from fimlens.linalg.spectral_functions import inverse_root
from fimlens.proofs.symbols import Symbols, entries_of, frame
from fimlens.structure import Frame, Params, Structure, Tree

Measure = Callable[[Structure, Params, Fisher], Float[Array, ""]]  # of how far a member is


# --- the shipped functions, on them ----------------------------------------------------------------------------


def fitted(structure: Structure, fisher: Fisher, at: Frame | None = None) -> Params:
    """The shipped fit to the shipped statistics, in a frame (by default the first one)."""
    at = frame(structure, *fisher.shape, turned=False) if at is None else at
    return symbolic(lambda fisher, at: structure.fit(structure.stats(fisher, Params(at, None)), at))(fisher, at)


def dense(structure: Structure, params: Params) -> Symbols:
    """The shipped member, written out."""
    return symbolic(structure.dense)(params)


def written(structure: Structure, params: Params, G: Symbols) -> Symbols:
    """F~ times a gradient, by the member written out."""
    return symbolic(lambda params, G: unvec(structure.dense(params) @ vec(G), G.shape))(params, G)


def applied(structure: Structure, params: Params, G: Symbols) -> Symbols:
    """F~ times a gradient, by the path that an update takes."""
    return symbolic(lambda params, G: structure.apply(params, G))(params, G)


def squared_error(structure: Structure, params: Params, fisher: Fisher) -> Float[Array, ""]:
    """||F~ - F||_F^2, as it is defined."""
    return jnp.sum((structure.dense(params) - fisher.dense()) ** 2)


def error(structure: Structure, params: Params, fisher: Fisher, measure: Measure = squared_error) -> sp.Expr:
    """How far a member is, as an expression."""
    return symbolic(partial(measure, structure))(params, fisher)


def slope(structure: Structure, params: Params, fisher: Fisher, measure: Measure = squared_error) -> Tree:
    """The gradient of that by the coordinates: `jax.grad` of the shipped functions."""

    def of_coordinates(coords: Tree, at: Frame, fisher: Fisher) -> Float[Array, ""]:
        return measure(structure, Params(at, coords), fisher)

    return symbolic(jax.grad(of_coordinates))(params.coords, params.frame, fisher)


def slope_of_bases(structure: Structure, params: Params, fisher: Fisher, measure: Measure = squared_error) -> Tree:
    """The gradient by the bases, through the shipped `retract`, where they stand."""
    still = jax.tree.map(np.zeros_like, params.frame)

    def of_bend(z: Frame, params: Params, fisher: Fisher) -> Float[Array, ""]:
        return measure(structure, Params(structure.retract(params.frame, z), params.coords), fisher)

    return symbolic(jax.grad(of_bend))(still, params, fisher)


def objective(structure: Structure, params: Params, fisher: Fisher) -> Float[Array, ""]:
    """What the structure says that its fit minimises."""
    return structure.objective(params, fisher)


def update(structure: Structure, params: Params, G: Symbols, eps: Any = 0.0) -> Symbols:
    """The shipped `apply` of 1 / (sqrt(x) + eps): square-root natural gradient descent."""
    return symbolic(lambda params, G, eps: structure.apply(params, G, inverse_root(eps)))(params, G, eps)


def multiplicities(variables: Tree) -> list[int]:
    """How often each distinct entry occurs, in the order of `hessian`: 2 off the diagonal of a symmetric matrix."""
    entries = entries_of(variables)
    return [entries.count(entry) for entry in dict.fromkeys(entries)]


def hessian(expression: sp.Expr, variables: Tree) -> sp.Matrix:
    return sp.hessian(expression, list(dict.fromkeys(entries_of(variables))))

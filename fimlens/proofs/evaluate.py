"""Evaluate the shipped functions on symbols: fits, errors, gradients, Hessians and updates as SymPy expressions."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp
from jaxtyping import Array, Float

from fimlens.divergence import FROBENIUS, Divergence, excess
from fimlens.fisher.dense_form import DenseFisher
from fimlens.fisher.fisher import Fisher, unvec, vec
from fimlens.interpreter.interpret import symbolic
from fimlens.linalg.spectral_functions import inverse_root, over_parts
from fimlens.proofs.symbols import Symbols, entries_of, frame
from fimlens.solver.fit import split
from fimlens.structure import Frame, Params, Structure, Tree

Measure = Callable[[Structure, Params, Fisher], Float[Array, ""]]  # how far a member is from a Fisher


def fitted(structure: Structure, fisher: Fisher, at: Frame | None = None) -> Params:
    """The member that the shipped `fit` returns for the shipped statistics, in the frame `at` (default: the initial frame)."""
    at = frame(structure, *fisher.shape, turned=False) if at is None else at
    return symbolic(lambda fisher, at: structure.fit(structure.stats(fisher, Params(at, None)), at))(fisher, at)


def dense(structure: Structure, params: Params) -> Symbols:
    """The matrix F~ of a member, mn x mn, by the shipped `dense`."""
    return symbolic(structure.dense)(params)


def apply_dense(structure: Structure, params: Params, G: Symbols) -> Symbols:
    """F~ times vec(G), m x n, by the matrix that `dense` returns."""
    return symbolic(lambda params, G: unvec(structure.dense(params) @ vec(G), G.shape))(params, G)


def apply(structure: Structure, params: Params, G: Symbols) -> Symbols:
    """F~ times vec(G), m x n, by the shipped `apply`, which never forms F~."""
    return symbolic(lambda params, G: structure.apply(params, G))(params, G)


def eigenbasis(structure: Structure, params: Params) -> tuple[Symbols, Symbols]:
    """B (mn x k) and eigenvalues (k) in the range of a member: X = B^T vec(G) are the shipped coordinates of G."""

    def pairs(params: Params) -> list[tuple[Array, Array]]:
        shape = params.frame.shape
        B = jax.vmap(lambda g: structure.to_eigenbasis(params.frame, unvec(g, shape)))(jnp.eye(math.prod(shape)))

        def pair(value: Array | None, X: Array) -> tuple[Array, Array] | None:
            return None if value is None else (X.reshape(len(X), -1), jnp.broadcast_to(value, X.shape[1:]).reshape(-1))

        return jax.tree.leaves(over_parts(pair, structure.eigenvalues(params), B), is_leaf=lambda x: type(x) is tuple)

    B, values = zip(*symbolic(pairs)(params), strict=True)
    return np.concatenate(B, 1), np.concatenate(values)


def excess_in(divergence: Divergence) -> Measure:
    """D(F, F~) - tr phi(F), as `fit` and `solve` minimise it."""
    return lambda structure, params, fisher: excess(structure.eigenvalue_blocks(params, fisher), divergence)


def spectrum_error(structure: Structure, params: Params, fisher: Fisher) -> Float[Array, ""]:
    """||L - V||^2, the part of the squared error that depends on the eigenvalues."""
    return split(structure.eigenvalue_blocks(params, fisher), FROBENIUS, jnp.zeros([]))[2]


def squared_error(structure: Structure, params: Params, fisher: Fisher) -> Float[Array, ""]:
    """||F~ - F||_F^2, computed from its definition."""
    return jnp.sum((structure.dense(params) - fisher.dense()) ** 2)


def objective(structure: Structure, params: Params, fisher: Fisher) -> Float[Array, ""]:
    """The function that the structure's fit minimises, as the structure states it."""
    return structure.objective(params, fisher)


def error(structure: Structure, params: Params, fisher: Fisher, measure: Measure = squared_error) -> sp.Expr:
    """The distance of a member from a Fisher, as an expression."""
    return symbolic(partial(measure, structure))(params, fisher)


def slope(structure: Structure, params: Params, fisher: Fisher, measure: Measure = squared_error) -> Tree:
    """The gradient of `error` with respect to the coordinates, by `jax.grad` of the shipped functions."""

    def of_coordinates(coords: Tree, at: Frame, fisher: Fisher) -> Float[Array, ""]:
        return measure(structure, Params(at, coords), fisher)

    return symbolic(jax.grad(of_coordinates))(params.coords, params.frame, fisher)


def slope_of_bases(structure: Structure, params: Params, fisher: Fisher, measure: Measure = squared_error) -> Tree:
    """The gradient of `error` with respect to the bases, at the given bases.

    A basis must stay orthonormal, so the gradient is that of z -> error(retract(frame, z)) at z = 0, by the shipped `retract`.
    """
    zero = jax.tree.map(np.zeros_like, params.frame)

    def of_tangent(z: Frame, params: Params, fisher: Fisher) -> Float[Array, ""]:
        return measure(structure, Params(structure.retract(params.frame, z), params.coords), fisher)

    return symbolic(jax.grad(of_tangent))(zero, params, fisher)


def update(structure: Structure, params: Params, G: Symbols, eps: Any = 0.0) -> Symbols:
    """The update of square-root natural gradient descent, f(F~) g for f(x) = 1/(sqrt(x) + eps), by the shipped `apply`."""
    return symbolic(lambda params, G, eps: structure.apply(params, G, inverse_root(eps)))(params, G, eps)


def stationarity(structure: Structure, divergence: Divergence, params: Params, fisher: Fisher) -> Tree:
    """The derivatives of D(F, F~) with respect to the coordinates: sum of mult phi''(lambda) (lambda - V) d lambda.

    V is the diagonal of B^T F B and mult that of B^T B, where X = B^T vec(G) are the shipped coordinates of G.
    """
    every = DenseFisher("the identity", "as it is", jnp.eye(math.prod(fisher.shape)), fisher.shape)
    moments = (F.second_moment(partial(structure.to_eigenbasis, params.frame)) for F in (fisher, every))
    seen = jax.tree.map(lambda V, count: jnp.stack([V, count]), *moments)

    def along_slopes(coords: Tree) -> Float[Array, ""]:
        def term(value: Array | None, pair: Array) -> Array | None:
            if value is None:
                return None
            V, count = pair
            return jnp.sum(jax.lax.stop_gradient(divergence.curvature(value) * (count * value - V)) * value)

        values = structure.eigenvalues(Params(params.frame, coords))
        return sum(jax.tree.leaves(over_parts(term, values, seen)))

    return jax.grad(along_slopes)(params.coords)


def hessian(expression: sp.Expr, variables: Tree) -> sp.Matrix:
    """The Hessian with respect to the distinct entries of the variables; a symmetric matrix counts each pair once."""
    return sp.hessian(expression, list(dict.fromkeys(entries_of(variables))))


def multiplicities(variables: Tree) -> list[int]:
    """How often each distinct entry occurs, in the order of `hessian`: twice off the diagonal of a symmetric matrix."""
    entries = entries_of(variables)
    return [entries.count(entry) for entry in dict.fromkeys(entries)]

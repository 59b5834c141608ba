"""What a derivation is written with: symbols that quantify, the shipped functions evaluated on them, and steps decided exactly.

A derivation (a file of fimlens/derivations) states a theorem in its docstring and yields steps. A step is an identity of
expressions that the shipped functions made, decided over the rational functions (and roots) of its symbols; nothing is sampled,
except to refute: one exact rational point where a difference is not zero is a proof that it is not.
"""

import importlib
import pkgutil
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial, reduce
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp
from jaxtyping import Array, Float

from fimlens._fit import blank
from fimlens._identity import is_zero, refuted
from fimlens._symbolic import symbolic
from fimlens.fisher import DenseFisher, Fisher, SampleFisher, unvec, vec
from fimlens.structure import Frame, Params, Structure, Tree, inverse_root

Symbols = np.ndarray  # of SymPy expressions
Measure = Callable[[Structure, Params, Fisher], Float[Array, ""]]  # of how far a member is


# --- what is quantified over ------------------------------------------------------------------------------


def symbols(name: str, *shape: int, **assumptions: bool) -> Symbols:
    """An array of symbols, name_11, name_12, ...; real ones, unless more is said."""
    array = np.empty(shape, object)
    for place in np.ndindex(*shape):
        array[place] = sp.Symbol(f"{name}_{{{''.join(str(k + 1) for k in place)}}}", **(assumptions or {"real": True}))
    return array


def positive(name: str, *shape: int) -> Symbols:
    """Positive symbols. What is rational in them and holds there holds wherever both sides are defined."""
    return symbols(name, *shape, positive=True)


def symmetric(name: str, size: int) -> Symbols:
    """A symmetric matrix of symbols, its diagonal positive: every positive definite matrix is one."""
    upper = np.triu(symbols(name, size, size), 1)
    return upper + upper.T + np.diag([sp.Symbol(f"{name}_{{{k + 1}{k + 1}}}", positive=True) for k in range(size)])


def any_fisher(m: int, n: int, name: str = "F") -> DenseFisher:
    """Every Fisher of an m x n matrix."""
    return DenseFisher("every Fisher", "as symbols", symmetric(name, m * n), (m, n))


def fisher_in_eigenbases(m: int, n: int, left: bool = False, right: bool = False) -> DenseFisher:
    """Every Fisher as seen in the eigenbasis of E[GG^T], of E[G^T G], or both: off their diagonals these vanish."""
    F = any_fisher(m, n)
    covariances = [C for C, wanted in zip(symbolic(lambda F: (F.left(), F.right()))(F), (left, right), strict=True) if wanted]
    solved = sp.solve([entry for C in covariances for entry in C[np.triu_indices(len(C), 1)]], dict=True)[0]
    return replace(F, matrix=np.array(sp.Matrix(F.matrix).subs(solved), object))


def diagonal_fisher(V: Symbols) -> DenseFisher:
    """A Fisher whose second moments are V, (m, n): all of F that a spectrum's error depends on."""
    return DenseFisher("every second moment", "as symbols", np.diag(V.T.ravel()), V.shape)


def one_gradient(G: Symbols) -> SampleFisher:
    """g g^T of one gradient."""
    return SampleFisher("one gradient", "as symbols", G[None])


def rotation(size: int, name: str) -> Symbols:
    """Every rotation but for a set of smaller dimension: a product of plane ones, ((1 - t^2)/(1 + t^2), 2t/(1 + t^2)) each."""
    planes = [(i, j) for i in range(size) for j in range(i + 1, size)]

    def turned(Q: Symbols, plane: tuple[int, int]) -> Symbols:
        i, j = plane
        t = sp.Symbol(f"{name}_{{{i + 1}{j + 1}}}" if len(planes) > 1 else name, real=True)
        c, s = (1 - t**2) / (1 + t**2), 2 * t / (1 + t**2)
        Q = Q.copy()
        Q[:, [i, j]] = Q[:, [i, j]] @ np.array([[c, -s], [s, c]])
        return Q

    return reduce(turned, planes, np.eye(size, dtype=int).astype(object) * sp.Integer(1))


def frame(structure: Structure, m: int, n: int, turned: bool = True) -> Frame:
    """The frame of a structure with every basis a rotation of its own (the first columns of one, where it is thin)."""
    names = iter("tuwxyzabcdefgh")

    def leaf(U: Symbols) -> Symbols:
        if not turned or U.ndim < 2:
            return U
        if U.ndim > 2:
            return np.stack([leaf(each) for each in U])
        return rotation(len(U), next(names))[:, : U.shape[1]]

    return jax.tree.map(leaf, symbolic(lambda: structure.frame(m, n))())


def coordinates(structure: Structure, m: int, n: int, name: str) -> Tree:
    """Positive symbols in the layout of a structure's coordinates."""
    leaves, layout = jax.tree.flatten(jax.eval_shape(lambda: blank(structure, (m, n), "fits"))[1])
    names = [name] if len(leaves) == 1 else [f"{name}{chr(0x61 + k)}" for k in range(len(leaves))]
    return jax.tree.unflatten(layout, [positive(own, *leaf.shape) for own, leaf in zip(names, leaves, strict=True)])


# --- the shipped functions, on them ----------------------------------------------------------------------------


def fitted(structure: Structure, fisher: Fisher, at: Frame | None = None) -> Params:
    """The shipped fit to the shipped statistics, in a frame (by default the first one)."""
    at = frame(structure, *fisher.shape, turned=False) if at is None else at
    return symbolic(lambda fisher, at: structure.fit(structure.stats(fisher, at), at))(fisher, at)


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
    """The gradient by the bases, through the shipped `bend`, where they stand."""
    still = jax.tree.map(np.zeros_like, params.frame)

    def of_bend(z: Frame, params: Params, fisher: Fisher) -> Float[Array, ""]:
        return measure(structure, Params(structure.bend(params.frame, z), params.coords), fisher)

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


# --- steps ------------------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """A sentence, whether it holds, and an entry of the difference that is not zero where it does not."""

    says: str
    holds: bool
    residue: sp.Expr


def vanishes(says: str, *trees: Tree) -> Step:
    """Every entry is identically zero."""
    entries = entries_of(trees)
    if not entries:
        raise ValueError(f"{says}: there is nothing to decide")
    residue = next((e for e in entries if not is_zero(e)), sp.Integer(0))
    return Step(says, residue == 0, residue)


def equal(says: str, a: Tree, b: Tree) -> Step:
    """Two trees agree, entry by entry, identically."""
    left, right = entries_of(a), entries_of(b)
    shapes = [[np.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in (a, b)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{says}: shapes {shapes[0]} against {shapes[1]}")
    return vanishes(says, [x - y for x, y in zip(left, right, strict=True)])


def differs(says: str, a: Tree, b: Tree = None) -> Step:
    """Two trees (a tree and zero) are not identical: at one rational point an entry is apart, which is a proof.

    Of polynomials of a symmetric F the point need not be a Fisher: those that vanish on all positive definite matrices, an
    open set, vanish identically.
    """
    left = entries_of(a)
    right = [sp.Integer(0)] * len(left) if b is None else entries_of(b)
    return Step(says, any(refuted(x - y) for x, y in zip(left, right, strict=True)), sp.Integer(0))


def convex(says: str, expression: sp.Expr, variables: Tree) -> Step:
    """A quadratic whose Hessian is constant and positive semi-definite: where its gradient vanishes is its global minimum."""
    H = hessian(expression, variables).applyfunc(lambda e: sp.cancel(sp.together(e)))
    constant = not H.free_symbols
    return Step(says, bool(constant and H.is_positive_semidefinite), sp.Integer(0) if constant else H[0])


def entries_of(tree: Tree) -> list[sp.Expr]:
    """All entries of all leaves, in order."""
    return [sp.sympify(entry) for leaf in jax.tree.leaves(tree) for entry in np.ravel(np.asarray(leaf, object))]


# --- derivations ------------------------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """What became of one derivation at one size (m, n)."""

    name: str
    size: tuple[int, int]
    steps: list[Step]
    seconds: float

    @property
    def proved(self) -> bool:
        return bool(self.steps) and all(step.holds for step in self.steps)


@cache
def derivations() -> dict[str, ModuleType]:
    """Every derivation, by name: the modules of fimlens.derivations."""
    package = importlib.import_module("fimlens.derivations")
    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    return {name: importlib.import_module(f"fimlens.derivations.{name}") for name in names}


def prove(derivation: ModuleType, size: tuple[int, int], told: Callable[[Step], None] = lambda step: None) -> Verdict:
    """All steps of a derivation at one size; those after one that fails are left out."""
    start, steps = time.perf_counter(), []
    for step in derivation.steps(*size):
        steps.append(step)
        told(step)
        if not step.holds:
            break
    return Verdict(derivation.__name__.rpartition(".")[2], size, steps, time.perf_counter() - start)

"""Make the symbols that theorems are stated in: matrices, Fishers, rotations, frames and coordinates of SymPy expressions."""

from dataclasses import replace
from functools import reduce

import jax
import numpy as np
import sympy as sp

from fimlens.divergence import Divergence, Numbers
from fimlens.fisher.dense_form import DenseFisher
from fimlens.fisher.sample_form import SampleFisher
from fimlens.interpreter.interpret import symbolic
from fimlens.interpreter.unknown import unknown
from fimlens.solver.sizes import zero_state
from fimlens.structure import Frame, Structure, Tree

Symbols = np.ndarray  # of SymPy expressions


def symbols(name: str, *shape: int, **assumptions: bool) -> Symbols:
    """An array of symbols name_11, name_12, ... They are real unless other SymPy assumptions are given."""
    array = np.empty(shape, object)
    for place in np.ndindex(*shape):
        array[place] = sp.Symbol(f"{name}_{{{''.join(str(k + 1) for k in place)}}}", **(assumptions or {"real": True}))
    return array


def positive(name: str, *shape: int) -> Symbols:
    """An array of positive symbols.

    An identity of rational functions that holds for positive values holds wherever both sides are defined.
    """
    return symbols(name, *shape, positive=True)


def symmetric(name: str, size: int) -> Symbols:
    """A symmetric matrix of symbols with a positive diagonal. Every positive definite matrix has this form."""
    upper = np.triu(symbols(name, size, size), 1)
    return upper + upper.T + np.diag([sp.Symbol(f"{name}_{{{k + 1}{k + 1}}}", positive=True) for k in range(size)])


def any_fisher(m: int, n: int, name: str = "F") -> DenseFisher:
    """A Fisher of an m x n matrix with a symbol for every entry: it stands for all of them."""
    return DenseFisher("every Fisher", "as symbols", symmetric(name, m * n), (m, n))


def fisher_in_eigenbases(m: int, n: int, left: bool = False, right: bool = False) -> DenseFisher:
    """A Fisher with a symbol for every entry, in the eigenbasis of E[G G^T] (`left`), of E[G^T G] (`right`), or of both.

    In its eigenbasis a covariance is diagonal: a linear condition on the entries of F, which is solved for some of them.
    """
    F = any_fisher(m, n)
    covariances = [C for C, wanted in zip(symbolic(lambda F: (F.left(), F.right()))(F), (left, right), strict=True) if wanted]
    solved = sp.solve([entry for C in covariances for entry in C[np.triu_indices(len(C), 1)]], dict=True)[0]
    return replace(F, matrix=np.array(sp.Matrix(F.matrix).subs(solved), object))


def diagonal_fisher(V: Symbols) -> DenseFisher:
    """The diagonal Fisher with second moments V, m x n. For a structure without bases, the fit depends on F through V alone."""
    return DenseFisher("every second moment", "as symbols", np.diag(V.T.ravel()), V.shape)


PHI = (*(sp.Function(name, real=True) for name in ("phi", "phi'")), sp.Function("phi''", positive=True))


class AnyDivergence(Divergence):
    """The divergence of a convex function phi of which nothing else is known: what is proved in it holds in every one."""

    def phi(self, x: Numbers) -> Numbers:
        return unknown(*PHI)(x)

    def slope(self, x: Numbers) -> Numbers:
        return unknown(*PHI[1:])(x)

    def curvature(self, x: Numbers) -> Numbers:
        return unknown(*PHI[2:])(x)


def one_gradient(G: Symbols) -> SampleFisher:
    """The Fisher g g^T of one gradient G, where g = vec(G)."""
    return SampleFisher("one gradient", "as symbols", G[None])


def rotation(size: int, name: str) -> Symbols:
    """A rotation matrix of symbols: a product of plane rotations by angles of cosine (1 - t^2)/(1 + t^2), sine 2t/(1 + t^2).

    Its entries are rational in the parameters t, which keeps all later identities rational. It reaches every rotation except
    a set of lower dimension, on which an identity then holds by continuity.
    """
    planes = [(i, j) for i in range(size) for j in range(i + 1, size)]

    def rotated(Q: Symbols, plane: tuple[int, int]) -> Symbols:
        i, j = plane
        t = sp.Symbol(f"{name}_{{{i + 1}{j + 1}}}" if len(planes) > 1 else name, real=True)
        c, s = (1 - t**2) / (1 + t**2), 2 * t / (1 + t**2)
        Q = Q.copy()
        Q[:, [i, j]] = Q[:, [i, j]] @ np.array([[c, -s], [s, c]])
        return Q

    # NumPy's object arrays need SymPy's integers here: Python's own would divide into floats.
    return reduce(rotated, planes, np.eye(size, dtype=int).astype(object) * sp.Integer(1))


def frame(structure: Structure, m: int, n: int, turned: bool = True) -> Frame:
    """The frame of a structure for an m x n matrix.

    Args:
        structure: the structure.
        m, n: rows and columns of the matrix.
        turned: make every basis a rotation with parameters of its own, or, for a thin basis, the first columns of a rotation.
            False gives the initial frame, in which every basis is the standard one.
    """
    names = iter("tuwxyzabcdefgh")  # every basis needs parameters of its own, or two bases would rotate together

    def leaf(U: Symbols) -> Symbols:
        if not turned or U.ndim < 2:
            return U
        if U.ndim > 2:
            return np.stack([leaf(each) for each in U])
        return rotation(len(U), next(names))[:, : U.shape[1]]

    return jax.tree.map(leaf, symbolic(lambda: structure.frame(m, n))())


def coordinates(structure: Structure, m: int, n: int, name: str) -> Tree:
    """A tree of positive symbols with the layout of a structure's coordinates."""
    leaves, layout = jax.tree.flatten(jax.eval_shape(lambda: zero_state(structure, (m, n), "fits"))[1].spectrum)
    names = [name] if len(leaves) == 1 else [f"{name}{chr(0x61 + k)}" for k in range(len(leaves))]
    return jax.tree.unflatten(layout, [positive(own, *leaf.shape) for own, leaf in zip(names, leaves, strict=True)])


def entries_of(tree: Tree) -> list[sp.Expr]:
    """All entries of all leaves, in order, as SymPy expressions."""
    return [sp.sympify(entry) for leaf in jax.tree.leaves(tree) for entry in np.ravel(np.asarray(leaf, object))]

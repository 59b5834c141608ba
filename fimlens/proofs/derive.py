"""A structure's closed form, found from its definition: the gap, where it is stationary, and whether `fit` is there."""

import string
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import sympy as sp

from fimlens.interpreter.identity import is_zero
from fimlens.proofs.evaluate import applied, error, written
from fimlens.proofs.stationary import Stationary, stationary
from fimlens.proofs.symbols import any_fisher, diagonal_fisher, entries_of, frame, positive, symbols
from fimlens.proofs.verify_fit import brief, held, plain
from fimlens.solver.fit import zero_state
from fimlens.structure import Params, Structure, Tree, require_structure
from fimlens.structures.spectra import Spectrum

LARGEST = 16  # entries of the matrix: beyond, nobody reads the equations


@dataclass(frozen=True)
class Derived:
    """What `derive` found for one structure at one size. Print it, show it in a notebook, or take its SymPy expressions.

    `gap` is ||F~ - F||^2 (of a spectrum, ||L - V||^2) in the symbols `coordinates` and those of the Fisher. `found` has the
    equations where it is stationary, what solves them, and what such a point is. `shipped` are the coordinates that the
    structure's own fit has (None where it cannot be traced), `fit` says whether they are there, and `ok` is False where not.

    Examples:
        >>> import fimlens as fl
        >>> derived = fl.derive(fl.Columns(), 2, 1)
        >>> [line.rhs for line in derived.lines], derived.found.closed
        ([(V_{11} + V_{21})/2], True)
        >>> derived.ok, derived.fit
        (True, 'proved: it solves the equations, for all entries at this size')
    """

    structure: Structure
    shape: tuple[int, int]
    coordinates: Tree
    gap: sp.Expr
    found: Stationary
    shipped: Tree | None
    fit: str
    ok: bool

    @property
    def lines(self) -> list[sp.Eq]:
        """Every coordinate that was solved for, and the equations where some were not."""
        equations, solution, *_ = self.found
        solved = [sp.Eq(c, value, evaluate=False) for c, value in solution.items()]
        return solved if solved else list(equations)

    @property
    def how(self) -> str:
        if not self.found.solution:
            return "not solved; stationary where"
        return "closed form" if self.found.closed else "no closed form; a fixed point, block by block, of"

    def __str__(self) -> str:
        m, n = self.shape
        return "\n".join(
            [
                f"{self.structure} at {m} x {n}",
                f"gap: {brief(self.gap, '.gap')}",
                f"{self.how}:",
                *(f"    {plain(line.lhs)} = {plain(line.rhs)}" for line in self.lines),
                f"which is {self.found.kind}",
                f"fit: {self.fit}",
            ]
        )

    def latex(self) -> str:
        """The same equations as LaTeX."""
        rows = r" \\ ".join(f"{sp.latex(line.lhs)} &= {sp.latex(line.rhs)}" for line in self.lines)
        return rf"\begin{{aligned}} {rows} \end{{aligned}}"

    def _repr_latex_(self) -> str:
        return f"$${self.latex()}$$"


def derive(structure: Structure, m: int, n: int, *, coordinates: Any = None) -> Derived:
    """Derive the nearest member of a family from its definition, and hold the structure's own `fit` against it.

    From `dense` and the coordinates alone: forms the gap to every Fisher of an m x n matrix, the bases where the first frame
    has them; solves where it is stationary, whole where that is linear, else leaf by leaf of the coordinates, else coordinate
    by coordinate; and puts the shipped fit into the equations. All of it is exact, for all entries at this size and of no
    other; only where a fit iterates, or stops at a bound, is its slope measured, and that is said. A fit of which an
    eigenvalue is negative, at diagonal Fishers or at the one measured, is refused, stationary or not.

    Args:
        structure: the family. Its fit may be missing (raise NotImplementedError).
        m, n: the matrix, a small one: 2 x 2 and 2 x 3 say most.
        coordinates: the layout of the coordinates, a tree of shapes, where there is no fit to tell it.

    Raises:
        TypeError: not a structure.
        ValueError: the matrix is too large, the structure does not suit it, or the layout of its coordinates is not known.
        NoRule: `expand` or `dense` does what SymPy is told nothing of.

    Examples:
        >>> import fimlens as fl
        >>> print(fl.derive(fl.Rows(), 1, 2))
        Rows() at 1 x 2
        gap: (-V_11 + c_11)**2 + (-V_12 + c_11)**2
        closed form:
            c_11 = (V_11 + V_12)/2
        which is the only minimum, the bases given: a convex quadratic of the coordinates, its Hessian positive definite
        fit: proved: it solves the equations, for all entries at this size
    """
    require_structure("derive", structure)
    if m * n > LARGEST:
        raise ValueError(f"derive: a {m} x {n} matrix has more than {LARGEST} entries. Take a small one, such as 2 x 3.")
    at = frame(structure, m, n, turned=False)
    coords = _symbols(_layout(structure, (m, n), coordinates))
    if not entries_of(coords):
        raise ValueError(f"derive: {structure} has no coordinates at {m} x {n}, so there is nothing to derive.")
    _require_one_member(structure, Params(at, coords))
    spectral = isinstance(structure, Spectrum)
    F = diagonal_fisher(positive("V", m, n)) if spectral else any_fisher(m, n)
    squared = error(structure, Params(at, coords), F)
    found = stationary(squared, [list(np.ravel(leaf)) for leaf in jax.tree.leaves(coords)])
    shipped, verdict, ok = held(structure, F, at, found, coords)
    return Derived(structure, (m, n), coords, squared, found, shipped, verdict, ok)


def _layout(structure: Structure, shape: tuple[int, int], given: Any) -> Tree:
    """The shapes of the coordinates."""
    if given is not None:
        return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, float), given, is_leaf=_is_shape)
    try:
        return jax.eval_shape(lambda: zero_state(structure, shape, "fits"))[1].spectrum
    except NotImplementedError as error:
        raise ValueError(
            f"derive: {structure} has no fit to tell the layout of its coordinates. Give it, as in coordinates={{'c': (2, 1)}}."
        ) from error


def _is_shape(leaf: Any) -> bool:
    return type(leaf) is tuple and all(isinstance(k, int) for k in leaf)


def _symbols(layout: Tree) -> Tree:
    """Positive symbols, named after their places in the tree: c for a single leaf, else fields and keys, or letters."""
    paths, structure = jax.tree_util.tree_flatten_with_path(layout)

    def word(key: Any) -> str:
        number = getattr(key, "idx", None)
        return string.ascii_lowercase[number] if number is not None else str(getattr(key, "name", getattr(key, "key", "c")))

    def name(path: Any) -> str:
        joined = ".".join(map(word, path))
        return f"{joined}'" if joined in ("F", "V") else joined  # those are the Fisher's

    names = ["c"] if len(paths) == 1 else [name(path) for path, _ in paths]
    return jax.tree.unflatten(structure, [positive(own, *leaf.shape) for own, (_, leaf) in zip(names, paths, strict=True)])


def _require_one_member(structure: Structure, params: Params) -> None:
    """Refuse a family whose `dense` is not what its `to_eigenbasis`, `eigenvalues` and `from_eigenbasis` do: there are two definitions.

    Raises:
        ValueError: they disagree.
    """
    G = symbols("G", *params.frame.shape)
    if not all(is_zero(entry) for entry in entries_of(applied(structure, params, G) - written(structure, params, G))):
        raise ValueError(
            f"derive: {structure} has two definitions: `dense` times vec(G) is not what `to_eigenbasis`, the eigenvalues (`expand`) and "
            "`from_eigenbasis` make of G. Correct either; fl.check names the law."
        )

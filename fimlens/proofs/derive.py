"""Derive a structure's closed form from its definition, and compare the structure's own `fit` with it."""

import string
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import sympy as sp

from fimlens.divergence import FROBENIUS, Divergence, require_divergence
from fimlens.interpreter.interpret import symbolic
from fimlens.proofs.evaluate import apply, apply_dense, dense, eigenbasis, error, excess_in, spectrum_error, stationarity
from fimlens.proofs.rounding import all_vanish, are_equal, shown, tidy
from fimlens.proofs.stationary import Stationary, stationary
from fimlens.proofs.symbols import any_fisher, diagonal_fisher, entries_of, frame, positive, symbols
from fimlens.proofs.verify_fit import plain_text, shorten, verify_fit
from fimlens.solver.sizes import zero_state
from fimlens.structure import Params, Structure, Tree, require_structure
from fimlens.structures.spectra import Spectrum

LARGEST = 16  # entries of the matrix; the equations of a larger one are too long to read


@dataclass(frozen=True)
class Derived:
    """The result of `derive` for one structure at one size: print it, show it in a notebook, or use its SymPy expressions.

    Attributes:
        structure: the structure.
        shape: rows and columns of the matrix.
        coordinates: the coordinates as positive symbols, in the layout of `Params.coords`.
        divergence: the sense in which the member is nearest.
        gap: the part of the divergence that depends on the coordinates, as an expression in them and in the entries of the
            Fisher. It is ||L - V||^2 for the Frobenius norm, otherwise D(F, F~) - tr phi(F).
        found: the equations at which the gap is stationary, their solution, and whether that is a minimum.
        shipped: the coordinates that the structure's own fit returns, or None if the fit cannot be traced.
        fit: the verdict on that fit, as text.
        ok: False if the fit is refused.

    Examples:
        >>> import fimlens as fl
        >>> derived = fl.derive(fl.Columns(), 2, 1)
        >>> [line.rhs for line in derived.lines], derived.found.closed
        ([(V_{11} + V_{21})/2], True)
        >>> derived.ok, derived.fit
        (True, 'proved: the fit solves the equations, for all entries at this size')
    """

    structure: Structure
    shape: tuple[int, int]
    divergence: Divergence
    coordinates: Tree
    gap: sp.Expr
    found: Stationary
    shipped: Tree | None
    fit: str
    ok: bool

    @property
    def lines(self) -> list[sp.Eq]:
        """The solution, one equation for each coordinate that was solved for; without any, the equations themselves."""
        equations, solution, *_ = self.found
        solved = [sp.Eq(c, value, evaluate=False) for c, value in solution.items()]
        return solved if solved else list(equations)

    @property
    def how(self) -> str:
        """The heading of `lines`: whether they are a closed form, a fixed point's equations, or unsolved."""
        if not self.found.solution:
            return "not solved; the gap is stationary where"
        return "closed form" if self.found.closed else "no closed form; the optimum is a fixed point, block by block, of"

    def __str__(self) -> str:
        m, n = self.shape
        return "\n".join(
            [
                f"{self.structure} at {m} x {n}" + ("" if self.divergence == FROBENIUS else f", nearest in {self.divergence}"),
                f"gap: {shorten(self.gap, '.gap')}",
                f"{self.how}:",
                *dict.fromkeys(f"    {shorten(line.lhs, '.found')} = {plain_text(line.rhs)}" for line in self.lines),
                f"this is {self.found.kind}",
                f"fit: {self.fit}",
            ]
        )

    def latex(self) -> str:
        """The equations of `lines` as LaTeX."""
        rows = r" \\ ".join(f"{sp.latex(line.lhs)} &= {sp.latex(shown(line.rhs))}" for line in self.lines)
        return rf"\begin{{aligned}} {rows} \end{{aligned}}"

    def _repr_latex_(self) -> str:
        return f"$${self.latex()}$$"


def derive(structure: Structure, m: int, n: int, *, coordinates: Any = None, divergence: Divergence | None = None) -> Derived:
    """Derive the nearest member of a structure from its definition, and verify the structure's own `fit`.

    Use it when you design a structure. It finds the closed form, or the equations of a fixed point, before you write `fit`, and
    then tells you whether your `fit` is right. The result holds for all entries of the Fisher at this size, and for no other
    size. It needs only `dense` (or `expand`) and the coordinates:

    1. It writes the member as B Diag(L) B^T in the structure's initial frame, and compares this with `dense`.
    2. It solves for the coordinates at which the gap is stationary: sum of phi''(L) (L - V) dL = 0. V is the diagonal of B^T F
       B, and F has a symbol for every entry. It takes all equations at once if they are linear, otherwise leaf by leaf of the
       coordinates, otherwise one coordinate at a time.
    3. It puts the shipped fit into the equations. A fit that iterates, or stops at a bound, is measured at one Fisher instead,
       and the verdict says so. So is every fit in a divergence whose degree is no whole number, as phi'' is not rational then.
       A fit with a negative eigenvalue is refused, even if it is stationary.

    Constants that no one would write down, such as cos(1), are rounded: where they occur, equations hold to rounding, and the
    verdict says to how much. It never says "proved" then.

    Args:
        structure: the structure. It may have no fit yet (`fit` or `project` raises NotImplementedError).
        m: rows of the matrix. Small sizes suffice: 2 x 2 and 2 x 3 show most.
        n: columns of the matrix.
        coordinates: the layout of the coordinates, a tree of shapes such as {"c": (2, 1)}. It is needed only without a fit.
        divergence: the sense in which the member is to be nearest; by default the structure's own.

    Returns:
        The closed form and the verdict on the fit, a `Derived`.

    Raises:
        TypeError: `structure` is not a structure, or `divergence` not a divergence.
        ValueError: the matrix has more than 16 entries, the structure does not suit its shape, the layout of the coordinates is
            unknown, or `dense` contradicts `to_eigenbasis`, the eigenvalues and `from_eigenbasis`.
        NoRule: `expand` or `dense` uses a primitive that has no rule for symbols.

    Examples:
        >>> import fimlens as fl
        >>> print(fl.derive(fl.Rows(), 1, 2))
        Rows() at 1 x 2
        gap: (-V_11 + c_11)**2 + (-V_12 + c_11)**2
        closed form:
            c_11 = (V_11 + V_12)/2
        this is the only minimum for these bases: the gap is a strictly convex quadratic of the coordinates
        fit: proved: the fit solves the equations, for all entries at this size
        >>> print(fl.derive(fl.RowColumn(sweeps=1, divergence=fl.VonNeumann()), 1, 2).fit)  # one sweep of Adafactor's
        proved: the fit solves the equations, for all entries at this size; that its gap is the smallest is not shown
    """
    require_structure("derive", structure)
    if m * n > LARGEST:
        raise ValueError(f"derive: a {m} x {n} matrix has more than {LARGEST} entries. Take a small one, such as 2 x 3.")
    divergence = structure.divergence if divergence is None else divergence
    require_divergence("derive", divergence)
    at = frame(structure, m, n, turned=False)
    coords = _symbols(_layout(structure, (m, n), coordinates))
    if not entries_of(coords):
        raise ValueError(f"derive: {structure} has no coordinates at {m} x {n}, so there is nothing to derive.")
    member = Params(at, coords)
    # The equations of a wrong `dense` could be solved all the same, so compare the two definitions of the matrix first.
    _require_one_member(structure, member)
    spectral = isinstance(structure, Spectrum)
    # The fit of a spectrum depends on F through its diagonal alone, and one symbol for each entry keeps the gap short.
    F = diagonal_fisher(positive("V", m, n)) if spectral else any_fisher(m, n)
    if divergence == FROBENIUS:
        gap = tidy(error(structure, member, F, spectrum_error))
    else:
        gap = sp.expand(sp.expand_log(error(structure, member, F, excess_in(divergence))))
    slopes = symbolic(partial(stationarity, structure, divergence))(member, F)
    slopes = dict(zip(entries_of(coords), map(tidy, entries_of(slopes)), strict=True))
    found = stationary(slopes, [list(np.ravel(leaf)) for leaf in jax.tree.leaves(coords)], divergence)
    shipped, verdict, ok = verify_fit(structure, divergence, F, at, found, coords)
    return Derived(structure, (m, n), divergence, coords, gap, found, shipped, verdict, ok)


def _layout(structure: Structure, shape: tuple[int, int], given: Any) -> Tree:
    """The shapes of the coordinates: as given, or else as the fit returns them."""
    if given is not None:
        return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, float), given, is_leaf=_is_shape)
    try:
        return jax.eval_shape(lambda: zero_state(structure, shape, "fits"))[1].spectrum
    except NotImplementedError as error:
        raise ValueError(
            f"derive: {structure} has no fit, so the layout of its coordinates is unknown. Give it, as in "
            "coordinates={'c': (2, 1)}."
        ) from error


def _is_shape(leaf: Any) -> bool:
    return type(leaf) is tuple and all(isinstance(k, int) for k in leaf)


def _symbols(layout: Tree) -> Tree:
    """Positive symbols named after their places in the tree: c for a single leaf, otherwise fields and keys, or letters."""
    paths, structure = jax.tree_util.tree_flatten_with_path(layout)

    def word(key: Any) -> str:
        number = getattr(key, "idx", None)
        return string.ascii_lowercase[number] if number is not None else str(getattr(key, "name", getattr(key, "key", "c")))

    def name(path: Any) -> str:
        joined = ".".join(map(word, path))
        return f"{joined}'" if joined in ("F", "V") else joined  # F and V name the entries of the Fisher

    names = ["c"] if len(paths) == 1 else [name(path) for path, _ in paths]
    return jax.tree.unflatten(structure, [positive(own, *leaf.shape) for own, (_, leaf) in zip(names, paths, strict=True)])


def _require_one_member(structure: Structure, params: Params) -> None:
    """Refuse a structure that defines its matrix twice and differently: by `dense`, and by bases with eigenvalues.

    Raises:
        ValueError: the two definitions disagree.
    """
    G, (B, L) = symbols("G", *params.frame.shape), eigenbasis(structure, params)
    written = apply_dense(structure, params, G)
    if not all(map(are_equal, *map(entries_of, (apply(structure, params, G), written)))):
        raise ValueError(
            f"derive: {structure} has two definitions. `dense` times vec(G) differs from what `to_eigenbasis`, the eigenvalues "
            "(`expand`) and `from_eigenbasis` make of G. Correct one of them; fl.check names the law."
        )
    apart = entries_of((B * L @ B.T - dense(structure, params), B.T @ B * L @ B.T - (B * L).T))
    if not all_vanish(apart, lambda: entries_of((B * L @ B.T, B * L))):
        raise ValueError(
            f"derive: {structure} has eigenvalues that are not those of its `dense`: the coordinates of `to_eigenbasis` "
            "are not along orthonormal eigenvectors of that matrix. fl.check names the law."
        )

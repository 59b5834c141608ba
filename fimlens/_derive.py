"""A structure's closed form, found from its definition: the gap, where it is stationary, and whether `fit` is there."""

import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp

from fimlens._fit import blank, fit, gap
from fimlens._identity import is_zero
from fimlens._solve import solve
from fimlens._stationary import Stationary, stationary
from fimlens._symbolic import NoRule, symbolic
from fimlens.fisher import DenseFisher, Fisher, unvec, vec
from fimlens.proof import any_fisher, diagonal_fisher, error, fitted, frame, objective, positive, slope, squared_error, symbols
from fimlens.structure import Claim, Frame, Params, Structure, Tree, require_structure
from fimlens.structures.spectra import Spectrum

LARGEST = 16  # entries of the matrix: beyond, nobody reads the equations
TURNED_UP_TO = 2  # sides of the bases in which a fit is verified; larger ones in the first frame alone
AT_ROUNDING = 1e-9  # of a measured slope, relative to its terms
NEAR = 0.01  # how far, in relative gap, a fit of a few sweeps may stay from the limit it claims


@dataclass(frozen=True)
class Derived:
    """What `derive` found for one structure at one size. Print it, show it in a notebook, or take its SymPy expressions.

    `gap` is ||F~ - F||^2 (of a spectrum, ||L - V||^2) in the symbols `coordinates` and those of the Fisher. `found` has the
    equations where it is stationary, what solves them, and what such a point is. `shipped` are the coordinates that the
    structure's own fit has (None where it cannot be traced), `fit` says whether they are there, and `ok` is False where not.
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
        short = sp.count_ops(self.gap) <= 60
        return "\n".join(
            [
                f"{self.structure} at {m} x {n}",
                f"gap: {_plain(self.gap) if short else 'too long to print; see .gap'}",
                f"{self.how}:",
                *(f"    {_plain(line.lhs)} = {_plain(line.rhs)}" for line in self.lines),
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
    other; only where a fit iterates is its slope measured, and that is said.

    Args:
        structure: the family. Its fit may be missing (raise NotImplementedError).
        m, n: the matrix, a small one: 2 x 2 and 2 x 3 say most.
        coordinates: the layout of the coordinates, a tree of shapes, where there is no fit to tell it.

    Raises:
        TypeError: not a structure.
        ValueError: the matrix is too large, the structure does not suit it, or the layout of its coordinates is not known.
        NoRule: `expand` or `dense` does what SymPy is told nothing of.

    Example:
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
    if not _entries(coords):
        raise ValueError(f"derive: {structure} has no coordinates at {m} x {n}, so there is nothing to derive.")
    _require_one_member(structure, Params(at, coords))
    spectral = isinstance(structure, Spectrum)
    F = diagonal_fisher(positive("V", m, n)) if spectral else any_fisher(m, n)
    squared = error(structure, Params(at, coords), F)
    found = stationary(squared, [list(np.ravel(leaf)) for leaf in jax.tree.leaves(coords)])
    shipped, verdict, ok = _held(structure, F, at, found, coords)
    return Derived(structure, (m, n), coords, squared, found, shipped, verdict, ok)


def _layout(structure: Structure, shape: tuple[int, int], given: Any) -> Tree:
    """The shapes of the coordinates."""
    if given is not None:
        return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, float), given, is_leaf=_is_shape)
    try:
        return jax.eval_shape(lambda: blank(structure, shape, "fits"))[1]
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


def _held(structure: Structure, F: DenseFisher, at: Frame, found: Stationary, coords: Tree) -> tuple[Tree | None, str, bool]:
    """The shipped fit, what is true of it, and whether it may stand."""
    try:
        member = fitted(structure, F, at)
        slopes = slope(structure, member, F)
    except NoRule as error:
        why = "it iterates" if structure.claim is Claim.LIMIT else str(error).partition(". ")[0].removeprefix("symbolic: ")
        return None, *_measured(structure, F.shape, why)
    except NotImplementedError:
        return None, "none to verify", True
    return member.coords, *_judged(structure, F, member, slopes, found, coords)


def _judged(
    structure: Structure, F: DenseFisher, member: Params, slopes: Tree, found: Stationary, coords: Tree
) -> tuple[str, bool]:
    if _vanishes(slopes):
        if found.closed and not _equals(structure, member, found, coords, F):
            return _refused(member, found, coords), False
        verdict, ok = _in_every_basis(structure, F)
        return verdict if found.closed else f"{verdict}; that it is the least of them is not shown here", ok
    own = error(structure, Params(member.frame, coords), F, objective)
    depends = bool(own.free_symbols & set(_entries(coords)))
    if structure.claim in (Claim.BOUND, Claim.OTHER) and depends and _vanishes(slope(structure, member, F, objective)):
        return f"proved: the structure's own objective is stationary there ({structure.claim.value}), this gap is not", True
    if structure.claim is Claim.LIMIT and not found.closed:
        return _measured(structure, F.shape, "it is exact in the limit only", _solved_blocks(slopes, coords))
    return _refused(member, found, coords), False


def _equals(structure: Structure, member: Params, found: Stationary, coords: Tree, F: DenseFisher) -> bool:
    """Whether the fit is the solution, or as near where coordinates are redundant: a stationary point may be a maximum."""
    solved = dict(zip(_entries(coords), _entries(coords), strict=True)) | found.solution
    best = jax.tree.map(lambda leaf: _each(lambda c: solved[c], leaf), coords)
    return is_zero(error(structure, member, F) - error(structure, Params(member.frame, best), F))


def _solved_blocks(slopes: Tree, coords: Tree) -> str:
    """Which blocks the fit solves given the others, in words."""
    pairs = zip(jax.tree.leaves(coords), jax.tree.leaves(slopes), strict=True)
    names = [_plain(np.ravel(c)[0]).partition("_")[0] for c, slope in pairs if _vanishes(slope)]
    return f"proved: block {' and '.join(names)} solves its equations given the others; " if names else ""


def _require_one_member(structure: Structure, params: Params) -> None:
    """Refuse a family whose `dense` is not what its `into`, `eigenvalues` and `out` do: there are two definitions.

    Raises:
        ValueError: they disagree.
    """
    G = symbols("G", *params.frame.shape)
    applied = symbolic(lambda params, G: structure.apply(params, G))(params, G)
    written = symbolic(lambda params, G: unvec(structure.dense(params) @ vec(G), G.shape))(params, G)
    if not _vanishes(applied - written):
        raise ValueError(
            f"derive: {structure} has two definitions: `dense` times vec(G) is not what `into`, the eigenvalues (`expand`) and "
            "`out` make of G. Correct either; fl.check names the law."
        )


def _in_every_basis(structure: Structure, F: DenseFisher) -> tuple[str, bool]:
    """The same in turned bases, where there are any and small ones."""
    bases = jax.tree.leaves(structure.frame(*F.shape))
    if not bases:
        return "proved: it solves the equations, for all entries at this size", True
    if any(U.ndim > 1 and U.shape[-2] > TURNED_UP_TO for U in bases):
        return "proved: it solves the equations, for all entries at this size, in the first frame alone", True
    turned = frame(structure, *F.shape)
    if _vanishes(slope(structure, fitted(structure, F, turned), F)):
        return "proved: it solves the equations, for all entries at this size, in every basis", True
    return (
        "refused: it solves the equations in the first frame, and not in turned bases; look at `stats`, `into` and `dense`",
        False,
    )


def _measured(structure: Structure, shape: tuple[int, int], why: str, known: str = "") -> tuple[str, bool]:
    """The slope at the fit of one Fisher, relative to its terms, where it cannot be had as an expression."""
    with jax.enable_x64(True):
        F = Fisher.from_gradients(np.random.default_rng(0).normal(size=(3 * shape[0] * shape[1], *shape)) ** 2)
        if isinstance(structure, Spectrum):
            F = DenseFisher(F.kind, F.normalisation, jnp.diag(jnp.diagonal(F.dense())), shape)
        member = fit(structure, F)

        def slope_from(F: Fisher) -> Any:
            return jax.grad(lambda coords: squared_error(structure, Params(member.frame, coords), F))(member.coords)

        nothing = DenseFisher(F.kind, F.normalisation, jnp.zeros_like(F.dense()), shape)
        sizes = [max(float(jnp.abs(g).max()) for g in jax.tree.leaves(slope_from(other))) for other in (F, nothing)]
        gaps = [float(gap(structure, p, F).relative) for p in (member, solve(structure, F, key=jax.random.key(0)).params)]
    relative = sizes[0] / sizes[1] if sizes[1] else float("inf")
    if relative <= AT_ROUNDING and gaps[0] <= gaps[1] + AT_ROUNDING:
        return f"{known}measured, not proved, as {why}: its slope is {relative:.0e} of its terms at one Fisher", True
    if known and structure.claim is Claim.LIMIT:
        return f"{known}the limit is not reached, its slope {relative:.0e} of its terms at one Fisher", gaps[0] < gaps[1] + NEAR
    measured = f"its slope is {relative:.0e} of its terms, its relative gap {gaps[0]:.3g} where {gaps[1]:.3g} was found"
    return f"refused: {why}, and at one Fisher {measured}", False


def _refused(member: Params, found: Stationary, coords: Tree) -> str:
    """The first equation that the fit breaks, and what it has there."""
    given = dict(zip(_entries(coords), _entries(member.coords), strict=True))
    for c, value in found.solution.items():
        right = value.subs(given, simultaneous=True)
        if not is_zero(right - given[c]):
            return f"refused: {_plain(c)} = {_plain(value)} is stationary, and fit gives {_plain(sp.factor_terms(given[c]))}"
    broken = [e for e in found.equations if not is_zero(e.lhs.subs(given, simultaneous=True))]
    return f"refused: it does not solve {_plain(broken[0].lhs)} = 0" if broken else "refused: it is not the least gap"


def _vanishes(tree: Tree) -> bool:
    return all(is_zero(entry) for entry in _entries(tree))


def _each(fn: Callable[[Any], Any], leaf: np.ndarray) -> np.ndarray:
    return np.array([fn(entry) for entry in leaf.ravel()], object).reshape(leaf.shape)


def _entries(tree: Tree) -> list[Any]:
    return [entry for leaf in jax.tree.leaves(tree) for entry in np.ravel(np.asarray(leaf, object))]


def _plain(expression: Any) -> str:
    """As one types it: V_11 for V_{11}."""
    return str(expression).replace("_{", "_").replace("}", "")

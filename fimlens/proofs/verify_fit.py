"""Verify that a structure's own `fit` is where its gap is smallest.

A fit that can be traced is put into the equations, which is a proof. A fit that iterates, or stops at a bound, has no short
expression: its gradient is measured at one Fisher instead, and the verdict says so.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp

from fimlens.fisher.dense_form import DenseFisher
from fimlens.fisher.fisher import Fisher
from fimlens.interpreter.identity import is_zero
from fimlens.interpreter.interpret import symbolic
from fimlens.interpreter.values import NoRule, TooLong, require_short
from fimlens.proofs.evaluate import Measure, dense, error, fitted, objective, slope, squared_error
from fimlens.proofs.rounding import accuracy, all_vanish, are_equal, is_rounded, shown, tidy
from fimlens.proofs.stationary import Stationary
from fimlens.proofs.symbols import entries_of, frame
from fimlens.solver.fit import fit, gap, is_member, least_eigenvalue
from fimlens.solver.solve import solve
from fimlens.structure import Claim, Frame, Params, Structure, Tree
from fimlens.structures.spectra import Spectrum

ROTATED_UP_TO = 2  # rows of the bases that are rotated; with larger ones, a fit is verified in the initial frame alone


MEASURED = 1e-9  # bound on a measured gradient, relative to its largest term, and on differences of relative gaps


NEAR = 0.01  # how much larger than the limit's the relative gap may be after a few iterations


LONGEST_FIT = 2000  # operations and operands of a fit that is put into the equations; a longer fit is measured


READABLE = 60  # operations of an expression that is printed


def plain_text(expression: Any) -> str:
    """The expression as one types it: V_11 for V_{11}."""
    return str(shown(expression)).replace("_{", "_").replace("}", "")


def shorten(expression: Any, place: str) -> str:
    """The expression as text or, if it is too long to read, a reference to the attribute that has it."""
    readable = sp.count_ops(expression) <= READABLE
    return plain_text(expression) if readable else f"an expression too long to print; see {place}"


def verify_fit(
    structure: Structure, F: DenseFisher, at: Frame, found: Stationary, coords: Tree
) -> tuple[Tree | None, str, bool]:
    """Compare the shipped fit with the stationary points of the gap.

    Args:
        structure: the structure.
        F: the Fisher in symbols that the gap was formed for.
        at: the initial frame.
        found: the stationary points of the gap.
        coords: the symbols of the coordinates.

    Returns:
        The coordinates of the fit (None if it cannot be traced), the verdict as text, and whether the fit passes.
    """
    try:
        member = fitted(structure, F, at)
        require_short(entries_of(member.coords), LONGEST_FIT)
        slopes = slope(structure, member, F)
    except TooLong as error:
        return None, *_measure(structure, F.shape, _cause(error), stops=True)
    except NoRule as error:
        why = "it iterates" if structure.claim is Claim.LIMIT else _cause(error)
        return None, *_measure(structure, F.shape, why)
    except NotImplementedError:
        return None, "there is no fit to verify", True
    verdict, ok = _decide(structure, F, member, slopes, found, coords)
    if is_rounded(entries_of((member.coords, dense(structure, Params(at, coords))))):
        to = f"equal to {accuracy(entries_of(slopes), _terms(structure, member, F))}, not proved, as its constants are rounded"
        verdict = verdict.replace("proved", to, 1) if verdict.startswith("proved") else verdict
        member = Params(member.frame, jax.tree.map(lambda leaf: _map_entries(tidy, leaf), member.coords))
    return member.coords, verdict, ok


def _cause(error: NoRule) -> str:
    """The cause that the message of a NoRule names, without the remedies."""
    return str(error).partition(". ")[0].removeprefix("symbolic: ")


def _decide(
    structure: Structure, F: DenseFisher, member: Params, slopes: Tree, found: Stationary, coords: Tree
) -> tuple[str, bool]:
    """The verdict on a fit that was traced, given the gradient of the gap there."""
    terms = partial(_terms, structure, member, F)
    if all_vanish(entries_of(slopes), terms):
        # A stationary point may be a maximum, so a closed form must also have the same gap as the fit.
        if found.closed and not _has_gap_of(found, structure, member, coords, F):
            return _explain_refusal(member, found, coords), False
        if negative := _negative_eigenvalue(structure, member, F):
            return f"refused: the fit solves the equations, but {negative}", False
        verdict, ok = _verify_in_rotated_bases(structure, F)
        return verdict if found.closed else f"{verdict}; that its gap is the smallest is not shown", ok
    own = error(structure, Params(member.frame, coords), F, objective)
    depends = bool(own.free_symbols & set(entries_of(coords)))  # a constant objective is stationary everywhere
    owns = structure.claim in (Claim.BOUND, Claim.OTHER) and depends
    if owns and all_vanish(entries_of(slope(structure, member, F, objective)), partial(terms, objective)):
        if negative := _negative_eigenvalue(structure, member, F):
            return f"refused: the structure's own objective is stationary at the fit, but {negative}", False
        return (
            f"proved: the structure's own objective is stationary at the fit ({structure.claim.value}); this gap is not",
            True,
        )
    bounded = any(c.has(sp.Max, sp.Min) for c in entries_of(member.coords))
    blocks = _solved_blocks(slopes, coords, terms) if structure.claim is Claim.LIMIT and not found.closed else ""
    if structure.claim in (Claim.EXACT, Claim.LIMIT) and bounded and not blocks:
        return _measure(structure, F.shape, "it stops at a bound in places", stops=True)
    if structure.claim is Claim.LIMIT and not found.closed:
        return _measure(structure, F.shape, "it is exact in the limit only", blocks)
    return _explain_refusal(member, found, coords), False


def _has_gap_of(found: Stationary, structure: Structure, member: Params, coords: Tree, F: DenseFisher) -> bool:
    """Whether the fit has the gap of the solution. Equal coordinates would be too much to ask: they may be redundant."""
    solved = dict(zip(entries_of(coords), entries_of(coords), strict=True)) | found.solution
    best = jax.tree.map(lambda leaf: _map_entries(lambda c: solved[c], leaf), coords)
    gaps = [error(structure, p, F) for p in (member, Params(member.frame, best))]
    # Both gaps may be zero to rounding, so the size of F~ is what their difference is measured by.
    return all_vanish([gaps[0] - gaps[1]], lambda: [*gaps, error(structure, member, replace(F, matrix=F.matrix * 0))])


def _negative_eigenvalue(structure: Structure, member: Params, F: DenseFisher) -> str:
    """Say which eigenvalue of the fit can be negative, or return an empty string.

    Tries diagonal Fishers with one entry a thousand times the others.
    """
    size = len(F.matrix)
    diagonal = [F.matrix[k, k] for k in range(size)]
    off = {entry: 0 for entry in F.matrix[~np.eye(size, dtype=bool)] if entry != 0}
    for value in entries_of(symbolic(structure.eigenvalues)(member)):
        for large in diagonal if not value.is_nonnegative else []:
            if value.subs(off | {d: 1000 if d == large else 1 for d in diagonal}).is_negative:
                negative, large = shorten(value, ".shipped"), plain_text(large)
                return (
                    f"its eigenvalue {negative} is negative where {large} is much larger than the others; no Fisher has a "
                    "negative eigenvalue, so the smallest allowed gap is at a bound there"
                )
    return ""


def _solved_blocks(slopes: Tree, coords: Tree, terms: Callable[[], list[sp.Expr]]) -> str:
    """Say which blocks of coordinates the fit solves given the others, or return an empty string."""
    pairs = zip(jax.tree.leaves(coords), jax.tree.leaves(slopes), strict=True)
    names = [plain_text(np.ravel(c)[0]).rpartition("_")[0] for c, slope in pairs if all_vanish(entries_of(slope), terms)]
    return f"proved: block {' and '.join(names)} solves its equations given the others; " if names else ""


def _verify_in_rotated_bases(structure: Structure, F: DenseFisher) -> tuple[str, bool]:
    """The verdict on a fit that solves the equations in the initial frame: verify small bases rotated, too."""
    proved = "proved: the fit solves the equations, for all entries at this size"
    bases = jax.tree.leaves(structure.frame(*F.shape))
    if not bases:
        return proved, True
    if any(U.ndim > 1 and U.shape[-2] > ROTATED_UP_TO for U in bases):
        return f"{proved}, in the initial frame alone", True
    rotated = frame(structure, *F.shape)
    member = fitted(structure, F, rotated)
    if all_vanish(entries_of(slope(structure, member, F)), partial(_terms, structure, member, F)):
        return f"{proved}, in every basis", True
    return (
        "refused: the fit solves the equations in the initial frame but not in rotated bases; check `stats`, `to_eigenbasis` "
        "and `dense`",
        False,
    )


def _measure(structure: Structure, shape: tuple[int, int], why: str, known: str = "", stops: bool = False) -> tuple[str, bool]:
    """The verdict on a fit that is not an expression: measure the gradient of the gap at the fit of one Fisher.

    Args:
        structure: the structure.
        shape: rows and columns of the matrix.
        why: why the fit is measured, a clause about the fit.
        known: a verdict on a part of the fit, which is proved.
        stops: the fit stops after a number of iterations. It may then, as with `known`, stay near the limit that it claims.
    """
    with jax.enable_x64(True):
        uneven = 1 / (1 + np.add.outer(*map(np.arange, shape)))  # so that a fit with bounds meets them
        F = Fisher.from_gradients(uneven * np.random.default_rng(0).normal(size=(3 * shape[0] * shape[1], *shape)) ** 2)
        if isinstance(structure, Spectrum):
            F = DenseFisher(F.kind, F.normalisation, jnp.diag(jnp.diagonal(F.dense())), shape)
        member = fit(structure, F)
        if not is_member(structure, member):
            least = f"{least_eigenvalue(structure, member):.2g} of the largest, and no Fisher has a negative eigenvalue"
            return f"refused: {why}, and at one Fisher an eigenvalue is {least}", False

        def slope_from(F: Fisher) -> Any:
            return jax.grad(lambda coords: squared_error(structure, Params(member.frame, coords), F))(member.coords)

        def largest(tree: Any) -> float:
            return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))

        # The gradient is a difference of two terms; that of F = 0 is the first of them, and sets the scale for rounding errors.
        nothing = DenseFisher(F.kind, F.normalisation, jnp.zeros_like(F.dense()), shape)
        # A coordinate of exactly 0 is at its bound, where the gap may still fall in the direction that is not allowed.
        free = jax.tree.map(lambda c, g: jnp.where(c == 0, jnp.minimum(g, 0), g), member.coords, slope_from(F))
        terms = largest(slope_from(nothing))
        relative = largest(free) / terms if terms else float("inf")
        gaps = [float(gap(structure, p, F).relative) for p in (member, solve(structure, F, key=jax.random.key(0)).params)]
    measured = f"measured, not proved, because {why}: "
    slope_text = f"at one Fisher the gradient is {relative:.0e} of its terms"
    any_basis = structure.claim in (Claim.EXACT, Claim.LIMIT)  # the other claims hold for the given bases only
    if relative <= MEASURED and (not any_basis or gaps[0] <= gaps[1] + MEASURED):
        return f"{known}{measured}{slope_text}", True
    if (known or stops) and structure.claim is Claim.LIMIT:
        return f"{known or measured}the limit is not reached, {slope_text}", gaps[0] < gaps[1] + NEAR
    gap_text = f"the relative gap is {gaps[0]:.3g} while `solve` reaches {gaps[1]:.3g}"
    return f"refused: {why}, and {slope_text}; {gap_text}", False


def _explain_refusal(member: Params, found: Stationary, coords: Tree) -> str:
    """The first equation that the fit does not solve, with the value that the fit has."""
    given = dict(zip(entries_of(coords), entries_of(member.coords), strict=True))
    for c, value in found.solution.items():
        right = value.subs(given, simultaneous=True)
        if not are_equal(right, given[c]):
            actual = shorten(sp.factor_terms(tidy(given[c])), ".shipped")
            return f"refused: the gap is stationary at {plain_text(c)} = {shorten(value, '.found')}, but fit gives {actual}"
    broken = [e for e in found.equations if not is_zero(e.lhs.subs(given, simultaneous=True))]
    if broken:
        return f"refused: the fit does not solve {shorten(broken[0].lhs, '.found')} = 0"
    return "refused: the gap of the fit is not the smallest"


def _terms(structure: Structure, member: Params, F: DenseFisher, measure: Measure = squared_error) -> list[sp.Expr]:
    """One of the two terms that a slope is the difference of, which sets the scale for rounding: the slope at F = 0."""
    return entries_of(slope(structure, member, replace(F, matrix=F.matrix * 0), measure))


def _map_entries(fn: Callable[[Any], Any], leaf: np.ndarray) -> np.ndarray:
    return np.array([fn(entry) for entry in leaf.ravel()], object).reshape(leaf.shape)

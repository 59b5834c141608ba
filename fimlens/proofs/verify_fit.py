"""Verify that a structure's own `fit` is where its gap is smallest.

A fit that can be traced is put into the equations, which is a proof. A fit that iterates, or stops at a bound, has no short
expression: its gradient is measured at one Fisher instead, and the verdict says so.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
import sympy as sp

from fimlens.divergence import Divergence
from fimlens.fisher.dense_form import DenseFisher
from fimlens.interpreter.identity import is_zero
from fimlens.interpreter.interpret import symbolic
from fimlens.interpreter.values import NoRule, TooLong, require_short
from fimlens.proofs.evaluate import dense, eigenbasis, error, fitted, objective, slope, stationarity
from fimlens.proofs.measure_fit import measure_fit
from fimlens.proofs.rounding import accuracy, all_vanish, are_equal, is_rounded, shown, tidy
from fimlens.proofs.stationary import Stationary, is_whole
from fimlens.proofs.symbols import entries_of, frame
from fimlens.structure import Claim, Frame, Params, Structure, Tree

ROTATED_UP_TO = 2  # rows of the bases that are rotated; with larger ones, a fit is verified in the initial frame alone


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
    structure: Structure, divergence: Divergence, F: DenseFisher, at: Frame, found: Stationary, coords: Tree
) -> tuple[Tree | None, str, bool]:
    """Compare the shipped fit with the stationary points of the gap.

    Args:
        structure: the structure.
        divergence: the divergence of the gap.
        F: the Fisher in symbols that the gap was formed for.
        at: the initial frame.
        found: the stationary points of the gap.
        coords: the symbols of the coordinates.

    Returns:
        The coordinates of the fit (None if it cannot be traced), the verdict as text, and whether the fit passes.
    """
    shipped, verdict, ok = _verify(structure, divergence, F, at, found, coords)
    if not ok and structure.claim_in(divergence) is None:
        return shipped, f"not verified: the fit is for {structure.divergence}, and claims nothing in {divergence}", True
    return shipped, verdict, ok


def _verify(
    structure: Structure, divergence: Divergence, F: DenseFisher, at: Frame, found: Stationary, coords: Tree
) -> tuple[Tree | None, str, bool]:
    measured = partial(measure_fit, structure, divergence, F.shape)
    slopes_of = symbolic(partial(stationarity, structure, divergence))
    try:
        if not is_whole(divergence.degree):
            return None, *measured(f"the degree of {divergence}, {divergence.degree}, is no whole number")
        member = fitted(structure, F, at)
        require_short(entries_of(member.coords), LONGEST_FIT)
        slopes = slopes_of(member, F)
    except TooLong as error:
        return None, *measured(_cause(error), stops=True)
    except NoRule as error:
        why = "it iterates" if structure.claim is Claim.LIMIT else _cause(error)
        return None, *measured(why)
    except NotImplementedError:
        return None, "there is no fit to verify", True
    terms = lambda: entries_of(slopes_of(member, _zero(F)))  # noqa: E731
    verdict, ok = _decide(structure, divergence, F, member, (slopes, terms), found, coords)
    if is_rounded(entries_of((member.coords, dense(structure, Params(at, coords))))):
        to = f"equal to {accuracy(entries_of(slopes), terms())}, not proved, as its constants are rounded"
        verdict = verdict.replace("proved", to, 1) if verdict.startswith("proved") else verdict
        member = Params(member.frame, jax.tree.map(lambda leaf: _map_entries(tidy, leaf), member.coords))
    return member.coords, verdict, ok


def _cause(error: NoRule) -> str:
    """The cause that the message of a NoRule names, without the remedies."""
    return str(error).partition(". ")[0].removeprefix("symbolic: ")


def _decide(
    structure: Structure,
    divergence: Divergence,
    F: DenseFisher,
    member: Params,
    slopes_and_terms: tuple[Tree, Callable[[], list[sp.Expr]]],
    found: Stationary,
    coords: Tree,
) -> tuple[str, bool]:
    """The verdict on a fit that was traced, given the derivatives of the gap there and the terms that they sum."""
    slopes, terms = slopes_and_terms
    if all_vanish(entries_of(slopes), terms):
        # A stationary point may be a maximum, so a closed form must also have the same eigenvalues as the fit.
        if found.closed and not _has_eigenvalues_of(found, structure, member, coords):
            return _explain_refusal(member, found, coords), False
        if negative := _negative_eigenvalue(structure, member, F):
            return f"refused: the fit solves the equations, but {negative}", False
        verdict, ok = _verify_in_rotated_bases(structure, divergence, F, coords)
        return verdict if found.closed else f"{verdict}; that its gap is the smallest is not shown", ok
    own = error(structure, Params(member.frame, coords), F, objective)
    depends = bool(own.free_symbols & set(entries_of(coords)))  # a constant objective is stationary everywhere
    of_objective = partial(slope, structure, member, measure=objective)
    if (
        structure.claim is Claim.BOUND
        and depends
        and all_vanish(entries_of(of_objective(F)), lambda: entries_of(of_objective(_zero(F))))
    ):
        if negative := _negative_eigenvalue(structure, member, F):
            return f"refused: the structure's own objective is stationary at the fit, but {negative}", False
        return (
            f"proved: the structure's own objective is stationary at the fit ({structure.claim.value}); this gap is not",
            True,
        )
    bounded = any(c.has(sp.Max, sp.Min) for c in entries_of(member.coords))
    blocks = _solved_blocks(slopes, coords, terms) if structure.claim is Claim.LIMIT and not found.closed else ""
    if structure.claim in (Claim.EXACT, Claim.LIMIT) and bounded and not blocks:
        return measure_fit(structure, divergence, F.shape, "it stops at a bound in places", stops=True)
    if structure.claim is Claim.LIMIT and not found.closed:
        return measure_fit(structure, divergence, F.shape, "it is exact in the limit only", blocks)
    return _explain_refusal(member, found, coords), False


def _zero(F: DenseFisher) -> DenseFisher:
    """The Fisher 0, at which a derivative is one of the two terms whose difference it is: it sets the scale for rounding."""
    return replace(F, matrix=F.matrix * 0)


def _has_eigenvalues_of(found: Stationary, structure: Structure, member: Params, coords: Tree) -> bool:
    """Whether the fit has the eigenvalues of the solution. Equal coordinates are too much to ask: they may be redundant."""
    solved = dict(zip(entries_of(coords), entries_of(coords), strict=True)) | found.solution
    best = jax.tree.map(lambda leaf: _map_entries(lambda c: solved[c], leaf), coords)
    both = (entries_of(symbolic(structure.eigenvalues)(Params(member.frame, c))) for c in (member.coords, best))
    return all(are_equal(a, b) for a, b in zip(*both, strict=True))


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


def _verify_in_rotated_bases(structure: Structure, divergence: Divergence, F: DenseFisher, coords: Tree) -> tuple[str, bool]:
    """The verdict on a fit that solves the equations in the initial frame: verify small bases rotated, too."""
    proved = "proved: the fit solves the equations, for all entries at this size"
    bases = jax.tree.leaves(structure.frame(*F.shape))
    if not bases:
        return proved, True
    alone = f"{proved}, in the initial frame alone"
    if any(U.ndim > 1 and U.shape[-2] > ROTATED_UP_TO for U in bases):
        return alone, True
    rotated = frame(structure, *F.shape)
    (B, L), written = eigenbasis(structure, Params(rotated, coords)), dense(structure, Params(rotated, coords))
    same = all_vanish(entries_of(B * L @ B.T - written), lambda: entries_of(written))
    try:
        member, slopes_of = fitted(structure, F, rotated), symbolic(partial(stationarity, structure, divergence))
        slopes = entries_of(slopes_of(member, F))
    except NoRule:  # no sign of a rotated second moment is known
        return alone, same
    if any(c.has(sp.Max, sp.Min) for c in entries_of(member.coords)):
        return alone, same
    if same and all_vanish(slopes, lambda: entries_of(slopes_of(member, _zero(F)))):
        return f"{proved}, in every basis", True
    return (
        "refused: the fit solves the equations in the initial frame but not in rotated bases; check `stats`, `to_eigenbasis` "
        "and `dense`",
        False,
    )


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


def _map_entries(fn: Callable[[Any], Any], leaf: np.ndarray) -> np.ndarray:
    return np.array([fn(entry) for entry in leaf.ravel()], object).reshape(leaf.shape)

"""Whether a structure's own fit is where its gap is least: proved where it can be traced, measured where it iterates or stops
at a bound."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp

from fimlens.fisher.fisher import DenseFisher, Fisher
from fimlens.interpreter.identity import is_zero
from fimlens.interpreter.interpret import symbolic
from fimlens.interpreter.values import NoRule, TooLong, require_short
from fimlens.proofs.evaluate import error, fitted, objective, slope, squared_error
from fimlens.proofs.stationary import Stationary
from fimlens.proofs.symbols import entries_of, frame
from fimlens.solver.fit import fit, gap, is_member, least_eigenvalue
from fimlens.solver.newton import solve
from fimlens.structure import Claim, Frame, Params, Structure, Tree
from fimlens.structures.spectra import Spectrum

TURNED_UP_TO = 2  # sides of the bases in which a fit is verified; larger ones in the first frame alone


AT_ROUNDING = 1e-9  # of a measured slope, relative to its terms, and of relative gaps


NEAR = 0.01  # how far, in relative gap, a fit of a few sweeps may stay from the limit it claims


LONGEST_FIT = 2000  # operations and operands of a fit that is put into the equations; longer ones are measured


READABLE = 60  # operations


def plain(expression: Any) -> str:
    """As one types it: V_11 for V_{11}."""
    return str(expression).replace("_{", "_").replace("}", "")


def brief(expression: Any, place: str) -> str:
    """The same, or where it is kept."""
    short = sp.count_ops(expression) <= READABLE
    return plain(expression) if short else f"an expression too long to print; see {place}"


def held(structure: Structure, F: DenseFisher, at: Frame, found: Stationary, coords: Tree) -> tuple[Tree | None, str, bool]:
    """The shipped fit, what is true of it, and whether it may stand."""
    try:
        member = fitted(structure, F, at)
        require_short(entries_of(member.coords), LONGEST_FIT)
        slopes = slope(structure, member, F)
    except TooLong as error:
        return None, *_measured(structure, F.shape, _cause(error), stops=True)
    except NoRule as error:
        why = "it iterates" if structure.claim is Claim.LIMIT else _cause(error)
        return None, *_measured(structure, F.shape, why)
    except NotImplementedError:
        return None, "none to verify", True
    return member.coords, *_judged(structure, F, member, slopes, found, coords)


def _cause(error: NoRule) -> str:
    return str(error).partition(". ")[0].removeprefix("symbolic: ")


def _judged(
    structure: Structure, F: DenseFisher, member: Params, slopes: Tree, found: Stationary, coords: Tree
) -> tuple[str, bool]:
    if _vanishes(slopes):
        if found.closed and not _equals(structure, member, found, coords, F):
            return _refused(member, found, coords), False
        if leaves := _leaves_the_cone(structure, member, F):
            return f"refused: it solves the equations, but {leaves}", False
        verdict, ok = _in_every_basis(structure, F)
        return verdict if found.closed else f"{verdict}; that it is the least of them is not shown here", ok
    own = error(structure, Params(member.frame, coords), F, objective)
    depends = bool(own.free_symbols & set(entries_of(coords)))
    if structure.claim in (Claim.BOUND, Claim.OTHER) and depends and _vanishes(slope(structure, member, F, objective)):
        if leaves := _leaves_the_cone(structure, member, F):
            return f"refused: the structure's own objective is stationary there, but {leaves}", False
        return f"proved: the structure's own objective is stationary there ({structure.claim.value}), this gap is not", True
    bounded = any(c.has(sp.Max, sp.Min) for c in entries_of(member.coords))
    blocks = _solved_blocks(slopes, coords) if structure.claim is Claim.LIMIT and not found.closed else ""
    if structure.claim in (Claim.EXACT, Claim.LIMIT) and bounded and not blocks:
        return _measured(structure, F.shape, "it stops at a bound in places", stops=True)
    if structure.claim is Claim.LIMIT and not found.closed:
        return _measured(structure, F.shape, "it is exact in the limit only", blocks)
    return _refused(member, found, coords), False


def _equals(structure: Structure, member: Params, found: Stationary, coords: Tree, F: DenseFisher) -> bool:
    """Whether the fit is the solution, or as near where coordinates are redundant: a stationary point may be a maximum."""
    solved = dict(zip(entries_of(coords), entries_of(coords), strict=True)) | found.solution
    best = jax.tree.map(lambda leaf: _each(lambda c: solved[c], leaf), coords)
    return is_zero(error(structure, member, F) - error(structure, Params(member.frame, best), F))


def _leaves_the_cone(structure: Structure, member: Params, F: DenseFisher) -> str:
    """Where an eigenvalue is negative, in words: at diagonal Fishers, one entry of which is a thousand times the others."""
    size = len(F.matrix)
    diagonal = [F.matrix[k, k] for k in range(size)]
    off = {entry: 0 for entry in F.matrix[~np.eye(size, dtype=bool)] if entry != 0}
    for value in entries_of(symbolic(structure.eigenvalues)(member)):
        for lit in diagonal if not value.is_nonnegative else []:
            if value.subs(off | {d: 1000 if d == lit else 1 for d in diagonal}).is_negative:
                where = f"its eigenvalue {brief(value, '.shipped')} is negative where {plain(lit)} is much larger than others"
                return f"{where}, and no Fisher has one: the least allowed gap is at a bound there"
    return ""


def _solved_blocks(slopes: Tree, coords: Tree) -> str:
    """Which blocks the fit solves given the others, in words."""
    pairs = zip(jax.tree.leaves(coords), jax.tree.leaves(slopes), strict=True)
    names = [plain(np.ravel(c)[0]).rpartition("_")[0] for c, slope in pairs if _vanishes(slope)]
    return f"proved: block {' and '.join(names)} solves its equations given the others; " if names else ""


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
        "refused: it solves the equations in the first frame, and not in turned bases; look at `stats`, `to_eigenbasis` and `dense`",
        False,
    )


def _measured(structure: Structure, shape: tuple[int, int], why: str, known: str = "", stops: bool = False) -> tuple[str, bool]:
    """The slope at the fit of one Fisher, relative to its terms, where it cannot be had as an expression. What `stops` after a
    number of steps, or of which a part is `known`, may stay near the limit that it claims."""
    with jax.enable_x64(True):
        uneven = 1 / (1 + np.add.outer(*map(np.arange, shape)))  # so that bounds are met
        F = Fisher.from_gradients(uneven * np.random.default_rng(0).normal(size=(3 * shape[0] * shape[1], *shape)) ** 2)
        if isinstance(structure, Spectrum):
            F = DenseFisher(F.kind, F.normalisation, jnp.diag(jnp.diagonal(F.dense())), shape)
        member = fit(structure, F)
        if not is_member(structure, member):
            least = f"an eigenvalue is {least_eigenvalue(structure, member):.2g} of the largest, where none may be negative"
            return f"refused: {why}, and at one Fisher {least}", False

        def slope_from(F: Fisher) -> Any:
            return jax.grad(lambda coords: squared_error(structure, Params(member.frame, coords), F))(member.coords)

        def largest(tree: Any) -> float:
            return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))

        nothing = DenseFisher(F.kind, F.normalisation, jnp.zeros_like(F.dense()), shape)
        free = jax.tree.map(lambda c, g: jnp.where(c == 0, jnp.minimum(g, 0), g), member.coords, slope_from(F))  # 0 is a bound
        terms = largest(slope_from(nothing))
        relative = largest(free) / terms if terms else float("inf")
        gaps = [float(gap(structure, p, F).relative) for p in (member, solve(structure, F, key=jax.random.key(0)).params)]
    lead = known or f"measured, not proved, as {why}: "
    of_basis = structure.claim not in (Claim.EXACT, Claim.LIMIT)  # which promises nothing of other bases
    if relative <= AT_ROUNDING and (of_basis or gaps[0] <= gaps[1] + AT_ROUNDING):
        return f"{known}measured, not proved, as {why}: its slope is {relative:.0e} of its terms at one Fisher", True
    if (known or stops) and structure.claim is Claim.LIMIT:
        return f"{lead}the limit is not reached, its slope {relative:.0e} of its terms at one Fisher", gaps[0] < gaps[1] + NEAR
    measured = f"its slope is {relative:.0e} of its terms, its relative gap {gaps[0]:.3g} where {gaps[1]:.3g} was found"
    return f"refused: {why}, and at one Fisher {measured}", False


def _refused(member: Params, found: Stationary, coords: Tree) -> str:
    """The first equation that the fit breaks, and what it has there."""
    given = dict(zip(entries_of(coords), entries_of(member.coords), strict=True))
    for c, value in found.solution.items():
        right = value.subs(given, simultaneous=True)
        if not is_zero(right - given[c]):
            gives = brief(sp.factor_terms(given[c]), ".shipped")
            return f"refused: {plain(c)} = {brief(value, '.found')} is stationary, and fit gives {gives}"
    broken = [e for e in found.equations if not is_zero(e.lhs.subs(given, simultaneous=True))]
    return f"refused: it does not solve {brief(broken[0].lhs, '.found')} = 0" if broken else "refused: it is not the least gap"


def _vanishes(tree: Tree) -> bool:
    return all(is_zero(entry) for entry in entries_of(tree))


def _each(fn: Callable[[Any], Any], leaf: np.ndarray) -> np.ndarray:
    return np.array([fn(entry) for entry in leaf.ravel()], object).reshape(leaf.shape)

"""Whether a structure's own fit is where its gap is least: proved where it can be traced, measured where it iterates."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp

from fimlens._fit import fit, gap
from fimlens._identity import is_zero
from fimlens._solve import solve
from fimlens._stationary import Stationary
from fimlens._symbolic import NoRule
from fimlens.fisher import DenseFisher, Fisher
from fimlens.proof import (
    entries_of,
    error,
    fitted,
    frame,
    objective,
    slope,
    squared_error,
)
from fimlens.structure import Claim, Frame, Params, Structure, Tree
from fimlens.structures.spectra import Spectrum

TURNED_UP_TO = 2  # sides of the bases in which a fit is verified; larger ones in the first frame alone
AT_ROUNDING = 1e-9  # of a measured slope, relative to its terms
NEAR = 0.01  # how far, in relative gap, a fit of a few sweeps may stay from the limit it claims


def plain(expression: Any) -> str:
    """As one types it: V_11 for V_{11}."""
    return str(expression).replace("_{", "_").replace("}", "")


def held(structure: Structure, F: DenseFisher, at: Frame, found: Stationary, coords: Tree) -> tuple[Tree | None, str, bool]:
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
    depends = bool(own.free_symbols & set(entries_of(coords)))
    if structure.claim in (Claim.BOUND, Claim.OTHER) and depends and _vanishes(slope(structure, member, F, objective)):
        return f"proved: the structure's own objective is stationary there ({structure.claim.value}), this gap is not", True
    if structure.claim is Claim.LIMIT and not found.closed:
        return _measured(structure, F.shape, "it is exact in the limit only", _solved_blocks(slopes, coords))
    return _refused(member, found, coords), False


def _equals(structure: Structure, member: Params, found: Stationary, coords: Tree, F: DenseFisher) -> bool:
    """Whether the fit is the solution, or as near where coordinates are redundant: a stationary point may be a maximum."""
    solved = dict(zip(entries_of(coords), entries_of(coords), strict=True)) | found.solution
    best = jax.tree.map(lambda leaf: _each(lambda c: solved[c], leaf), coords)
    return is_zero(error(structure, member, F) - error(structure, Params(member.frame, best), F))


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
    given = dict(zip(entries_of(coords), entries_of(member.coords), strict=True))
    for c, value in found.solution.items():
        right = value.subs(given, simultaneous=True)
        if not is_zero(right - given[c]):
            return f"refused: {plain(c)} = {plain(value)} is stationary, and fit gives {plain(sp.factor_terms(given[c]))}"
    broken = [e for e in found.equations if not is_zero(e.lhs.subs(given, simultaneous=True))]
    return f"refused: it does not solve {plain(broken[0].lhs)} = 0" if broken else "refused: it is not the least gap"


def _vanishes(tree: Tree) -> bool:
    return all(is_zero(entry) for entry in entries_of(tree))


def _each(fn: Callable[[Any], Any], leaf: np.ndarray) -> np.ndarray:
    return np.array([fn(entry) for entry in leaf.ravel()], object).reshape(leaf.shape)

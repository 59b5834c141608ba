"""Where a gap is stationary: in closed form where its gradient is linear, else block by block, each given the others."""

from typing import NamedTuple

import sympy as sp


class Stationary(NamedTuple):
    """The equations; a value for each coordinate that could be had; whether those values are free of other coordinates; and
    what such a point is."""

    equations: tuple[sp.Eq, ...]
    solution: dict[sp.Symbol, sp.Expr]
    closed: bool
    kind: str


def stationary(gap: sp.Expr, blocks: list[list[sp.Symbol]]) -> Stationary:
    """Solve d gap = 0 for positive coordinates, given in blocks.

    A gap that is a polynomial of the coordinates' roots only, as of a geometric mean, is solved for those.
    """
    coordinates = [c for block in blocks for c in block]
    equations = tuple(sp.Eq(sp.factor(sp.diff(gap, c)), 0, evaluate=False) for c in coordinates)
    of_roots = not gap.is_polynomial(*coordinates)
    if of_roots:
        gap = sp.powdenest(gap.subs({c: c**2 for c in coordinates}, simultaneous=True), force=True)
    if not gap.is_polynomial(*coordinates):
        return Stationary(equations, {}, False, "not known: the gap is no polynomial of the coordinates or of their roots")
    solution = _linear(gap, coordinates)
    if solution is not None:
        kind = _of_quadratic(sp.hessian(gap, coordinates), "the coordinates' roots" if of_roots else "the coordinates")
        if not all(value.is_nonnegative for value in solution.values()):
            kind += "; where a value is negative the least allowed gap is at a bound instead"
        return Stationary(equations, _in_squares(solution, of_roots), True, kind)
    solution = {}
    for block in blocks:
        found = _linear(gap, block)
        solution |= _one_by_one(gap, block) if found is None else found
    closed = len(solution) == len(coordinates) and not any(value.has(*coordinates) for value in solution.values())
    kind = _at_point(sp.hessian(gap, coordinates).subs(solution)) if closed else _of_blocks(gap, blocks)
    return Stationary(equations, _in_squares(solution, of_roots), closed, kind)


def _linear(gap: sp.Expr, block: list[sp.Symbol]) -> dict[sp.Symbol, sp.Expr] | None:
    """The stationary point in these coordinates alone, where their equations are linear. Redundant ones stay free."""
    slopes = sp.Matrix([sp.expand(sp.diff(gap, c)) for c in block])
    matrix = slopes.jacobian(block)
    if matrix.has(*block):
        return None
    found = sp.solve(list(slopes), block, dict=True)
    return {c: sp.factor_terms(sp.cancel(value)) for c, value in found[0].items()} if found else {}


def _one_by_one(gap: sp.Expr, block: list[sp.Symbol]) -> dict[sp.Symbol, sp.Expr]:
    """Each coordinate given the others, where exactly one value is positive."""
    solution = {}
    for c in block:
        slope = sp.Poly(sp.diff(gap, c), c)
        if slope.degree() <= 4:
            values = [value for value in sp.solve(slope.as_expr(), c) if value != 0 and value.is_positive is not False]
            if len(values) == 1:
                solution[c] = values[0]
    return solution


def _in_squares(solution: dict[sp.Symbol, sp.Expr], of_roots: bool) -> dict[sp.Symbol, sp.Expr]:
    if not of_roots:
        return solution
    return {c: (value**2).subs({x: sp.sqrt(x) for x in value.free_symbols & set(solution)}) for c, value in solution.items()}


def _of_quadratic(hessian: sp.Matrix, of: str) -> str:
    if hessian.is_positive_definite:
        return f"the only minimum, the bases given: a convex quadratic of {of}, its Hessian positive definite"
    if hessian.is_positive_semidefinite:
        return (
            "a global minimum, not the only one: the Hessian is constant and positive semi-definite, the coordinates redundant"
        )
    return "not a minimum: the Hessian is constant and indefinite"


def _at_point(hessian: sp.Matrix) -> str:
    if _plainly_positive(hessian):
        return "a strict local minimum, and the only stationary point of positive coordinates"
    return "the only stationary point of positive coordinates; whether it is a minimum is not decided"


def _plainly_positive(hessian: sp.Matrix) -> bool:
    hessian = hessian.applyfunc(sp.factor)
    return hessian.is_diagonal() and all(entry.is_positive for entry in hessian.diagonal())


def _of_blocks(gap: sp.Expr, blocks: list[list[sp.Symbol]]) -> str:
    if all(_plainly_positive(sp.hessian(gap, block)) for block in blocks):
        return "each block's only minimum, given the others; together a stationary point, global only by a theorem of its own"
    return "a stationary point: whether it is a minimum is not decided"

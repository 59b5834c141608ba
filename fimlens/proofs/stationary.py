"""Solve for the stationary points of a gap.

The solution is a closed form if the gradient is linear in the coordinates. Otherwise each block of coordinates is solved given
the others, and the equations describe a fixed point.
"""

from typing import NamedTuple

import sympy as sp


class Stationary(NamedTuple):
    """The stationary points of a gap.

    `equations` say that the gradient vanishes. `solution` has a value for each coordinate that could be solved for. `closed` is
    True if no value contains another coordinate. `kind` says whether the point is a minimum.
    """

    equations: tuple[sp.Eq, ...]
    solution: dict[sp.Symbol, sp.Expr]
    closed: bool
    kind: str


def stationary(gap: sp.Expr, blocks: list[list[sp.Symbol]]) -> Stationary:
    """Find the positive coordinates at which the gradient of the gap vanishes.

    A gap that is not a polynomial of the coordinates, as for a geometric mean, is taken as a polynomial of their square roots.

    Args:
        gap: the squared error as an expression.
        blocks: the coordinates, in groups that are solved for together.
    """
    coordinates = [c for block in blocks for c in block]
    equations = tuple(sp.Eq(sp.factor(sp.diff(gap, c)), 0, evaluate=False) for c in coordinates)
    of_roots = not gap.is_polynomial(*coordinates)
    if of_roots:
        # The coordinates are positive, so `force` may reduce sqrt(c**2) to c.
        gap = sp.powdenest(gap.subs({c: c**2 for c in coordinates}, simultaneous=True), force=True)
    if not gap.is_polynomial(*coordinates):
        return Stationary(
            equations, {}, False, "unknown: the gap is not a polynomial of the coordinates or of their square roots"
        )
    solution = _solve_linear(gap, coordinates)
    if solution is not None:
        kind = _describe_quadratic(
            sp.hessian(gap, coordinates), "the coordinates' square roots" if of_roots else "the coordinates"
        )
        if not all(value.is_nonnegative for value in solution.values()):
            kind += "; if a value is negative, the smallest allowed gap is at a bound instead"
        return Stationary(equations, _squared(solution, of_roots), True, kind)
    solution = {}
    for block in blocks:
        found = _solve_linear(gap, block)
        solution |= _solve_one_by_one(gap, block) if found is None else found
    closed = len(solution) == len(coordinates) and not any(value.has(*coordinates) for value in solution.values())
    kind = _describe_point(sp.hessian(gap, coordinates).subs(solution)) if closed else _describe_blocks(gap, blocks)
    return Stationary(equations, _squared(solution, of_roots), closed, kind)


def _solve_linear(gap: sp.Expr, block: list[sp.Symbol]) -> dict[sp.Symbol, sp.Expr] | None:
    """The stationary point in this block alone, or None if its equations are not linear. Redundant coordinates stay free."""
    slopes = sp.Matrix([sp.expand(sp.diff(gap, c)) for c in block])
    matrix = slopes.jacobian(block)
    if matrix.has(*block):
        return None
    found = sp.solve(list(slopes), block, dict=True)
    return {c: sp.factor_terms(sp.cancel(value)) for c, value in found[0].items()} if found else {}


def _solve_one_by_one(gap: sp.Expr, block: list[sp.Symbol]) -> dict[sp.Symbol, sp.Expr]:
    """Solve for each coordinate given all others; leave out a coordinate without exactly one positive value."""
    solution = {}
    for c in block:
        slope = sp.Poly(sp.diff(gap, c), c)
        if slope.degree() <= 4:  # quintic equations have no solution in radicals
            values = [value for value in sp.solve(slope.as_expr(), c) if value != 0 and value.is_positive is not False]
            if len(values) == 1:
                solution[c] = values[0]
    return solution


def _squared(solution: dict[sp.Symbol, sp.Expr], of_roots: bool) -> dict[sp.Symbol, sp.Expr]:
    """The values of the coordinates from those of their square roots."""
    if not of_roots:
        return solution
    # A value may contain other coordinates, which also stand for their roots.
    return {c: (value**2).subs({x: sp.sqrt(x) for x in value.free_symbols & set(solution)}) for c, value in solution.items()}


def _describe_quadratic(hessian: sp.Matrix, variables: str) -> str:
    """Say what the stationary point of a quadratic is."""
    if hessian.is_positive_definite:
        return f"the only minimum for these bases: the gap is a strictly convex quadratic of {variables}"
    if hessian.is_positive_semidefinite:
        return (
            "a global minimum, but not the only one: the Hessian is constant and positive semi-definite, so coordinates are "
            "redundant"
        )
    return "not a minimum: the Hessian is constant and indefinite"


def _describe_point(hessian: sp.Matrix) -> str:
    """Say what the only stationary point of a gap that is not quadratic is."""
    if _is_positive_diagonal(hessian):
        return "a strict local minimum, and the only stationary point with positive coordinates"
    return "the only stationary point with positive coordinates; whether it is a minimum is not decided"


def _is_positive_diagonal(hessian: sp.Matrix) -> bool:
    # SymPy decides definiteness of symbolic matrices slowly or not at all, so only diagonal ones are recognised.
    hessian = hessian.applyfunc(sp.factor)
    return hessian.is_diagonal() and all(entry.is_positive for entry in hessian.diagonal())


def _describe_blocks(gap: sp.Expr, blocks: list[list[sp.Symbol]]) -> str:
    """Say what a point is that solves each block given the others."""
    if all(_is_positive_diagonal(sp.hessian(gap, block)) for block in blocks):
        return "the only minimum of each block given the others; that it is a global minimum needs a theorem of its own"
    return "a stationary point; whether it is a minimum is not decided"

"""Solve for the stationary points of a gap.

The solution is a closed form if the equations are linear in the coordinates, apart from factors that cannot vanish. Otherwise
each block of coordinates is solved given the others, and the equations describe a fixed point.
"""

from typing import NamedTuple

import sympy as sp

from fimlens.divergence import Divergence

Values = dict[sp.Symbol, sp.Expr]  # of the coordinates


class Stationary(NamedTuple):
    """The stationary points of a gap.

    `equations` say that the gradient vanishes. `solution` has a value for each coordinate that could be solved for. `closed` is
    True if no value contains another coordinate. `kind` says whether the point is a minimum.
    """

    equations: tuple[sp.Eq, ...]
    solution: Values
    closed: bool
    kind: str


def stationary(slopes: Values, blocks: list[list[sp.Symbol]], divergence: Divergence) -> Stationary:
    """Find the positive coordinates at which the gradient of the gap vanishes.

    Derivatives that are not rational in the coordinates, as for a geometric mean, are taken as functions of their square roots.

    Args:
        slopes: the derivative of the gap with respect to each coordinate.
        blocks: the coordinates, in groups that are solved for together.
        divergence: of the gap. Only a whole degree makes the derivatives rational.
    """
    coordinates = list(slopes)
    equations = tuple(sp.Eq(sp.factor(slope), 0, evaluate=False) for slope in slopes.values())
    if not is_whole(divergence.degree):
        return Stationary(equations, {}, False, f"unknown: the degree of {divergence}, {divergence.degree}, is no whole number")
    of_roots = not all(slope.is_rational_function(*coordinates) for slope in slopes.values())
    if of_roots:
        # The coordinates are positive, so `force` may reduce sqrt(c**2) to c.
        squares = {c: c**2 for c in coordinates}
        slopes = {c: 2 * c * sp.powdenest(e.subs(squares, simultaneous=True), force=True) for c, e in slopes.items()}
    if not all(slope.is_rational_function(*coordinates) for slope in slopes.values()):
        return Stationary(
            equations, {}, False, "unknown: the equations are not rational in the coordinates or their square roots"
        )
    slopes = {c: sp.expand(slope) if slope.is_polynomial(*coordinates) else sp.factor(slope) for c, slope in slopes.items()}
    numerators = {c: _numerator(slope, coordinates) for c, slope in slopes.items()}
    matrix = sp.Matrix(list(slopes.values())).jacobian(coordinates)
    solution = _solve_linear(numerators, coordinates)
    if solution is not None and not matrix.has(*coordinates):
        kind = _describe_quadratic(matrix, "the coordinates' square roots" if of_roots else "the coordinates")
        if not all(value.is_nonnegative for value in solution.values()):
            kind += "; if a value is negative, the smallest allowed gap is at a bound instead"
        return Stationary(equations, _squared(solution, of_roots), True, kind)
    if solution is None:
        solution = {}
        for block in blocks:
            found = _solve_linear(numerators, block)
            solution |= _solve_one_by_one(numerators, block) if found is None else found
    closed = len(solution) == len(coordinates) and not any(value.has(*coordinates) for value in solution.values())
    kind = _describe_point(matrix.subs(solution)) if closed else _describe_blocks(slopes, solution, blocks)
    return Stationary(equations, _squared(solution, of_roots), closed, kind)


def is_whole(degree: float | None) -> bool:
    """Whether a divergence of this degree has rational derivatives."""
    return degree is not None and float(degree).is_integer()


def _numerator(slope: sp.Expr, coordinates: list[sp.Symbol]) -> sp.Expr:
    """The factors of the numerator that may vanish for positive coordinates."""
    if slope.is_polynomial(*coordinates) and sp.Poly(slope, *coordinates).total_degree() <= 1:
        return slope
    # SymPy cannot factor every polynomial with floats, so floats are taken as the fractions that they are, and back.
    numerator = sp.nsimplify(sp.fraction(sp.together(slope))[0], rational=True)
    constant, factors = sp.factor_list(numerator, *coordinates)
    product = constant * sp.Mul(*(factor for factor, _ in factors if not factor.is_positive))
    return sp.N(product) if slope.has(sp.Float) else product


def _solve_linear(numerators: Values, block: list[sp.Symbol]) -> Values | None:
    """The stationary point in this block alone, or None if its equations are not linear. Redundant coordinates stay free."""
    equations = sp.Matrix([sp.expand(numerators[c]) for c in block])
    if equations.jacobian(block).has(*block):
        return None
    found = sp.solve(list(equations), block, dict=True)
    return {c: sp.factor_terms(sp.cancel(value)) for c, value in found[0].items()} if found else {}


def _solve_one_by_one(numerators: Values, block: list[sp.Symbol]) -> Values:
    """Solve for each coordinate given all others; leave out a coordinate without exactly one positive value."""
    solution = {}
    for c in block:
        numerator = sp.Poly(numerators[c], c)
        if numerator.degree() <= 4:  # quintic equations have no solution in radicals
            values = [value for value in sp.solve(numerator.as_expr(), c) if value != 0 and value.is_positive is not False]
            if len(values) == 1:
                solution[c] = values[0]
    return solution


def _squared(solution: Values, of_roots: bool) -> Values:
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


def _describe_blocks(slopes: Values, solution: Values, blocks: list[list[sp.Symbol]]) -> str:
    """Say what a point is that solves each block given the others."""
    if all(_is_positive_diagonal(sp.Matrix([slopes[c] for c in block]).jacobian(block)) for block in blocks) or all(
        _changes_sign_once(slopes[c], c, solution.get(c), block) for block in blocks for c in block
    ):
        return "the only minimum of each block given the others; that it is a global minimum needs a theorem of its own"
    return "a stationary point; whether it is a minimum is not decided"


def _changes_sign_once(slope: sp.Expr, c: sp.Symbol, value: sp.Expr | None, block: list[sp.Symbol]) -> bool:
    """Whether a derivative, which depends on no other coordinate of the block, has the sign of c minus its solution."""
    alone = not slope.has(*(other for other in block if other != c))
    return alone and value is not None and bool(sp.factor(slope / (c - value)).is_positive)

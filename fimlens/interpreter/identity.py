"""Decide whether an expression is identically zero, by arithmetic in a polynomial ring.

The expression is brought to one fraction. Its denominator stays a product of powers of polynomials, and a sum takes the largest
power of each. No greatest common divisor is computed, which is what makes `sympy.simplify` slow. Symbols, functions and roots
are the ring's generators; the d-th power of a d-th root is replaced by its radicand. A zero result proves that the expression
vanishes. A nonzero one is not conclusive if several roots are related: a proof may then fail, but none passes wrongly.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import sympy as sp
from sympy.core.evalf import PrecisionExhausted
from sympy.polys.rings import PolyElement, PolyRing


def is_zero(expression: Any) -> bool:
    """Whether an expression vanishes for all values of its symbols.

    One rational point refutes most expressions that do not vanish, and costs little. The polynomial ring decides the others.
    """
    expression = sp.sympify(expression)
    if not expression.is_commutative:  # the ring is commutative; expansion decides matrix polynomials
        return sp.expand(expression) == 0
    if expression == 0 or refuted(expression):
        return expression == 0
    expression = sp.expand_log(expression).replace(_is_root_of_sum, _split_content)
    return not _Ring(expression).numerator(expression)


def refuted(expression: Any) -> bool:
    """Whether an expression is a nonzero number at one rational point, which proves that it is not identically zero."""
    expression = sp.sympify(expression)
    free = sorted(expression.free_symbols, key=lambda s: s.name)
    value = expression.subs({s: sp.Rational(7 + 3 * k, 5 + 2 * k) for k, s in enumerate(free)})
    if value.is_Rational or not (value.is_number and value.is_finite):
        return bool(value.is_Rational and value != 0)
    try:
        return bool(abs(value.evalf(30, strict=True)) > 0)  # strict: 30 correct digits, or an exception
    except PrecisionExhausted:
        return False


def relative_size(expression: Any, terms: Iterable[Any] = ()) -> float:
    """How large an expression is at the worst of a few points, relative to what it sums: about 1e-16 if only rounding is left.

    Use it for an expression with floats, which `is_zero` cannot decide. SymPy adds floats of like terms at once, so a
    difference no longer shows what it is a difference of: `terms` are those expressions.
    """
    expressions = [sp.sympify(expression), *map(sp.sympify, terms)]
    free = sorted(set().union(*(e.free_symbols for e in expressions)), key=lambda s: s.name)
    points = [{s: 0.5 + (0.6180339887 * (7 * j + k + 1)) % 1 for k, s in enumerate(free)} for j in range(3)]
    try:
        found = [[_value_and_size(e, point) for e in expressions] for point in points]
    except (ArithmeticError, TypeError, ValueError):  # a pole, or a root of a negative number
        return math.inf
    return max(abs(at[0][0]) / (max(size for _, size in at) or 1.0) for at in found)


def _value_and_size(expression: sp.Expr, at: dict[sp.Expr, Any]) -> tuple[float, float]:
    """The value of an expression at a point, and the sum of the sizes of its terms."""
    if not expression.args:
        value = float(at.get(expression, expression))
        return value, abs(value)
    values, sizes = zip(*(_value_and_size(part, at) for part in expression.args), strict=True)
    if expression.is_Add:
        return math.fsum(values), math.fsum(sizes)
    if expression.is_Mul:
        return math.prod(values), math.prod(sizes)
    value = float(expression.func(*values))
    # The relative error of an argument is that of the result, times the power.
    times = abs(values[1]) if expression.is_Pow else 1.0
    growth = max((size / abs(v) if v else 1.0 for v, size in zip(values, sizes, strict=True)), default=1.0)
    return value, abs(value) * growth ** max(times, 1.0)


class Fraction(NamedTuple):
    """A numerator, and the denominator as the power of each of its factors."""

    numerator: PolyElement
    powers: dict[PolyElement, int]


class _Ring:
    """The polynomials in the symbols, functions and roots of one expression."""

    def __init__(self, expression: sp.Expr) -> None:
        degrees: dict[sp.Expr, int] = {}
        _collect_generators(expression, degrees)
        # Long expressions first, so that `numerator` reduces a root before the roots in its radicand.
        self.degrees = dict(sorted(degrees.items(), key=lambda item: (-sp.count_ops(item[0]), str(item[0]))))
        self.ring = PolyRing([sp.Dummy() for _ in degrees], sp.QQ, "lex")
        self.generators = dict(zip(self.degrees, self.ring.gens, strict=True))
        self.seen: dict[sp.Expr, Fraction] = {}

    def numerator(self, expression: sp.Expr) -> PolyElement:
        """The numerator of an expression, in which the power of each root is below its degree."""
        result = self.fraction(expression).numerator
        for base, degree in self.degrees.items():
            if degree > 1 and result:
                result = self._reduce_root(result, self.generators[base], degree, self.fraction(base))
        return result

    def _reduce_root(self, polynomial: PolyElement, x: PolyElement, degree: int, radicand: Fraction) -> PolyElement:
        """Replace each x^degree by the radicand, and multiply the polynomial by a power of the radicand's denominator."""
        place, denominator = self.ring.gens.index(x), self._product(radicand.powers)
        most = polynomial.degree(x) // degree
        total = self.ring.zero
        for monomial, coefficient in polynomial.terms():
            times, rest = divmod(monomial[place], degree)
            term = self.ring({(*monomial[:place], rest, *monomial[place + 1 :]): coefficient})
            total += term * radicand.numerator**times * denominator ** (most - times)
        return total

    def fraction(self, expression: sp.Expr) -> Fraction:
        """The expression as a fraction. Equal subexpressions are converted once."""
        if expression not in self.seen:
            self.seen[expression] = self._fraction(expression)
        return self.seen[expression]

    def _fraction(self, expression: sp.Expr) -> Fraction:
        if expression.is_Rational:
            return Fraction(self.ring(sp.QQ(expression.p, expression.q)), {})
        if expression.is_Add:
            return self._sum([self.fraction(term) for term in expression.args])
        if expression.is_Mul:
            factors = [self.fraction(factor) for factor in expression.args]
            numerator = math.prod((f.numerator for f in factors), start=self.ring.one)
            return Fraction(numerator, _sum_of_powers(*(f.powers for f in factors)))
        if not (expression.is_Pow and expression.exp.is_Rational):
            # The generator is the d-th root of the expression if one occurs (d its degree), else the expression (d = 1).
            return Fraction(self.generators[expression] ** self.degrees[expression], {})
        if expression.exp.is_Integer:
            return self._power(self.fraction(expression.base), int(expression.exp))
        exponent = expression.exp * self.degrees[expression.base]
        return self._power(Fraction(self.generators[expression.base], {}), int(exponent))

    def _sum(self, terms: list[Fraction]) -> Fraction:
        common: dict[PolyElement, int] = {}
        for _, powers in terms:
            common |= {p: max(k, common.get(p, 0)) for p, k in powers.items()}
        total = self.ring.zero
        for numerator, powers in terms:
            total += numerator * self._product({p: k - powers.get(p, 0) for p, k in common.items()})
        return Fraction(total, common)

    def _power(self, base: Fraction, exponent: int) -> Fraction:
        powers = {p: k * abs(exponent) for p, k in base.powers.items()}
        if exponent >= 0:
            return Fraction(base.numerator**exponent, powers)
        if not base.numerator:
            raise ZeroDivisionError("an expression divides by one that vanishes identically")
        return Fraction(self._product(powers), {base.numerator: -exponent})

    def _product(self, powers: dict[PolyElement, int]) -> PolyElement:
        return math.prod((p**k for p, k in powers.items() if k), start=self.ring.one)


def _is_root_of_sum(expression: sp.Expr) -> bool:
    return expression.is_Pow and expression.exp.is_Rational and not expression.exp.is_Integer and expression.base.is_Add


def _split_content(root: sp.Expr) -> sp.Expr:
    """Split constant factors and a positive denominator off a root, so that proportional radicands give one generator.

    For example sqrt(2 a + 2 b/c) becomes sqrt(2) sqrt(a c + b) / sqrt(c) for c > 0.
    """
    numerator, denominator = sp.fraction(sp.together(root.base))
    content, primitive = numerator.as_content_primitive()
    if not (denominator.is_positive and content > 0):  # then the root of a product is not the product of the roots
        return root
    return content**root.exp * primitive**root.exp / denominator**root.exp


def _sum_of_powers(*many: dict[PolyElement, int]) -> dict[PolyElement, int]:
    total: dict[PolyElement, int] = {}
    for powers in many:
        total |= {p: k + total.get(p, 0) for p, k in powers.items()}
    return total


def _collect_generators(expression: sp.Expr, degrees: dict[sp.Expr, int]) -> None:
    """Add an expression's generators to `degrees`: symbols and functions with degree 1, radicands with their roots' degree."""
    if expression.is_Rational:
        return
    if expression.is_Add or expression.is_Mul:
        for part in expression.args:
            _collect_generators(part, degrees)
    elif expression.is_Pow and expression.exp.is_Rational:
        _collect_generators(expression.base, degrees)
        if not expression.exp.is_Integer:
            degrees[expression.base] = math.lcm(degrees.get(expression.base, 1), int(expression.exp.q))
    else:
        degrees.setdefault(expression, 1)

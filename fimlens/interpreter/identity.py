"""Whether an expression vanishes identically, decided in a ring of polynomials.

An expression becomes a polynomial over a product of powers of polynomials, and no common divisor is ever sought: sums take the
least common power of each, which is all that rational rotations ask for. Roots are generators, whose powers are reduced to what
stands under them; so is whatever else is not rational. What comes out as 0 is 0. What does not may, of related roots, still be
0: then a proof fails, but none passes wrongly.
"""

import math
from typing import Any, NamedTuple

import sympy as sp
from sympy.core.evalf import PrecisionExhausted
from sympy.polys.rings import PolyElement, PolyRing


def is_zero(expression: Any) -> bool:
    """Whether it vanishes for all values of its symbols: refuted at one rational point where it can be, else decided."""
    expression = sp.sympify(expression)
    if not expression.is_commutative:
        return sp.expand(expression) == 0
    if expression == 0 or refuted(expression):
        return expression == 0
    expression = sp.expand_log(expression).replace(_is_root_of_sum, _without_content)
    return not _Ring(expression).numerator(expression)


def refuted(expression: Any) -> bool:
    """Whether it is a number other than 0 at one rational point: a proof that it is not identically zero."""
    expression = sp.sympify(expression)
    free = sorted(expression.free_symbols, key=lambda s: s.name)
    value = expression.subs({s: sp.Rational(7 + 3 * k, 5 + 2 * k) for k, s in enumerate(free)})
    if value.is_Rational or not (value.is_number and value.is_finite):
        return bool(value.is_Rational and value != 0)
    try:
        return bool(abs(value.evalf(30, strict=True)) > 0)  # 30 digits that hold, or none
    except PrecisionExhausted:
        return False


class Fraction(NamedTuple):
    """A numerator over a product of powers of polynomials."""

    numerator: PolyElement
    powers: dict[PolyElement, int]


class _Ring:
    """The polynomials in what an expression is made of."""

    def __init__(self, expression: sp.Expr) -> None:
        degrees: dict[sp.Expr, int] = {}  # of the root of each base; 1 for what is no root
        _generators(expression, degrees)
        self.degrees = dict(sorted(degrees.items(), key=lambda item: (-sp.count_ops(item[0]), str(item[0]))))
        self.ring = PolyRing([sp.Dummy() for _ in degrees], sp.QQ, "lex")
        self.generators = dict(zip(self.degrees, self.ring.gens, strict=True))
        self.seen: dict[sp.Expr, Fraction] = {}

    def numerator(self, expression: sp.Expr) -> PolyElement:
        """A numerator of the expression, in which no root stands to its own degree."""
        result = self.fraction(expression).numerator
        for base, degree in self.degrees.items():  # outer roots before those that stand under them
            if degree > 1 and result:
                result = self._reduced(result, self.generators[base], degree, self.fraction(base))
        return result

    def _reduced(self, polynomial: PolyElement, x: PolyElement, degree: int, under: Fraction) -> PolyElement:
        """The polynomial with each x^degree replaced by what is under the root, times a power of that one's denominator."""
        place, below = self.ring.gens.index(x), self._product(under.powers)
        most = polynomial.degree(x) // degree
        total = self.ring.zero
        for monomial, coefficient in polynomial.terms():
            times, rest = divmod(monomial[place], degree)
            term = self.ring({(*monomial[:place], rest, *monomial[place + 1 :]): coefficient})
            total += term * under.numerator**times * below ** (most - times)
        return total

    def fraction(self, expression: sp.Expr) -> Fraction:
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
            return Fraction(numerator, _added(*(f.powers for f in factors)))
        if not (expression.is_Pow and expression.exp.is_Rational):
            return Fraction(self.generators[expression] ** self.degrees[expression], {})  # its root's power, where it has one
        if expression.exp.is_Integer:
            return self._power(self.fraction(expression.base), int(expression.exp))
        whole = expression.exp * self.degrees[expression.base]
        return self._power(Fraction(self.generators[expression.base], {}), int(whole))

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
            raise ZeroDivisionError("an expression divides by what vanishes identically")
        return Fraction(self._product(powers), {base.numerator: -exponent})

    def _product(self, powers: dict[PolyElement, int]) -> PolyElement:
        return math.prod((p**k for p, k in powers.items() if k), start=self.ring.one)


def _is_root_of_sum(expression: sp.Expr) -> bool:
    return expression.is_Pow and expression.exp.is_Rational and not expression.exp.is_Integer and expression.base.is_Add


def _without_content(root: sp.Expr) -> sp.Expr:
    """sqrt(2 a + 2 b/c) = sqrt(2) sqrt(a c + b) / sqrt(c), c positive, so that roots of one sum are one generator."""
    above, below = sp.fraction(sp.together(root.base))
    content, primitive = above.as_content_primitive()
    return content**root.exp * primitive**root.exp / below**root.exp if below.is_positive and content > 0 else root


def _added(*many: dict[PolyElement, int]) -> dict[PolyElement, int]:
    total: dict[PolyElement, int] = {}
    for powers in many:
        total |= {p: k + total.get(p, 0) for p, k in powers.items()}
    return total


def _generators(expression: sp.Expr, degrees: dict[sp.Expr, int]) -> None:
    """Note all that a polynomial ring has to know of an expression: symbols, functions and the bases of roots."""
    if expression.is_Rational:
        return
    if expression.is_Add or expression.is_Mul:
        for part in expression.args:
            _generators(part, degrees)
    elif expression.is_Pow and expression.exp.is_Rational:
        _generators(expression.base, degrees)
        if not expression.exp.is_Integer:
            degrees[expression.base] = math.lcm(degrees.get(expression.base, 1), int(expression.exp.q))
    else:
        degrees.setdefault(expression, 1)

"""Expressions whose constants are rounded: decided to rounding, tidied, and printed short.

A constant such as cos(2 pi / 3) reaches a proof as a float. What follows from it is known to rounding alone, and is never
called proved.
"""

import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

import sympy as sp

from fimlens.interpreter.identity import is_zero, relative_size

ROUNDING = 1e-13  # the largest relative difference that rounding explains, after some hundred operations in float64
DIGITS = 4  # of a rounded constant, in print
LARGEST = 10**6  # numerator and denominator of a fraction that is printed in full


def is_rounded(expressions: Iterable[Any]) -> bool:
    """Whether an expression has a float or a function of a number, such as cos(1/10), so that it is decided to rounding alone.

    The polynomial ring takes such functions for unrelated generators: it does not know that sin^2 + cos^2 = 1.
    """
    exprs = map(sp.sympify, expressions)
    return any(e.has(sp.Float) or any(f.is_number for f in e.atoms(sp.Function)) for e in exprs)


def are_equal(a: Any, b: Any) -> bool:
    """Whether two expressions are equal: identically or, if they have rounded constants, up to their rounding."""
    return is_zero(a - b) or (is_rounded([a, b]) and relative_size(a - b, [a, b]) <= ROUNDING)


def all_vanish(differences: Iterable[Any], terms: Callable[[], Iterable[Any]]) -> bool:
    """Whether differences vanish: identically or, if they have rounded constants, beside terms that they are differences of."""
    left = [difference for difference in differences if not is_zero(difference)]
    if not left or not is_rounded(left):
        return not left
    of = list(terms())
    return all(relative_size(difference, of) <= ROUNDING for difference in left)


def accuracy(expressions: Iterable[Any], terms: Iterable[Any]) -> str:
    """To what accuracy differences of terms vanish, as a power of ten: 1e-15."""
    terms = list(terms)
    return f"1e{math.ceil(math.log10(max([1e-15, *(relative_size(e, terms) for e in expressions)])))}"


def tidy(expression: Any) -> Any:
    """The sum with each float coefficient replaced by a fraction that it equals to rounding, and without terms of rounding.

    Coefficients are compared with the largest, because that is what their rounding errors are relative to.
    """
    expression = sp.sympify(expression).replace(lambda e: e.is_Pow and e.base.is_Add, lambda e: tidy(e.base) ** e.exp)
    if not is_rounded([expression]):
        return expression
    terms = sp.expand(expression).as_coefficients_dict()
    unit = max(abs(c) for c in terms.values()) * ROUNDING
    return sp.Add(*(_nearest(c, unit) * term for term, c in terms.items()))


def _nearest(c: Any, unit: Any) -> Any:
    """A fraction of small denominator within this distance of a float coefficient; without one, the float."""
    if not isinstance(c, sp.Float):
        return c
    near = Fraction(float(c)).limit_denominator(1000)
    fraction = sp.Rational(near.numerator, near.denominator)
    return fraction if abs(fraction - c) <= unit else c


def shown(expression: Any) -> Any:
    """The expression as it is printed: rounded constants, and fractions of many digits, with four digits."""

    def is_long(x: Any) -> bool:
        return isinstance(x, sp.Float) or (x.is_Rational and max(abs(x.p), x.q) > LARGEST and x.q & (x.q - 1) == 0)

    numbers = {x for x in sp.sympify(expression).atoms(sp.Number) if is_long(x)}
    return sp.sympify(expression).xreplace({x: sp.Float(x, DIGITS) for x in numbers})

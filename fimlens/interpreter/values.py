"""The values of the interpreter, arrays of SymPy expressions, and the errors that it raises.

A value is a NumPy array. Floating-point data become expressions (dtype object). A float that someone may have written down,
such as 0.5, 0.1, 1e-8 or 1/3, becomes that rational number. Any other, such as cos(1), is the rounding of a number that it does
not tell, and stays a SymPy float. What has one is known to rounding, and nothing is proved of it. Integers and booleans keep
their dtype: they are indices and conditions, and have one known value.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

import jax.numpy as jnp
import numpy as np
import sympy as sp

Values = np.ndarray  # dtype object (SymPy expressions, or comparisons of them that are open), integer or boolean

Rule = Callable[..., Any]  # (equation of a jaxpr, *operands) -> the result, or the list of results


class NoRule(NotImplementedError):
    """The interpreter cannot evaluate a function on expressions.

    Either a primitive has no rule, or the result depends on a sign that the symbols' assumptions leave open.

    Examples:
        >>> import jax.numpy as jnp, sympy, fimlens as fl
        >>> try:
        ...     fl.symbolic(jnp.linalg.eigvalsh)(sympy.diag(*sympy.symbols("a b")))
        ... except fl.NoRule as error:
        ...     print(str(error).partition(".")[0])
        symbolic: there is no rule for the primitive 'eigh'
    """


class TooLong(NoRule):
    """An expression grew too long to work with, most often because the function iterates."""


class Undecided(sp.Symbol):
    """The result of a choice by a comparison that is not decided. It may occur in what no result depends on."""


def undecided(comparison: Any) -> NoRule:
    """The error that says that the symbols' assumptions leave a comparison open."""
    return NoRule(
        f"symbolic: the symbols' assumptions do not decide the comparison {str(comparison)[:80]}. Declare signs, as in "
        "sympy.Symbol('v', positive=True)."
    )


def require_decided(values: Values) -> Values:
    """Return the values, and refuse comparisons that are open and expressions that depend on them."""
    for entry in values.flat if values.dtype == object else ():
        if not isinstance(entry, sp.Expr):
            raise undecided(entry)
        for choice in entry.atoms(Undecided):
            raise undecided(choice)
    return values


@lru_cache(2**16)
def size(expression: sp.Basic) -> int:
    """Count the operations and operands of an expression. A shared subexpression counts each time that it occurs."""
    return 1 + sum(map(size, expression.args))


def require_short(entries: Iterable[sp.Basic], most: int) -> None:
    """Refuse expressions that are too long to work with.

    Args:
        entries: the expressions.
        most: the largest allowed `size`.

    Raises:
        TooLong: the size of an expression exceeds `most`.
    """
    if any(size(entry) > most for entry in entries):
        raise TooLong(
            f"symbolic: it iterates too long to write out (over {most:,} terms). Take fewer steps, or a smaller matrix."
        )


DIGITS = 12  # of a decimal constant
BITS = 26  # of a binary one
DENOMINATOR = 1000  # of a fraction; some 3e5 of them are below 1, where there are 5e15 floats, so few are met by chance


def constant(x: float) -> sp.Expr:
    """The rational number that a float stands for, or the float where it stands for none.

    Examples:
        >>> constant(0.1), constant(2 / 3), constant(2.0**-30), constant(math.cos(1))
        (1/10, 2/3, 1/1073741824, 0.540302305868140)
    """
    if not math.isfinite(x):
        return sp.Float(x)  # sp.Rational would turn it into 0 without a word
    binary, decimal = Fraction(x), Fraction(repr(x))
    if binary.numerator.bit_length() <= BITS:
        return sp.Rational(binary.numerator, binary.denominator)
    if len(repr(x).partition("e")[0].replace(".", "").strip("-0")) <= DIGITS:
        return sp.Rational(decimal.numerator, decimal.denominator)
    near = binary.limit_denominator(DENOMINATOR)
    return sp.Rational(near.numerator, near.denominator) if float(near) == x else sp.Float(x)


def exact(leaf: Any) -> Values:
    """Convert floats by `constant`. Expressions, integers and booleans stay as they are.

    Args:
        leaf: a number, an expression, an array of either, or a SymPy matrix.
    """
    array = np.asarray(leaf.tolist() if isinstance(leaf, sp.MatrixBase | sp.NDimArray) else leaf)
    if array.dtype == object:
        return entrywise(sp.sympify, array)
    if jnp.issubdtype(array.dtype, np.floating):
        return entrywise(constant, array.astype(float))
    return array


def entrywise(fn: Callable[..., Any], *values: Values) -> Values:
    """Apply a function of scalars to each entry of arrays, which broadcast against each other."""
    values = tuple(np.broadcast_arrays(*values))
    entries = zip(*(v.ravel().tolist() for v in values), strict=True)
    return array_of([fn(*entry) for entry in entries], values[0].shape)


def array_of(entries: Sequence[Any], shape: Sequence[int]) -> Values:
    """Arrange expressions as an array of the given shape."""
    array = np.empty(len(entries), object)  # np.array(entries) would look into the expressions for a further axis
    array[:] = entries
    return array.reshape(shape)

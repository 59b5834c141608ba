"""Rules for the primitives that compute new entries: arithmetic, comparisons, sums and products.

All arithmetic is exact. `eigh`, `svd` and `qr` have no rule on purpose, as their results are not rational. A proof that holds
in every basis receives the basis as an argument, for example as a rational rotation.
"""

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import sympy as sp
from jax.extend.core import JaxprEqn

from fimlens.interpreter.values import NoRule, Rule, Values, array_of, entrywise, require_short

LONGEST_ORDERED = 500  # largest `size` of an operand of max and min


def _scalar_rule(fn: Callable[..., Any]) -> Rule:
    """The rule that applies `fn` entry by entry."""
    return lambda equation, *values: entrywise(fn, *values)


def _reduction(fn: Callable[..., Any]) -> Rule:
    """The rule that applies `fn` to all entries along the reduced axes."""

    def rule(equation: JaxprEqn, x: Values) -> Any:
        axes = equation.params["axes"]
        free = [k for k in range(x.ndim) if k not in axes]
        shape = [x.shape[k] for k in free]
        groups = x.transpose(*free, *axes).reshape(math.prod(shape), -1)
        return array_of([fn(*group) for group in groups], shape)

    return rule


def _comparison(relation: Callable[..., Any], of_numbers: Callable[..., Any]) -> Rule:
    """The rule of a comparison. The symbols' assumptions decide it for expressions, NumPy's `of_numbers` for integers."""

    def truth(a: Any, b: Any) -> Any:
        open_or_not = relation(a - b, 0)  # terms that cancel only after expansion can hide the sign
        return open_or_not if open_or_not in (sp.true, sp.false) else relation(sp.expand(a - b), 0)

    return lambda equation, a, b: _of_truths(entrywise(truth, a, b)) if object in (a.dtype, b.dtype) else of_numbers(a, b)


def _of_truths(truths: Values) -> Values:
    """As booleans, if all are decided."""
    return truths.astype(bool) if all(truth in (sp.true, sp.false) for truth in truths.flat) else truths


def _logic(connective: Callable[..., Any], of_booleans: Callable[..., Any]) -> Rule:
    """The rule of "and", "or" and "not": what is open may not matter."""

    def rule(equation: JaxprEqn, *values: Values) -> Any:
        is_open = any(v.dtype == object for v in values)
        return _of_truths(entrywise(connective, *values)) if is_open else of_booleans(*values)

    return rule


def _domain_positive(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse negative arguments of a root or logarithm, for which JAX returns NaN and SymPy a complex number."""

    def real(x: Any) -> Any:
        if x.is_negative:
            raise NoRule(f"symbolic: {str(x)[:80]} is negative, and its root or logarithm NaN. Declare the symbols' signs.")
        return fn(x)

    return real


def _is_finite(x: Any) -> bool:
    """Whether an expression is finite, as its symbols' assumptions decide: phi'(0) is zoo for the logarithm."""
    if x.is_finite is None:
        raise NoRule(f"symbolic: nothing tells whether {str(x)[:80]} is finite. Declare the symbols' signs.")
    return x.is_finite


def _of_short(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse long operands of max and min, because SymPy would search for their order for minutes."""

    def of_short(*operands: Any) -> Any:
        require_short(operands, LONGEST_ORDERED)
        return fn(*operands)

    return of_short


MAX, MIN = _of_short(sp.Max), _of_short(sp.Min)


def _dot_general(equation: JaxprEqn, a: Values, b: Values) -> Any:
    (over_a, over_b), (batch_a, batch_b) = equation.params["dimension_numbers"]
    free_a, free_b = (
        [k for k in range(x.ndim) if k not in (*over, *batch)]
        for x, over, batch in ((a, over_a, batch_a), (b, over_b, batch_b))
    )
    A, B = a.transpose(*batch_a, *free_a, *over_a), b.transpose(*batch_b, *free_b, *over_b)
    shape = [a.shape[k] for k in (*batch_a, *free_a)] + [b.shape[k] for k in free_b]
    stack, terms = (math.prod(a.shape[k] for k in axes) for axes in (batch_a, over_a))
    A, B = A.reshape(stack, -1, terms), B.reshape(stack, -1, terms)
    # One sp.Add of all terms: adding them one by one would rebuild the growing sum each time.
    entries = [sp.Add(*(x * y for x, y in zip(p, q, strict=True))) for k in range(stack) for p in A[k] for q in B[k]]
    return array_of(entries, shape)


def _cumsum(equation: JaxprEqn, x: Values) -> Any:
    axis = equation.params["axis"]
    return np.flip(np.cumsum(np.flip(x, axis), axis), axis) if equation.params["reverse"] else np.cumsum(x, axis)


def _scatter_add(equation: JaxprEqn, x: Values, where: Values, updates: Values) -> Any:
    """Add each update to the entry to which JAX adds a 1 in its place, so that JAX resolves the indices."""
    total = x.copy()
    for k, update in enumerate(updates.ravel()):
        one = np.zeros(updates.size)
        one[k] = 1
        reached = np.asarray(equation.primitive.bind(np.zeros(x.shape), where, one.reshape(updates.shape), **equation.params))
        total[reached == 1] += update
    return total


def _unknown_function(equation: JaxprEqn, x: Values) -> Any:
    return entrywise(equation.params["function"], x)


def _integer_pow(equation: JaxprEqn, x: Values) -> Any:
    return x ** equation.params["y"]


SCALAR_FUNCTIONS = {
    "add": operator.add,
    "add_any": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "neg": operator.neg,
    "pow": operator.pow,
    "square": lambda x: x**2,
    "sqrt": _domain_positive(sp.sqrt),
    "rsqrt": _domain_positive(lambda x: 1 / sp.sqrt(x)),
    "exp": sp.exp,
    "expm1": lambda x: sp.exp(x) - 1,
    "log": _domain_positive(sp.log),
    "log1p": lambda x: sp.log(1 + x),
    "sin": sp.sin,
    "cos": sp.cos,
    "tanh": sp.tanh,
    "logistic": lambda x: 1 / (1 + sp.exp(-x)),
    "abs": sp.Abs,
    "sign": sp.sign,
    "max": MAX,
    "min": MIN,
}


# Rules for operands of which at least one holds expressions.
ARITHMETIC: dict[str, Rule] = {
    **{name: _scalar_rule(fn) for name, fn in SCALAR_FUNCTIONS.items()},
    "integer_pow": _integer_pow,
    "is_finite": lambda equation, x: entrywise(_is_finite, x).astype(bool),
    "unknown_function": _unknown_function,
    "reduce_sum": _reduction(sp.Add),
    "reduce_max": _reduction(MAX),
    "reduce_min": _reduction(MIN),
    "reduce_prod": _reduction(sp.Mul),
    "cumsum": _cumsum,
    "dot_general": _dot_general,
    "scatter-add": _scatter_add,
}


# Rules for any operands. NumPy evaluates integers and booleans here without a compilation by JAX.
COMPARISONS: dict[str, Rule] = {
    "gt": _comparison(sp.Gt, operator.gt),
    "ge": _comparison(sp.Ge, operator.ge),
    "lt": _comparison(sp.Lt, operator.lt),
    "le": _comparison(sp.Le, operator.le),
    "eq": _comparison(sp.Eq, operator.eq),
    "ne": _comparison(sp.Ne, operator.ne),
    "and": _logic(sp.And, np.bitwise_and),
    "or": _logic(sp.Or, np.bitwise_or),
    "not": _logic(sp.Not, np.invert),
}

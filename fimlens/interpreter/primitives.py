"""What each primitive makes of NumPy arrays of SymPy expressions.

Many primitives only move entries about, and NumPy moves them; for the intricate ones (gather, scatter, pad, ...) JAX moves
their positions, and the entries follow. What is left is arithmetic on expressions, and exact: a float literal is the rational
number that it is.

`eigh`, `svd` and `qr` have no rule on purpose. A proof quantifies over bases: give them, as rational rotations.
"""

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp
from jax.extend.core import JaxprEqn

Values = np.ndarray  # of SymPy expressions (dtype object), or of whole numbers or booleans


Rule = Callable[..., Any]  # (equation, *operands) -> result, or a list of results


class NoRule(NotImplementedError):
    """A function does what has no rule here, or asks what the symbols' assumptions leave open.

    Examples:
        >>> import jax.numpy as jnp, sympy, fimlens as fl
        >>> try:
        ...     fl.symbolic(jnp.linalg.eigvalsh)(sympy.diag(*sympy.symbols("a b")))
        ... except fl.NoRule as error:
        ...     print(str(error).partition(".")[0])
        symbolic: there is no rule for the primitive 'eigh'
    """


class TooLong(NoRule):
    """What a function does, written out, has no end in sight: most often as it iterates."""


@lru_cache(2**16)
def size(expression: sp.Basic) -> int:
    """How many operations and operands an expression is written with, what is shared counted each time."""
    return 1 + sum(map(size, expression.args))


def require_short(entries: Iterable[sp.Basic], most: int) -> None:
    """Refuse what is too long to be worked with.

    Raises:
        TooLong: an expression has more than `most` operations and operands.
    """
    if any(size(entry) > most for entry in entries):
        raise TooLong(
            f"symbolic: it iterates too long to write out (over {most:,} terms). Take fewer steps, or a smaller matrix."
        )


def exact(leaf: Any) -> Values:
    """Floats as exact rationals; expressions, whole numbers and booleans as they are."""
    array = np.asarray(leaf.tolist() if isinstance(leaf, sp.MatrixBase | sp.NDimArray) else leaf)
    if array.dtype == object:
        return _each(sp.sympify)(array)
    if jnp.issubdtype(array.dtype, np.floating):
        return _each(lambda x: sp.Rational(x) if np.isfinite(x) else sp.Float(x))(array.astype(float))
    return array


def _each(fn: Callable[..., Any]) -> Callable[..., Values]:
    """`fn` entry by entry."""

    def mapped(*values: Values) -> Values:
        values = np.broadcast_arrays(*values)
        return _array([fn(*entries) for entries in zip(*(v.ravel().tolist() for v in values), strict=True)], values[0].shape)

    return mapped


def _array(entries: Sequence[Any], shape: Sequence[int]) -> Values:
    array = np.empty(len(entries), object)
    array[:] = entries
    return array.reshape(shape)


def _over(fn: Callable[..., Any]) -> Rule:
    """`fn` of the entries along the axes that an equation names."""

    def rule(equation: JaxprEqn, x: Values) -> Any:
        axes = equation.params["axes"]
        kept = [k for k in range(x.ndim) if k not in axes]
        shape = [x.shape[k] for k in kept]
        groups = x.transpose(*kept, *axes).reshape(math.prod(shape), -1)
        return _array([fn(*group) for group in groups], shape)

    return rule


def _compare(relation: Callable[..., Any], known: Callable[..., Any]) -> Rule:
    """Decided from the assumptions, or `known` where whole numbers are compared."""

    def decided(a: Any, b: Any) -> bool:
        truth = relation(a - b, 0)
        if truth not in (sp.true, sp.false):
            truth = relation(sp.expand(a - b), 0)
        if truth not in (sp.true, sp.false):
            raise NoRule(
                f"symbolic: it compares what is open, {str(truth)[:80]}. Declare signs, as in sympy.Symbol('v', positive=True)."
            )
        return bool(truth)

    return lambda equation, a, b: _each(decided)(a, b).astype(bool) if object in (a.dtype, b.dtype) else known(a, b)


def _move(equation: JaxprEqn, *values: Values) -> Any:
    """Entries follow their positions, which JAX moves."""
    starts = np.cumsum([0, *(v.size if v.dtype == object else 0 for v in values)])
    places = [
        np.arange(at, at + v.size).reshape(v.shape) if v.dtype == object else v for v, at in zip(values, starts, strict=False)
    ]
    fill = equation.params.get("fill_value")  # of what is read out of bounds: at place -1
    fill = None if fill is None or np.isnan(fill) else fill
    params = equation.params | ({"fill_value": -1} if "fill_value" in equation.params else {})
    moved = jax.tree.map(np.asarray, equation.primitive.bind(*places, **params))
    if fill is None and any((place < 0).any() for place in jax.tree.leaves(moved)):
        raise NoRule("symbolic: an index is out of bounds, where JAX reads NaN. Keep it within, or give fill_value.")
    filling = [] if fill is None else list(exact(np.asarray(fill, float)).ravel())
    entries = np.array([*(entry for v in values if v.dtype == object for entry in v.ravel()), *filling], object)
    return jax.tree.map(lambda place: entries[place], moved)


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
    return _array(
        [sp.Add(*(x * y for x, y in zip(p, q, strict=True))) for k in range(stack) for p in A[k] for q in B[k]], shape
    )


def _cumsum(equation: JaxprEqn, x: Values) -> Any:
    axis = equation.params["axis"]
    return np.flip(np.cumsum(np.flip(x, axis), axis), axis) if equation.params["reverse"] else np.cumsum(x, axis)


def _scatter_add(equation: JaxprEqn, x: Values, where: Values, updates: Values) -> Any:
    """Update by update, to where JAX would add a 1."""
    total = x.copy()
    for k, update in enumerate(updates.ravel()):
        one = np.zeros(updates.size)
        one[k] = 1
        reached = np.asarray(equation.primitive.bind(np.zeros(x.shape), where, one.reshape(updates.shape), **equation.params))
        total[reached == 1] += update
    return total


def _convert(equation: JaxprEqn, x: Values) -> Any:
    dtype = equation.params["new_dtype"]
    if x.dtype != object:
        return x.astype(dtype)
    if jnp.issubdtype(dtype, np.floating):
        return x
    raise NoRule(f"symbolic: cannot make a {dtype} of expressions such as {x.ravel()[0]}. Leave them floats.")


def _entrywise(fn: Callable[..., Any]) -> Rule:
    return lambda equation, *values: _each(fn)(*values)


def _numpy(fn: Callable[..., Any], *names: str) -> Rule:
    """`fn` of NumPy's, of the operand and what the equation says under these names."""
    return lambda equation, x: fn(x, *(equation.params[name] for name in names))


def _broadcast_in_dim(equation: JaxprEqn, x: Values) -> Any:
    shape, kept = equation.params["shape"], equation.params["broadcast_dimensions"]
    return np.broadcast_to(x.reshape([x.shape[kept.index(k)] if k in kept else 1 for k in range(len(shape))]), shape)


def _concatenate(equation: JaxprEqn, *values: Values) -> Any:
    return np.concatenate(values, equation.params["dimension"])


def _iota(equation: JaxprEqn) -> Any:
    return np.indices(equation.params["shape"])[equation.params["dimension"]].astype(equation.params["dtype"])


def _select(equation: JaxprEqn, which: Values, *cases: Values) -> Any:
    return np.choose(which.astype(int), np.broadcast_arrays(*cases))


def _slice(equation: JaxprEqn, x: Values) -> Any:
    start, stop, step = (equation.params[name] for name in ("start_indices", "limit_indices", "strides"))
    return x[tuple(map(slice, start, stop, step or [1] * x.ndim))]


def _power(equation: JaxprEqn, x: Values) -> Any:
    return x ** equation.params["y"]


def _of_positive(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, but not of what is negative: JAX has NaN there, and SymPy a complex number."""

    def real(x: Any) -> Any:
        if x.is_negative:
            raise NoRule(f"symbolic: {str(x)[:80]} is negative, and its root or logarithm NaN. Declare the symbols' signs.")
        return fn(x)

    return real


LONGEST_ORDERED = 500  # operations and operands


def _ordered(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, but not of long operands: SymPy seeks their order, for minutes."""

    def of_short(*operands: Any) -> Any:
        require_short(operands, LONGEST_ORDERED)
        return fn(*operands)

    return of_short


MAX, MIN = _ordered(sp.Max), _ordered(sp.Min)


ARITHMETIC = {
    "add": operator.add,
    "add_any": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "neg": operator.neg,
    "pow": operator.pow,
    "square": lambda x: x**2,
    "sqrt": _of_positive(sp.sqrt),
    "rsqrt": _of_positive(lambda x: 1 / sp.sqrt(x)),
    "exp": sp.exp,
    "expm1": lambda x: sp.exp(x) - 1,
    "log": _of_positive(sp.log),
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


COMPARISONS = {
    "gt": (sp.Gt, operator.gt),
    "ge": (sp.Ge, operator.ge),
    "lt": (sp.Lt, operator.lt),
    "le": (sp.Le, operator.le),
    "eq": (sp.Eq, operator.eq),
    "ne": (sp.Ne, operator.ne),
}


MOVES = {
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": _concatenate,
    "copy": _numpy(np.array),
    "reshape": _numpy(np.reshape, "new_sizes"),
    "rev": _numpy(np.flip, "dimensions"),
    "select_n": _select,
    "slice": _slice,
    "squeeze": _numpy(np.squeeze, "dimensions"),
    "stop_gradient": _numpy(np.array),
    "transpose": _numpy(np.transpose, "permutation"),
}


ANY_OPERANDS: dict[str, Rule] = {  # of expressions, and of whole numbers and booleans, which NumPy serves without compiling
    **{name: _compare(*relations) for name, relations in COMPARISONS.items()},
    **MOVES,
    "iota": _iota,
    "convert_element_type": _convert,
}


EXPRESSIONS: dict[str, Rule] = {  # of operands of which one is of expressions at least
    **{name: _entrywise(fn) for name, fn in ARITHMETIC.items()},
    **dict.fromkeys(["dynamic_slice", "dynamic_update_slice", "gather", "pad", "scatter", "split", "stack", "tile"], _move),
    "integer_pow": _power,
    "reduce_sum": _over(sp.Add),
    "reduce_max": _over(MAX),
    "reduce_min": _over(MIN),
    "reduce_prod": _over(sp.Mul),
    "cumsum": _cumsum,
    "dot_general": _dot_general,
    "scatter-add": _scatter_add,
}

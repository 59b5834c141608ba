"""Any JAX function on SymPy expressions: trace it to a jaxpr, and evaluate that over NumPy arrays of them.

A table of rules and a loop. Many primitives only move entries about, and NumPy moves them; for the intricate ones (gather,
scatter, pad, ...) JAX moves their positions, and the entries follow. What is left is arithmetic on expressions, and exact: a
float literal is the rational number that it is. What has no rule and is of whole numbers and booleans alone, JAX computes.

`eigh`, `svd` and `qr` have no rule on purpose. A proof quantifies over bases: give them, as rational rotations.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp
from jax.extend.core import Jaxpr, JaxprEqn, Literal

Values = np.ndarray  # of SymPy expressions (dtype object), or of whole numbers or booleans
Rule = Callable[..., Any]  # (equation, *operands) -> result, or a list of results


class NoRule(NotImplementedError):
    """A function does what has no rule here, or asks what the symbols' assumptions leave open."""


def symbolic(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, of trees of SymPy expressions in place of arrays.

    Leaves are expressions, NumPy arrays of them or SymPy matrices, and stand for float64 arrays; NumPy's own numbers are taken
    exactly. The result is a tree of NumPy arrays of expressions (of bare expressions, where `fn` returns scalars). Comparisons
    are decided from the symbols' assumptions: declare positive what is positive.

    Raises:
        NoRule: `fn` uses a primitive without a rule, or compares what the assumptions leave open.

    Example:
        >>> import jax, jax.numpy as jnp, sympy, fimlens as fl
        >>> x = sympy.Array(sympy.symbols("a b"))
        >>> fl.symbolic(lambda x: jnp.sum(x**2) / 4)(x)
        a**2/4 + b**2/4
        >>> fl.symbolic(jax.grad(lambda x: jnp.sum(x**2) / 4))(x)
        array([a/2, b/2], dtype=object)
    """

    def of_expressions(*trees: Any) -> Any:
        leaves, layout = jax.tree.flatten(trees)
        values = [_exact(leaf) for leaf in leaves]
        with jax.enable_x64(True):
            avals = [jax.ShapeDtypeStruct(v.shape, np.float64 if v.dtype == object else v.dtype) for v in values]
            closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*jax.tree.unflatten(layout, avals))
            results = _run(closed.jaxpr, closed.consts, values)
        return jax.tree.unflatten(jax.tree.structure(shapes), [v if v.ndim else v.item() for v in results])

    return of_expressions


def _run(jaxpr: Jaxpr, consts: Sequence[Any], values: Sequence[Values]) -> list[Values]:
    """The results of a jaxpr for these constants and operands."""
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*map(_exact, consts), *values], strict=True))

    def read(atom: Any) -> Values:
        return _exact(np.asarray(atom.val, atom.aval.dtype)) if isinstance(atom, Literal) else known[atom]

    for equation in jaxpr.eqns:
        results = _results(equation, [read(atom) for atom in equation.invars])
        known.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _results(equation: JaxprEqn, values: list[Values]) -> list[Values]:
    name = equation.primitive.name
    if name in RULES:
        results = RULES[name](equation, *values)
    elif name in CALLS:
        results = _call(equation, *values)
    elif all(v.dtype != object for v in values):
        results = _by_jax(equation, *values)
    else:
        raise NoRule(
            f"symbolic: there is no rule for the primitive {name!r}. Write the function without it; hand in what it computes "
            "(a basis, as a rational rotation); or give it a line in fimlens/_symbolic.py."
        )
    return [_exact(v) for v in results] if equation.primitive.multiple_results else [_exact(results)]


def _by_jax(equation: JaxprEqn, *values: Values) -> Any:
    """What JAX makes of operands that are no expressions."""
    return jax.tree.map(np.asarray, equation.primitive.bind(*values, **equation.params))


def _exact(leaf: Any) -> Values:
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
        if x.dtype != object:
            return _by_jax(equation, x)
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
            raise NoRule(f"symbolic: cannot decide {str(truth)[:80]}. Declare signs, as in sympy.Symbol('v', positive=True).")
        return bool(truth)

    return lambda equation, a, b: _each(decided)(a, b).astype(bool) if object in (a.dtype, b.dtype) else known(a, b)


def _move(equation: JaxprEqn, *values: Values) -> Any:
    """Entries follow their positions, which JAX moves."""
    starts = np.cumsum([0, *(v.size if v.dtype == object else 0 for v in values)])
    places = [
        np.arange(at, at + v.size).reshape(v.shape) if v.dtype == object else v for v, at in zip(values, starts, strict=False)
    ]
    if not starts[-1]:
        return _by_jax(equation, *places)
    fill = equation.params.get("fill_value")  # of what is read out of bounds: at place -1
    fill = None if fill is None or np.isnan(fill) else fill
    params = equation.params | ({"fill_value": -1} if "fill_value" in equation.params else {})
    moved = jax.tree.map(np.asarray, equation.primitive.bind(*places, **params))
    if fill is None and any((place < 0).any() for place in jax.tree.leaves(moved)):
        raise NoRule("symbolic: an index is out of bounds, where JAX reads NaN. Keep it within, or give fill_value.")
    filling = [] if fill is None else list(_exact(np.asarray(fill, float)).ravel())
    entries = np.array([*(entry for v in values if v.dtype == object for entry in v.ravel()), *filling], object)
    return jax.tree.map(lambda place: entries[place], moved)


def _dot_general(equation: JaxprEqn, a: Values, b: Values) -> Any:
    if object not in (a.dtype, b.dtype):
        return _by_jax(equation, a, b)
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
    if x.dtype != object:
        return _by_jax(equation, x)
    return np.flip(np.cumsum(np.flip(x, axis), axis), axis) if equation.params["reverse"] else np.cumsum(x, axis)


def _scatter_add(equation: JaxprEqn, x: Values, where: Values, updates: Values) -> Any:
    """Update by update, to where JAX would add a 1."""
    if x.dtype != object:
        return _by_jax(equation, x, where, updates)
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


def _call(equation: JaxprEqn, *values: Values) -> list[Values]:
    inner = next(equation.params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in equation.params)
    return _run(inner.jaxpr, inner.consts, values) if hasattr(inner, "consts") else _run(inner, [], values)


def _cond(equation: JaxprEqn, which: Values, *values: Values) -> list[Values]:
    branch = equation.params["branches"][int(which)]
    return _run(branch.jaxpr, branch.consts, values)


def _while(equation: JaxprEqn, *values: Values) -> list[Values]:
    test, body = equation.params["cond_jaxpr"], equation.params["body_jaxpr"]
    a, b = equation.params["cond_nconsts"], equation.params["body_nconsts"]
    of_test, of_body, state = values[:a], values[a : a + b], list(values[a + b :])
    while _run(test.jaxpr, test.consts, [*of_test, *state])[0]:
        state = _run(body.jaxpr, body.consts, [*of_body, *state])
    return state


def _scan(equation: JaxprEqn, *values: Values) -> list[Values]:
    body, a, b, length = (equation.params[key] for key in ("jaxpr", "num_consts", "num_carry", "length"))
    consts, carry, xs = values[:a], list(values[a : a + b]), values[a + b :]
    steps = range(length)[::-1] if equation.params["reverse"] else range(length)
    rows: list[Any] = [None] * length
    for k in steps:
        results = _run(body.jaxpr, body.consts, [*consts, *carry, *(np.asarray(x[k]) for x in xs)])
        carry, rows[k] = results[:b], results[b:]
    if not length:
        return [*carry, *(np.empty(v.aval.shape, object) for v in equation.outvars[b:])]
    return [*carry, *(np.stack(column) for column in zip(*rows, strict=True))]


def _entrywise(fn: Callable[..., Any]) -> Rule:
    def rule(equation: JaxprEqn, *values: Values) -> Any:
        if all(v.dtype != object for v in values):
            return _by_jax(equation, *values)
        return _each(fn)(*values)

    return rule


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
    "max": sp.Max,
    "min": sp.Min,
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
    **dict.fromkeys(["dynamic_slice", "dynamic_update_slice", "gather", "pad", "scatter", "split", "stack", "tile"], _move),
}
CALLS = [
    "jit",
    "pjit",
    "closed_call",
    "checkpoint",
    "remat2",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
]  # in one JAX or another
CONTROL = {"cond": _cond, "while": _while, "scan": _scan}
RULES: dict[str, Rule] = {
    **{name: _entrywise(fn) for name, fn in ARITHMETIC.items()},
    **{name: _compare(*relations) for name, relations in COMPARISONS.items()},
    **MOVES,
    **CONTROL,
    "integer_pow": _power,
    "iota": _iota,
    "reduce_sum": _over(sp.Add),
    "reduce_max": _over(sp.Max),
    "reduce_min": _over(sp.Min),
    "reduce_prod": _over(sp.Mul),
    "cumsum": _cumsum,
    "dot_general": _dot_general,
    "scatter-add": _scatter_add,
    "convert_element_type": _convert,
}

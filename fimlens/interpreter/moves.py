"""Rules for the primitives that rearrange entries and compute none.

NumPy rearranges the entries where it has the same operation. For the others (gather, scatter, pad, ...) JAX rearranges the
entries' positions, and the entries follow: no indexing rule of JAX is written a second time.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp
from jax.extend.core import JaxprEqn

from fimlens.interpreter.values import NoRule, Rule, Undecided, Values, entrywise, exact, require_decided


def _numpy(fn: Callable[..., Any], *names: str) -> Rule:
    """The rule that calls `fn` of NumPy with the operand and the equation's parameters of these names."""
    return lambda equation, x: fn(x, *(equation.params[name] for name in names))


def _broadcast_in_dim(equation: JaxprEqn, x: Values) -> Any:
    shape, axes = equation.params["shape"], equation.params["broadcast_dimensions"]
    return np.broadcast_to(x.reshape([x.shape[axes.index(k)] if k in axes else 1 for k in range(len(shape))]), shape)


def _concatenate(equation: JaxprEqn, *values: Values) -> Any:
    return np.concatenate(values, equation.params["dimension"])


def _convert(equation: JaxprEqn, x: Values) -> Any:
    dtype = equation.params["new_dtype"]
    if x.dtype != object:
        return x.astype(dtype)
    if not all(isinstance(entry, sp.Expr) for entry in x.flat):  # open comparisons, which are counted
        return require_decided(x)
    if jnp.issubdtype(dtype, np.floating):  # expressions are exact, so float32 and float64 are the same here
        return x
    raise NoRule(f"symbolic: cannot make a {dtype} of expressions such as {x.ravel()[0]}. Leave them floats.")


def _iota(equation: JaxprEqn) -> Any:
    return np.indices(equation.params["shape"])[equation.params["dimension"]].astype(equation.params["dtype"])


def _select(equation: JaxprEqn, which: Values, *cases: Values) -> Any:
    if which.dtype != object:
        return np.choose(which.astype(int), np.broadcast_arrays(*cases))
    return entrywise(_choose, which, *cases)


def _choose(which: Any, if_false: Any, if_true: Any) -> Any:
    """One of two cases, or a symbol for it if the comparison is open and they differ."""
    if which in (sp.true, sp.false) or if_false == if_true:
        return if_true if which == sp.true else if_false
    return Undecided(str(which)[:80], real=True)


def _slice(equation: JaxprEqn, x: Values) -> Any:
    start, stop, step = (equation.params[name] for name in ("start_indices", "limit_indices", "strides"))
    return x[tuple(map(slice, start, stop, step or [1] * x.ndim))]


def _by_position(equation: JaxprEqn, *values: Values) -> Any:
    """Let JAX rearrange the positions 0, 1, 2, ... of all expressions, and read the expressions at the results."""
    starts = np.cumsum([0, *(v.size if v.dtype == object else 0 for v in values)])
    positions = [
        np.arange(at, at + v.size).reshape(v.shape) if v.dtype == object else v for v, at in zip(values, starts, strict=False)
    ]
    fill = equation.params.get("fill_value")
    fill = None if fill is None or np.isnan(fill) else fill
    # A read out of bounds has no position. It yields -1, which below is the last entry: the fill value, if there is one.
    params = equation.params | ({"fill_value": -1} if "fill_value" in equation.params else {})
    moved = jax.tree.map(np.asarray, equation.primitive.bind(*positions, **params))
    if fill is None and any((position < 0).any() for position in jax.tree.leaves(moved)):
        raise NoRule("symbolic: an index is out of bounds, where JAX reads NaN. Keep it within, or give fill_value.")
    filling = [] if fill is None else list(exact(np.asarray(fill, float)).ravel())
    entries = np.array([*(entry for v in values if v.dtype == object for entry in v.ravel()), *filling], object)
    return jax.tree.map(lambda position: entries[position], moved)


# Rules for any operands. NumPy evaluates integers and booleans here without a compilation by JAX.
MOVES: dict[str, Rule] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": _concatenate,
    "convert_element_type": _convert,
    "copy": _numpy(np.array),
    "iota": _iota,
    "reshape": _numpy(np.reshape, "new_sizes"),
    "rev": _numpy(np.flip, "dimensions"),
    "select_n": _select,
    "slice": _slice,
    "squeeze": _numpy(np.squeeze, "dimensions"),
    "stop_gradient": _numpy(np.array),
    "transpose": _numpy(np.transpose, "permutation"),
}


# Rules for operands of which at least one holds expressions.
MOVES_BY_POSITION: dict[str, Rule] = dict.fromkeys(
    ["dynamic_slice", "dynamic_update_slice", "gather", "pad", "scatter", "split", "stack", "tile", "unstack"], _by_position
)

"""Evaluate a JAX function on SymPy expressions: trace it to a jaxpr, then evaluate each equation by a rule.

A proof thus speaks of the functions that run. Rules for arithmetic and for rearranging entries stand in `arithmetic.py` and
`moves.py`; control flow stands here. JAX itself evaluates an equation whose operands are all integers or booleans.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Primitive

from fimlens.interpreter.arithmetic import ARITHMETIC, COMPARISONS
from fimlens.interpreter.moves import MOVES, MOVES_BY_POSITION
from fimlens.interpreter.values import NoRule, Rule, Values, exact, require_decided, require_short

LONGEST_WRITTEN = 300_000  # largest `size` of an expression; those of the proofs reach a third of it

AnyJaxpr = Jaxpr | ClosedJaxpr  # one class on newer JAX


def symbolic(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Turn a JAX function of arrays into the same function of SymPy expressions.

    Use it to prove statements about the function that runs, gradients by `jax.grad` included. The arguments are trees whose
    leaves are expressions, NumPy arrays of them or SymPy matrices; each stands for a float64 array. Floats that can be written
    down, such as 0.1 or 1 / 3, are taken as these rational numbers; others, such as cos(1), stay floats, and prove nothing. The
    symbols' assumptions decide comparisons, so declare positive what is positive.

    Args:
        fn: a function that JAX can trace.

    Returns:
        A function whose result is a tree of NumPy arrays of expressions, with a bare expression for each scalar.

    Raises:
        NoRule: `fn` uses a primitive without a rule, or a comparison that the assumptions do not decide.
        TooLong: `fn` iterates so long that its expressions are too long to write out. It is a `NoRule`.

    Examples:
        >>> import jax, jax.numpy as jnp, sympy, fimlens as fl
        >>> x = sympy.Array(sympy.symbols("a b"))
        >>> fl.symbolic(lambda x: jnp.sum(x**2) / 4)(x)
        a**2/4 + b**2/4
        >>> fl.symbolic(jax.grad(lambda x: jnp.sum(x**2) / 4))(x)
        array([a/2, b/2], dtype=object)
    """

    def of_expressions(*trees: Any) -> Any:
        leaves, layout = jax.tree.flatten(trees)
        values = [exact(leaf) for leaf in leaves]
        with jax.enable_x64(True):  # in float32, tracing would round the function's own constants
            avals = [jax.ShapeDtypeStruct(v.shape, np.float64 if v.dtype == object else v.dtype) for v in values]
            closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*jax.tree.unflatten(layout, avals))
            results = [require_decided(v) for v in _run(closed, values)]
        return jax.tree.unflatten(jax.tree.structure(shapes), [v if v.ndim else v.item() for v in results])

    return of_expressions


def _run(function: AnyJaxpr, values: Sequence[Values]) -> list[Values]:
    """Evaluate a jaxpr, equation by equation."""
    jaxpr, consts = getattr(function, "jaxpr", function), getattr(function, "consts", ())
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*map(exact, consts), *values], strict=True))

    def read(atom: Any) -> Values:
        return exact(np.asarray(atom.val, atom.aval.dtype)) if isinstance(atom, Literal) else known[atom]

    for equation in jaxpr.eqns:
        results = _results(equation, [read(atom) for atom in equation.invars])
        known.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _results(equation: JaxprEqn, values: list[Values]) -> list[Values]:
    """Evaluate one equation: by a rule, by JAX if no operand holds expressions, or by the primitive's own definition."""
    primitive, numeric = equation.primitive, all(v.dtype != object for v in values)
    rules = RULES_FOR_ANY if numeric else RULES
    if primitive.name in rules:
        results = rules[primitive.name](equation, *values)
    elif function := called_function(equation) or (None if numeric else implementation(equation)):
        results = _run(function, values)
    elif numeric:
        results = jax.tree.map(np.asarray, primitive.bind(*values, **equation.params))
    else:
        raise NoRule(
            f"symbolic: there is no rule for the primitive {primitive.name!r}. Write the function without it; pass what it "
            "computes as an argument (a basis, as a rational rotation); or add a rule in fimlens/interpreter/arithmetic.py."
        )
    results = [exact(v) for v in (results if isinstance(results, list | tuple) else [results])]
    for values in results:
        if values.dtype == object:
            require_short(values.flat, LONGEST_WRITTEN)
    return results


def called_function(equation: JaxprEqn) -> AnyJaxpr | None:
    """The function that a primitive calls on its operands, as `jit`, `checkpoint` and `custom_jvp` do; None for others.

    It is the only jaxpr among the parameters, and it has the types of the equation. The parameter's name and the primitive's
    name change from one version of JAX to another, so neither is asked for.
    """
    functions = [value for value in equation.params.values() if isinstance(value, AnyJaxpr)]
    if len(functions) != 1:
        return None
    inner = getattr(functions[0], "jaxpr", functions[0])
    outside, inside = [*equation.invars, *equation.outvars], [*inner.invars, *inner.outvars]
    same = len(equation.invars) == len(inner.invars) and [_type(v) for v in outside] == [_type(v) for v in inside]
    return functions[0] if same else None


def _type(variable: Any) -> tuple[Any, Any]:
    """Shape and dtype of a variable; None and None for a token, which has neither."""
    return getattr(variable.aval, "shape", None), getattr(variable.aval, "dtype", None)


def implementation(equation: JaxprEqn) -> AnyJaxpr | None:
    """The definition of a primitive in simpler ones: its Python implementation, traced; None if it has none that traces."""
    if equation.effects:  # tracing would carry out an effect, such as `jax.debug.print`
        return None
    run = partial(equation.primitive.impl, **equation.params)
    try:
        traced = jax.make_jaxpr(run)(*(v.aval for v in equation.invars))
    except Exception:  # implementations for arrays alone refuse traced operands, each with an exception of its own
        return None
    # Most primitives are implemented by compiled code. Traced, it is a function that consists of the primitive itself.
    return None if _mentions(traced, equation.primitive) else traced


def _mentions(function: AnyJaxpr, primitive: Primitive) -> bool:
    """Whether a jaxpr, or one nested in it, uses a primitive."""
    return any(
        equation.primitive is primitive
        or any(_mentions(inner, primitive) for inner in equation.params.values() if isinstance(inner, AnyJaxpr))
        for equation in getattr(function, "jaxpr", function).eqns
    )


def _cond(equation: JaxprEqn, which: Values, *values: Values) -> list[Values]:
    return _run(equation.params["branches"][int(require_decided(which))], values)


def _while(equation: JaxprEqn, *values: Values) -> list[Values]:
    test, body = equation.params["cond_jaxpr"], equation.params["body_jaxpr"]
    a, b = equation.params["cond_nconsts"], equation.params["body_nconsts"]
    of_test, of_body, state = values[:a], values[a : a + b], list(values[a + b :])
    while require_decided(_run(test, [*of_test, *state])[0]):
        state = _run(body, [*of_body, *state])
    return state


def _scan(equation: JaxprEqn, *values: Values) -> list[Values]:
    body, length = equation.params["jaxpr"], equation.params["length"]
    a, b = scan_layout(equation)
    consts, carry, xs = values[:a], list(values[a : a + b]), values[a + b :]
    steps = range(length)[::-1] if equation.params["reverse"] else range(length)
    rows: list[Any] = [None] * length
    for k in steps:
        results = _run(body, [*consts, *carry, *(np.asarray(x[k]) for x in xs)])
        carry, rows[k] = results[:b], results[b:]
    if not length:
        return [*carry, *(np.empty(v.aval.shape, object) for v in equation.outvars[b:])]
    return [*carry, *(np.stack(column) for column in zip(*rows, strict=True))]


def scan_layout(equation: JaxprEqn) -> tuple[int, int]:
    """How many operands of a `scan` are constants, and how many are its carried state; the others are scanned over.

    JAX up to 0.10 gives the counts as `num_consts` and `num_carry`, later versions as nested tuples. The shapes tell them in
    every version: the body sees a scanned operand, and returns a stacked result, with one axis less.
    """
    body = getattr(equation.params["jaxpr"], "jaxpr", equation.params["jaxpr"])

    def unstacked(outside: Sequence[Any], inside: Sequence[Any]) -> int:
        return sum(x.aval.ndim == y.aval.ndim for x, y in zip(outside, inside, strict=True))

    carried = unstacked(equation.outvars, body.outvars)
    return unstacked(equation.invars, body.invars) - carried, carried


CONTROL_FLOW: dict[str, Rule] = {"cond": _cond, "while": _while, "scan": _scan}

RULES_FOR_ANY: dict[str, Rule] = {**COMPARISONS, **MOVES, **CONTROL_FLOW}  # also for integers and booleans alone

RULES: dict[str, Rule] = {**RULES_FOR_ANY, **ARITHMETIC, **MOVES_BY_POSITION}

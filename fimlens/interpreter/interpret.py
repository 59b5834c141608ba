"""Any JAX function on SymPy expressions: trace it to a jaxpr, and evaluate that over NumPy arrays of them.

A loop over equations, and the functions within functions; what a primitive makes of its operands is a line of `_rules.py`.
Whatever is of whole numbers and booleans alone, JAX computes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from fimlens.interpreter.primitives import ANY_OPERANDS, EXPRESSIONS, NoRule, Rule, Values, exact, require_short

LONGEST_WRITTEN = 300_000  # operations and operands of an expression; those of the proofs have up to a third of it


def symbolic(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, of trees of SymPy expressions in place of arrays.

    Leaves are expressions, NumPy arrays of them or SymPy matrices, and stand for float64 arrays; NumPy's own numbers are taken
    exactly. The result is a tree of NumPy arrays of expressions (of bare expressions, where `fn` returns scalars). Comparisons
    are decided from the symbols' assumptions: declare positive what is positive.

    Raises:
        NoRule: `fn` uses a primitive without a rule, compares what the assumptions leave open, or iterates so long that its
            expressions are too long to write out.

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
        with jax.enable_x64(True):
            avals = [jax.ShapeDtypeStruct(v.shape, np.float64 if v.dtype == object else v.dtype) for v in values]
            closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*jax.tree.unflatten(layout, avals))
            results = _run(closed.jaxpr, closed.consts, values)
        return jax.tree.unflatten(jax.tree.structure(shapes), [v if v.ndim else v.item() for v in results])

    return of_expressions


def _run(jaxpr: Jaxpr, consts: Sequence[Any], values: Sequence[Values]) -> list[Values]:
    """The results of a jaxpr for these constants and operands."""
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*map(exact, consts), *values], strict=True))

    def read(atom: Any) -> Values:
        return exact(np.asarray(atom.val, atom.aval.dtype)) if isinstance(atom, Literal) else known[atom]

    for equation in jaxpr.eqns:
        results = _results(equation, [read(atom) for atom in equation.invars])
        known.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _results(equation: JaxprEqn, values: list[Values]) -> list[Values]:
    name, known = equation.primitive.name, all(v.dtype != object for v in values)
    if name in CALLS:
        results = _call(equation, *values)
    elif name in RULES and not (known and name in EXPRESSIONS):
        results = RULES[name](equation, *values)
    elif known:
        results = jax.tree.map(np.asarray, equation.primitive.bind(*values, **equation.params))
    else:
        raise NoRule(
            f"symbolic: there is no rule for the primitive {name!r}. Write the function without it; hand in what it computes "
            "(a basis, as a rational rotation); or give it a line in fimlens/_rules.py."
        )
    results = [exact(v) for v in results] if equation.primitive.multiple_results else [exact(results)]
    for values in results:
        if values.dtype == object:
            require_short(values.flat, LONGEST_WRITTEN)
    return results


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


# A function within a function, as one JAX or another calls it.
CALLS = {
    "jit",
    "pjit",
    "closed_call",
    "checkpoint",
    "remat2",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
}


RULES: dict[str, Rule] = {**ANY_OPERANDS, **EXPRESSIONS, "cond": _cond, "while": _while, "scan": _scan}

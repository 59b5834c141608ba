"""FLOPs of an optimizer's step, counted on the jaxpr of its own update.

A multiplication and an addition count as two. Products and decompositions count; passes over single elements do not: they
are some twenty operations a weight, and memory bandwidth bounds them. Decompositions count as in Golub and Van Loan, Matrix
Computations (4th ed.), sections 3.1, 3.2, 4.2, 5.2, 8.3 and 8.6; accelerators run them far below the peak of products.
"""

import math
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import Literal
from jax.interpreters import partial_eval
from jaxtyping import PyTree

from fimlens._validate import require_transform

# Steps 1 to 63000: a multiple of all update intervals up to 10 and of 20, 50, 100, 200, 500 and 1000, so that refreshes get
# their exact share. Step 0 is left out: it starts the bases, once in a training, by a more expensive decomposition.
STEPS = 63_000


# FLOPs of the decomposition of an m x n matrix, m >= n, with all its vectors.
DECOMPOSITIONS: dict[str, Callable[[int, int], float]] = {
    "eigh": lambda m, n: 9 * n**3,
    "svd": lambda m, n: 6 * m * n**2 + 20 * n**3,
    "qr": lambda m, n: 4 * (m * n**2 - n**3 / 3),
    "geqrf": lambda m, n: 2 * (m * n**2 - n**3 / 3),
    "householder_product": lambda m, n: 2 * (m * n**2 - n**3 / 3),
    "cholesky": lambda m, n: n**3 / 3,
    "lu": lambda m, n: m * n**2 - n**3 / 3,
}


RESHAPES = ("reshape", "squeeze", "broadcast_in_dim")


Flops = float | np.ndarray  # where they change from step to step, a number for each of STEPS


class Value(NamedTuple):
    """What the count knows of an array.

    Arrays share a `name` where equal expressions make them. `by_step` has the value of a step counter, and of any integer that
    follows from it, at each of STEPS: it tells which branch of a `cond` each step takes.
    """

    name: Hashable
    by_step: np.ndarray | None = None


def step_flops(tx: optax.GradientTransformation, matrices: PyTree) -> float:
    """FLOPs of one step of an optimizer: the mean over many steps, so that each has its share of the refreshes of bases.

    The update is traced and never run: matrices of any size take about a second, and no memory. One matrix of each shape is
    traced, as those of one shape take the same.

    Args:
        tx: any Optax optimizer.
        matrices: the parameters that are matrices, as arrays or jax.ShapeDtypeStructs.

    Raises:
        TypeError: `tx` is no transform.

    Examples:
        >>> import jax, jax.numpy as jnp, fimlens as fl
        >>> from fimlens.costs.flops import step_flops
        >>> W = jax.ShapeDtypeStruct((8, 16), jnp.float32)
        >>> step_flops(fl.adam(1e-3), W), step_flops(fl.galore(1e-3, rank=2, update_interval=None), W)  # 4 m n r
        (0.0, 1024.0)
    """
    require_transform("step_flops", "tx", tx)
    leaves, treedef = jax.tree.flatten(matrices)
    kinds = [(x.shape, x.dtype) for x in leaves]
    total = 0.0
    for kind in set(kinds):
        # The matrix stays at its own path, by which the optimizer may route it.
        alone = treedef.unflatten([x if i == kinds.index(kind) else None for i, x in enumerate(leaves)])
        total += kinds.count(kind) * _traced_flops(tx, alone)
    return total


def _traced_flops(tx: optax.GradientTransformation, shapes: PyTree) -> float:
    arguments = shapes, jax.eval_shape(tx.init, shapes), shapes
    traced = jax.make_jaxpr(tx.update)(*arguments).jaxpr
    # XLA computes nothing that no result needs, and equal expressions once. The count does the same, here and by `seen`.
    live, _ = partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars), instantiate=True)
    inputs = [
        # An integer among the arguments is a step counter of the state.
        Value(object(), np.arange(1, STEPS + 1, dtype=x.dtype) if _is_integer(x) else None)
        for x in jax.tree.leaves(arguments)
    ]
    return float(np.mean(_count(live, inputs, {})[0]))


def _count(jaxpr: Any, inputs: list[Value], seen: dict[Hashable, list[Value]]) -> tuple[Flops, list[Value]]:
    """FLOPs and results of a jaxpr; `seen` has the results of the expressions that are counted already."""
    values = dict(zip(jaxpr.invars, inputs, strict=True))
    total: Flops = 0.0
    for eqn in jaxpr.eqns:
        flops, results = _count_equation(eqn, [_value_of(x, values) for x in eqn.invars], seen)
        total = total + flops
        values |= zip(eqn.outvars, results, strict=True)
    return total, [_value_of(x, values) for x in jaxpr.outvars]


def _value_of(x: Any, values: dict[Any, Value]) -> Value:
    """The value of a variable or literal; a new unknown one where nothing is known of it."""
    if isinstance(x, Literal) and x.aval.shape == ():
        return Value(("literal", str(x.val)), np.full(STEPS, x.val, x.aval.dtype))
    return Value(object()) if isinstance(x, Literal) else values.setdefault(x, Value(object()))


def _count_equation(eqn: Any, inputs: list[Value], seen: dict[Hashable, list[Value]]) -> tuple[Flops, list[Value]]:
    name, bodies = eqn.primitive.name, _bodies(eqn)
    if name == "cond":
        flops = [_count(body, inputs[1:], {})[0] for body in bodies]  # XLA shares no expression between branches
        which = inputs[0].by_step
        return max(flops, key=np.mean) if which is None else np.choose(which, flops), _unknown(eqn.outvars)
    if bodies and name not in ("scan", "while") and len(bodies[0].invars) == len(inputs):
        return _count(bodies[0], inputs, seen)
    if bodies:  # the turns of a `while` are unknown before it runs: as in XLA's own counts, its body counts once
        flops = sum(_count(body, _unknown(body.invars), {})[0] for body in bodies)
        return eqn.params.get("length", 1) * flops, _unknown(eqn.outvars)
    if name in RESHAPES and _sides(eqn.invars[0]) == _sides(eqn.outvars[0]):
        return 0.0, inputs[:1]  # axes of length one, as vmap adds them, make no other expression
    how = _contraction(eqn) if name == "dot_general" else (str(eqn.params), *(x.aval for x in eqn.invars))
    key = name, how, *(x.name for x in inputs)
    if key in seen:
        return 0.0, seen[key]
    seen[key] = _at_each_step(eqn, inputs)
    return _flops(eqn), seen[key]


def _flops(eqn: Any) -> float:
    """FLOPs of a product or a decomposition, and none for any other primitive."""
    name = eqn.primitive.name
    if name == "dot_general":
        (summed, _), _ = eqn.params["dimension_numbers"]
        return 2.0 * eqn.outvars[0].aval.size * math.prod(eqn.invars[0].aval.shape[i] for i in summed)
    if name == "triangular_solve":
        return float(eqn.outvars[0].aval.size * eqn.invars[0].aval.shape[-1])
    if name not in DECOMPOSITIONS:
        return 0.0
    *stack, m, n = eqn.invars[0].aval.shape
    return math.prod(stack) * float(DECOMPOSITIONS[name](max(m, n), min(m, n)))


def _at_each_step(eqn: Any, inputs: list[Value]) -> list[Value]:
    """Results of a primitive, with numbers where they are integers that follow from step counters."""
    if eqn.primitive.name == "platform_index":  # the CPU's branch; GPUs refine some decompositions by an iteration more
        cpu = next(i for i, names in enumerate(eqn.params["platforms"]) if names is None or "cpu" in names)
        return [Value(object(), np.full(STEPS, cpu))]
    known = [x.by_step for x in inputs if x.by_step is not None]
    if not inputs or len(known) < len(inputs) or not all(_is_integer(x.aval) for x in eqn.outvars):
        return _unknown(eqn.outvars)
    results = jax.vmap(lambda *x: eqn.primitive.bind(*x, **eqn.params))(*known)
    return [Value(object(), np.asarray(x)) for x in jax.tree.leaves(results)]


def _bodies(eqn: Any) -> list[Any]:
    """The jaxprs within an equation, such as the branches of a `cond`."""
    inner = [getattr(x, "jaxpr", x) for x in jax.tree.leaves(list(eqn.params.values()))]
    return [x for x in inner if hasattr(x, "eqns")]


def _contraction(eqn: Any) -> tuple[tuple[int, ...], ...]:
    """The axes that a product sums over and those that it runs along, counted without axes of length one."""
    pairs = [pair for axes in eqn.params["dimension_numbers"] for pair in zip(eqn.invars, axes, strict=True)]
    return tuple(tuple(sum(s != 1 for s in x.aval.shape[:i]) for i in axes if x.aval.shape[i] != 1) for x, axes in pairs)


def _sides(x: Any) -> list[int]:
    return [side for side in x.aval.shape if side != 1]


def _is_integer(x: Any) -> bool:
    return x.shape == () and (jnp.issubdtype(x.dtype, jnp.integer) or x.dtype == bool)


def _unknown(variables: list[Any]) -> list[Value]:
    return [Value(object()) for _ in variables]

"""Functions of which only the name is known: what is proved with one holds for every function."""

from collections.abc import Callable

import jax
import sympy as sp
from jax.extend.core import Primitive

FUNCTION = Primitive("unknown_function")
FUNCTION.def_abstract_eval(lambda x, **_: x)


def unknown(*derivatives: sp.FunctionClass) -> Callable[[jax.Array], jax.Array]:
    """Return a function of arrays that `symbolic` alone can evaluate, entry by entry.

    Args:
        derivatives: the SymPy functions that stand for it, for its derivative, and so on as far as it is differentiated.
    """
    function, *others = derivatives

    @jax.custom_jvp
    def named(x: jax.Array) -> jax.Array:
        return FUNCTION.bind(x, function=function)

    named.defjvps(lambda tangent, _, x: tangent * unknown(*others)(x))
    return named

"""What is refused at the door: parameters that are not real, and numbers out of their range."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from fimlens.views import path_name


def require_number(call: str, name: str, value: Any, least: int, below: int | None = None, whole: bool = False) -> None:
    """Refuse a number of Python's that is out of its range, or is to be whole; arrays, traced ones too, pass.

    Raises:
        ValueError: it is.
    """
    if not isinstance(value, float | int):
        return
    if not (value >= least and (below is None or value < below) and (not whole or float(value).is_integer())):
        kind = "a whole number" if whole else "a number"
        bounds = f"at least {least}" if below is None else f"at least {least} and below {below}"
        raise ValueError(f"{call}: {name} is {kind}, {bounds}; got {value}")


def require_real(call: str, params: PyTree) -> None:
    """Refuse parameters that are not real numbers of floating point.

    Raises:
        TypeError: one is not.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"{call}: parameter {path_name(path)!r} is of dtype {dtype}; parameters are real and of floating point. "
                "Leave others out, with optax.masked."
            )

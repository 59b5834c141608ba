"""What is refused at the door: parameters that are not real, and numbers out of their range."""

import math
from dataclasses import fields
from inspect import get_annotations
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

REMEDY = "Hyper-parameters are fields of a @dataclass(frozen=True), as in `k: int = 2` (what all share: a ClassVar)."


class OnlyFields:
    """A base of frozen dataclasses that has no attributes beside compared fields, nor their subclasses.

    A dataclass compares its own fields and no others, so that instances which differ elsewhere would be equal, and `jax.jit`
    would run one with the code compiled for another.

    Raises:
        TypeError: an attribute is set that is no field, or one is annotated that is no field, or a field is not compared.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> "OnlyFields":
        annotated = {name: str(kind) for base in reversed(cls.__mro__) for name, kind in get_annotations(base).items()}
        named = [name for name, kind in annotated.items() if not ("ClassVar" in kind or "KW_ONLY" in kind)]
        compared = cls.__dataclass_params__.eq
        own = get_annotations(cls) if "__dataclass_fields__" not in vars(cls) else {}  # without the decorator no field is made
        loose = [name for name in named if name not in cls.__dataclass_fields__ or name in own]
        loose += [field.name for field in fields(cls) if not (compared and field.compare)]
        if loose:
            raise TypeError(f"{cls.__name__}: {', '.join(loose)} would not tell two instances apart. {REMEDY}")
        return super().__new__(cls)

    def __str__(self) -> str:
        parts: list[str] = []
        for place, f in enumerate(fields(self)):
            value = getattr(self, f.name)
            if value != f.default:  # a value is named once one before it was left out
                parts.append(str(value) if len(parts) == place else f"{f.name}={value}")
        return f"{type(self).__name__}({', '.join(parts)})"

    def __setattr__(self, name: str, value: Any) -> None:
        raise TypeError(f"{type(self).__name__}: {name} would not tell two instances apart, as it is no field. {REMEDY}")


def finite(value: Any) -> Any:
    """The value, or None for a float that is infinite or not a number."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


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


def path_name(path: Any) -> str:
    """A leaf's path in words: "layers/0/attention/query"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")

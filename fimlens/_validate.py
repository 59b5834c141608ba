"""Checks of arguments that several rooms share, and small helpers for what is printed and saved."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sized
from dataclasses import fields
from difflib import get_close_matches
from fnmatch import fnmatchcase
from inspect import get_annotations
from numbers import Integral
from pathlib import Path
from types import FunctionType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree


class OnlyFields:
    """A base of frozen dataclasses whose instances differ in their fields or not at all.

    `jax.jit` takes two equal structures for one, and a dataclass compares nothing but its fields. If an instance could differ
    in anything else, it would run with the code compiled for another.

    Raises:
        TypeError: an attribute is set or annotated that is not a field, or a field is not compared.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> "OnlyFields":
        annotated = {name: str(kind) for base in reversed(cls.__mro__) for name, kind in get_annotations(base).items()}
        named = [name for name, kind in annotated.items() if not ("ClassVar" in kind or "KW_ONLY" in kind)]
        compared = cls.__dataclass_params__.eq
        own = get_annotations(cls) if "__dataclass_fields__" not in vars(cls) else {}  # without @dataclass they are no fields
        unseen = [name for name in named if name not in cls.__dataclass_fields__ or name in own]
        unseen += [field.name for field in fields(cls) if not (compared and field.compare)]
        if unseen:
            raise _not_compared(cls, ", ".join(unseen))
        return super().__new__(cls)

    def __str__(self) -> str:
        parts: list[str] = []
        for place, f in enumerate(fields(self)):
            value = getattr(self, f.name)
            if value != f.default:  # a value is named once one before it was left out
                parts.append(str(value) if len(parts) == place else f"{f.name}={value}")
        return f"{type(self).__name__}({', '.join(parts)})"

    def __setattr__(self, name: str, value: Any) -> None:
        raise _not_compared(type(self), name)


def _not_compared(cls: type, names: str) -> TypeError:
    return TypeError(
        f"{cls.__name__}: instances that differ in {names} would be equal, as only fields are compared. Make it a "
        "compared field of a @dataclass(frozen=True), as in `k: int = 2` (or a ClassVar, if all instances share it)."
    )


def as_json(value: Any) -> Any:
    """Return the value as JSON holds it: named tuples as objects, "inf" and "-inf" for infinite floats, None for NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if hasattr(value, "_asdict"):
        value = value._asdict()
    return {key: as_json(part) for key, part in value.items()} if isinstance(value, Mapping) else value


def read_number(value: Any) -> Any:
    """Undo `as_json` for a number: NaN for None, and infinity for "inf". What is no number raises a TypeError."""
    if value is None or isinstance(value, str):
        return math.nan if value is None else float(value)
    if not isinstance(value, float | int):
        raise TypeError(f"expected a number; got {value!r}")
    return value


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a kill leaves either the old content or all of the new one."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)  # a rename within a directory is atomic


def differences(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> str:
    """Say which entries of a run a stored one has otherwise, for the refusal to continue there; "" if none."""
    return ", ".join(f"{name} {theirs.get(name)!r} there and {x!r} here" for name, x in mine.items() if theirs.get(name) != x)


def finite(value: Any) -> Any:
    """Return the value, or None for a float that JSON cannot hold: infinite or NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def require_known(call: str, what: str, name: str, known: Collection[str]) -> None:
    """Refuse a name that is not known, and suggest the nearest one.

    Args:
        call: the function, command or option, with which the message begins.
        what: what it is a name of.
        name: the name.
        known: all names that there are.

    Raises:
        ValueError: the name is not known.
    """
    if name not in known:
        nearest = "".join(f" Is it {near!r}?" for near in get_close_matches(name, known, 1))
        raise ValueError(f"{call}: there is no {what} {name!r}.{nearest} There are {', '.join(known)}.")


def require_number(call: str, name: str, value: Any, least: int, below: int | None = None, whole: bool = False) -> None:
    """Refuse a number of Python or NumPy outside its range, or a string. Arrays pass, as they may be traced.

    Args:
        call: the public function, named in the message.
        name: the argument's name.
        value: its value.
        least: the least value allowed.
        below: a bound that it must be below; none by default.
        whole: whether it must be a whole number.

    Raises:
        ValueError: the number is out of range, or not whole.
    """
    # Under optax.inject_hyperparams the value is an array, and traced.
    if not isinstance(value, float | int | str | np.generic):
        return
    in_range = not isinstance(value, str) and value >= least and (below is None or value < below)
    if not in_range or (whole and not float(value).is_integer()):
        kind = "a whole number" if whole else "a number"
        bounds = f"at least {least}" if below is None else f"at least {least} and below {below}"
        raise ValueError(f"{call}: {name} is {kind}, {bounds}; got {value!r}")


def require_decay(call: str, name: str, value: Any) -> None:
    """Refuse a decay that is a number outside 0 to 1; a decay of 1 makes a sum.

    Raises:
        ValueError: it is.
    """
    if isinstance(value, float | int | np.generic) and not 0 <= value <= 1:
        raise ValueError(f"{call}: the decay {name} is between 0 and 1; got {value}")


def require_some(call: str, given: Sized, what: str) -> None:
    """Refuse an empty collection of what there is one of for each matrix.

    Raises:
        ValueError: it is empty.
    """
    if not given:
        raise ValueError(f"{call}: there are no {what}. Give those of one matrix at least.")


def require_real(call: str, params: PyTree) -> None:
    """Refuse a tree of parameters unless all are real and of floating point.

    Raises:
        TypeError: some parameter is complex, an integer or a boolean.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"{call}: parameter {path_name(path)!r} is of dtype {dtype}; parameters must be real and of floating point. "
                "Leave others out, with optax.masked."
            )


def path_name(path: Any) -> str:
    """Return a leaf's path as a string such as "layers/0/attention/query"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def require_own_names(call: str, names: Iterable[str]) -> None:
    """Refuse names of which two are one, where routes, axes and readings are told apart by them.

    Raises:
        ValueError: two are.
    """
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(f"{call}: {count} parameters have the path {name!r}. Rename a key that holds a slash.")


def names_like(names: Iterable[str], pattern: str) -> list[str]:
    """Return the names that a pattern names: the one that it equals, or else all that are like it.

    A name may itself look like a pattern, as "w[0]" does, so that an equal one comes first. "." stands for "/" too, as in names
    of files.
    """
    slashed, wanted = {name: name.replace(".", "/") for name in names}, pattern.replace(".", "/")
    equal = [name for name, path in slashed.items() if path == wanted]
    return equal or [name for name, path in slashed.items() if fnmatchcase(path, wanted)]


def require_rank(call: str, rank: Any) -> None:
    """Refuse a rank that is not a positive whole number; errors as `require_size`."""
    require_size(call, "rank", rank)


def require_size(call: str, name: str, size: Any, least: int = 1) -> None:
    """Refuse a size that is not a positive whole number, or for a `least` of 0 one that is negative.

    Raises:
        TypeError: it is not a whole number.
        ValueError: it is below `least`.
    """
    if isinstance(size, bool) or not isinstance(size, Integral):
        raise TypeError(
            f"{call}: {name} is a whole number; got {size!r}. Round it; under optax.inject_hyperparams, name it in static_args."
        )
    if size < least:
        raise ValueError(f"{call}: {name} is {'a positive number' if least else 'a number, at least 0'}; got {size}")


def require_transform(call: str, name: str, tx: Any) -> None:
    """Refuse what is no gradient transformation, such as the function of an optimizer that was not called.

    Raises:
        TypeError: it has no `init` or no `update`.
    """
    if not (hasattr(tx, "init") and hasattr(tx, "update")):
        given = f"the function {tx.__name__}: call it, as in {tx.__name__}(...)" if isinstance(tx, FunctionType) else repr(tx)
        raise TypeError(f"{call}: {name} is an optimizer or a transform of Optax or fimlens; got {given}.")

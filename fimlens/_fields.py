"""What tells two instances of a class apart is a field of it, compared: compiled code is kept by that comparison."""

from dataclasses import fields
from inspect import get_annotations
from typing import Any

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

    def __setattr__(self, name: str, value: Any) -> None:
        raise TypeError(f"{type(self).__name__}: {name} would not tell two instances apart, as it is no field. {REMEDY}")

"""An optimizer that is made from another takes over its arguments, and their lines in the "Args:" section of the docstring."""

import inspect
import re
from collections.abc import Callable, Iterable

SECTION = re.compile(r"^(?=(?:Args|Raises|Examples):$)", re.MULTILINE)


ARGUMENT = re.compile(r"^    (?=\w+: )", re.MULTILINE)


def sections(doc: str | None) -> dict[str, str]:
    """The parts of a docstring by title, titles included: "" for the text before them, then "Args", "Raises", "Examples"."""
    parts = SECTION.split(inspect.cleandoc(doc or ""))
    return {part.partition(":\n")[0] if i else "": part.strip() for i, part in enumerate(parts)}


def argument_lines(doc: str | None) -> dict[str, str]:
    """The lines that describe each argument in the "Args:" section, by name."""
    entries = ARGUMENT.split(sections(doc).get("Args", ""))[1:]
    return {entry.partition(":")[0]: entry.rstrip() for entry in entries}


def with_arguments(doc: str | None, lines: dict[str, str], names: Iterable[str]) -> str:
    """The docstring with an "Args:" section of these arguments, in this order; one without lines is left out."""
    parts = sections(doc)
    described = "\n".join(f"    {lines[name]}" for name in names if name in lines)
    parts = {"": parts.pop(""), "Args": f"Args:\n{described}", **{t: part for t, part in parts.items() if t != "Args"}}
    return "\n\n".join(parts.values())


def takes_over(other: Callable, *, without: tuple[str, ...]) -> Callable[[Callable], Callable]:
    """Decorate a function that passes its `**options` on to another: it shows the other's arguments, and then its own.

    Args:
        other: the function that the options go to.
        without: the arguments of the other that are fixed.
    """

    def shown(function: Callable) -> Callable:
        own = [each for each in inspect.signature(function).parameters.values() if each.kind is not each.VAR_KEYWORD]
        taken = [each for name, each in inspect.signature(other).parameters.items() if name not in without]
        function.__signature__ = inspect.Signature([*taken, *own])
        lines = argument_lines(other.__doc__) | argument_lines(function.__doc__)
        function.__doc__ = with_arguments(function.__doc__, lines, function.__signature__.parameters)
        return function

    return shown

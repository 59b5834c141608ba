"""The subcommands of `fimlens`, one file each; and what they share."""

import importlib
import os
import sys
import sysconfig
import traceback
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from fimlens.lens.compare import STRUCTURES
from fimlens.structure import Structure

console, errors = Console(), Console(stderr=True)


# columns to the left; numbers go to the right
WORDS = ("structure", "optimizer", "claim", "head", "table", "arm", "statement", "sizes", "verdict")


def table(*headings: str) -> Table:
    made = Table(box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in headings:
        made.add_column(heading, justify="left" if heading in WORDS else "right", no_wrap=True)
    return made


def attribute(option: str, reference: str) -> Any:
    """The object that module:attribute names; modules in the current directory count."""
    module, _, name = reference.partition(":")
    if not name:
        raise ValueError(f"{option}: expected module:attribute, such as mymodel:loss; got {reference!r}")
    if not name.isidentifier():
        raise ValueError(
            f"{option}: {name!r} is no name. What is called with arguments, or lies deeper, gets a name in the module: write "
            f"mine = {name} there, and give {module}:mine."
        )
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise ValueError(f"{option}: {error}. Run from the directory of {module}.py, or install it.") from error
    except AttributeError as error:
        raise ValueError(f"{option}: {error}") from error


def refusal(command: str, error: BaseException) -> str:
    """An error in the name of a command, once, and where in the user's own code it was raised."""
    return f"fimlens {command}: {str(error).removeprefix(f'{command}: ')}{place(error)}"


def require_writable(option: str, path: Path | None) -> None:
    if path is not None and (path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK)):
        raise ValueError(f"{option}: cannot write {path}. Name a file in a directory that is there and may be written to.")


def place(error: BaseException) -> str:
    """Where in the user's own code an error was raised; nothing for one that is ours."""
    libraries = [Path(__file__).parents[1], *(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))]
    frames = [(Path(frame.filename).absolute(), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    own = [f"{file}:{line}" for file, line in frames if not any(file.is_relative_to(library) for library in libraries)]
    return f" ({own[-1]})" if own else ""


def named_dtype(option: str, name: str) -> Any:
    try:
        return jnp.dtype(name)
    except TypeError as error:
        raise ValueError(f"{option}: {name!r} is no dtype; try float32 or bfloat16.") from error


def named_structures(option: str, names: str) -> dict[str, Structure]:
    """Structures by the lens's names for them, or as module:attribute, separated by commas."""
    chosen: dict[str, Structure] = {}
    for name in (part.strip() for part in names.split(",")):
        if ":" in name:
            value = attribute(option, name)
            value = value() if isinstance(value, type) else value
            if not isinstance(value, Structure):
                raise ValueError(f"{option}: {name} is a {type(value).__name__}, not a structure.")
            chosen[name.partition(":")[2]] = value
        elif name in STRUCTURES:
            chosen[name] = STRUCTURES[name]
        else:
            known = ", ".join(STRUCTURES)
            raise ValueError(f"{option}: there is no structure {name!r}. There are {known}, or your own as module:attribute.")
    return chosen

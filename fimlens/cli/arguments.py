"""What the commands share: consoles, tables, and the reading of arguments."""

import importlib
import inspect
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from fimlens.costs.memory import Optimizer, has_rank, optimizers_of
from fimlens.divergence import Beta, Divergence
from fimlens.lens.nearness import DIVERGENCES
from fimlens.structure import Structure

# Words such as "[G]" and paths such as "w[0]" are no markup, and numbers have no colours of their own.
console, errors = (Console(stderr=stderr, markup=False, highlight=False) for stderr in (False, True))


RANKED = "optimizers that have a rank"


# Headings of columns of words, which are aligned to the left; numbers are aligned to the right.
WORDS = {
    "structure", "family", "nearest in", "optimizer", "claim", "verified",
    "head", "table", "arm", "statement", "sizes", "verdict",
}  # fmt: skip


def table(*headings: str, title: str | None = None) -> Table:
    """Return an empty table in the style of all commands."""
    made = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in headings:
        made.add_column(heading, justify="left" if heading in WORDS else "right", no_wrap=True)
    return made


def long_progress(**options: Any) -> Progress:
    """Return a bar for work of many minutes, with the time that is left. Descriptions may hold any text.

    Args:
        options: further ones of `rich.progress.Progress`.
    """
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=errors, **options)


def attribute(option: str, reference: str) -> Any:
    """Return the object that "module:attribute" names. The module may stand in the current directory."""
    module, _, name = reference.partition(":")
    if not (name and all(module.split("."))):
        raise ValueError(f"{option}: expected module:attribute, such as mymodel:loss; got {reference!r}")
    if not name.isidentifier():
        raise ValueError(
            f"{option}: {name!r} is no name. Give it one in the module: write mine = {name} there, and pass {module}:mine."
        )
    # The console script does not search the current directory, as `python -m` does.
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise ValueError(f"{option}: {error}. Run from the directory of {module}.py, or install it.") from error
    except AttributeError as error:
        raise ValueError(f"{option}: {error}") from error


@contextmanager
def refusing(command: str, *others: type[Exception]) -> Iterator[None]:
    """Print what is refused in one line and exit, with status 1 after a step that was not finite, and else with 2.

    Args:
        command: the name of the command, with which the line begins.
        others: errors that are refusals in this command, beside a wrong value, a file that fails, a missing package and a
            module of the user's own that does not parse.
    """
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError, SyntaxError, *others) as error:
        errors.print(_refusal(command, error), style="red")
        raise typer.Exit(1 if isinstance(error, FloatingPointError) else 2) from error


@contextmanager
def importing(command: str, extra: str) -> Iterator[None]:
    """Import within a command what needs optional packages, so that the other commands work without them.

    Args:
        command: the name of the command, for the line that says which package is missing.
        extra: the extra of fimlens that has these packages.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        errors.print(f"fimlens {command}: {error}. It needs pip install 'fimlens[{extra}]'.", style="red")
        raise typer.Exit(2) from error


def _refusal(command: str, error: BaseException) -> str:
    """Return an error's message with the command's name in front, once, and the place in the user's own code that raised it."""
    message = str(error)
    for name in (command, "pretrain", "finetune"):  # `compare` trains by the plans and the loop of the other two
        message = message.removeprefix(f"{name}: ")
    return f"fimlens {command}: {message}{_user_line(error)}"


def refuse_unread(context: typer.Context, what: str, read_with: Mapping[str, Sequence[str]]) -> None:
    """Refuse options that were given and that nothing reads: a run without them is not the one that was meant.

    Args:
        context: what the command line gave.
        what: what the command works on, which is one of several.
        read_with: for parameters of the command, what each is read with; those not in it are always read.
    """
    for parameter in context.command.params:
        readers = read_with.get(parameter.name, (what,))
        if what not in readers and context.get_parameter_source(parameter.name).name == "COMMANDLINE":
            raise ValueError(f"{parameter.opts[0]} is read with {' or '.join(readers)} alone, not with {what}. Leave it out.")


def require_writable(option: str, path: Path | None) -> None:
    """Refuse a path that cannot be written to, before anything is computed."""
    if path is not None and (path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK)):
        raise ValueError(f"{option}: cannot write {path}. Name a file in an existing directory that you may write to.")


def require_apart(paths: Mapping[str, Path | None]) -> None:
    """Refuse two paths, by the option or the argument of each, that are one file: what is written last would be all of it."""
    first: dict[Path, str] = {}
    for option, path in paths.items():
        if path is not None and (other := first.setdefault(path.resolve(), option)) != option:
            raise ValueError(f"{option}: {path} is the file of {other} too. Name another.")


def _user_line(error: BaseException) -> str:
    """Return " (file:line)" for the innermost line of the user's own code in a traceback; "" if there is none."""
    frames = [(Path(frame.filename).absolute(), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    own = [f"{file}:{line}" for file, line in frames if _is_users(file)]
    return f" ({own[-1]})" if own else ""


def _is_users(file: Path) -> bool:
    """Return whether a file is neither fimlens' nor a library's. A generated __init__ has no file at all."""
    libraries = Path(__file__).parents[1], sysconfig.get_path("stdlib")
    packages = {"site-packages", "dist-packages"} & set(file.parts)
    return file.is_file() and not packages and not any(file.is_relative_to(library) for library in libraries)


def named_dtype(option: str, name: str) -> Any:
    """Return the dtype of real numbers that has this name."""
    try:
        dtype = jnp.dtype(name)
    except TypeError as error:
        raise ValueError(f"{option}: {name!r} is no dtype; try float32 or bfloat16.") from error
    if not any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer)):
        raise ValueError(f"{option}: {name!r} is no dtype of real numbers; try float32 or bfloat16.")
    return dtype


def parse_structures(option: str, names: str, known: Mapping[str, Structure]) -> dict[str, Structure]:
    """Return the structures that a list separated by commas names: those known, or your own as module:attribute."""
    chosen: dict[str, Structure] = {}
    for name in (part.strip() for part in names.split(",")):
        if ":" in name:
            value = attribute(option, name)
            value = value() if isinstance(value, type) else value  # a class stands for its instance without arguments
            if not isinstance(value, Structure):
                raise ValueError(f"{option}: {name} is a {type(value).__name__}, not a structure.")
            chosen[name.partition(":")[2]] = value
        elif name in known:
            chosen[name] = known[name]
        else:
            listed = ", ".join(known)
            raise ValueError(f"{option}: there is no structure {name!r}. There are {listed}, or your own as module:attribute.")
    return chosen


def parse_divergence(command: str, name: str) -> Divergence:
    """Return the divergence that is named, such as "von-neumann", or Beta(b) for a number b."""
    known = {title.lower().replace(" ", "-"): divergence for title, divergence in DIVERGENCES.items()}
    if name in known:
        return known[name]
    try:
        b = float(name)
    except ValueError as error:
        raise ValueError(
            f"{command}: there is no divergence {name!r}. There are {', '.join(known)}, or a number b for Beta(b)."
        ) from error
    return Beta(b)


def named_optimizers(option: str, names: list[str]) -> dict[str, Optimizer]:
    """Optimizers by fimlens's names for them, or as module:function of the learning rate."""
    chosen: dict[str, Optimizer] = {}
    for name in names:
        if ":" not in name:
            chosen |= optimizers_of(option, [name])
            continue
        chosen[name] = attribute(option, name)
        if not callable(chosen[name]):
            raise ValueError(f"{option}: {name} is a {type(chosen[name]).__name__}, not a function of the learning rate.")
        if not accepts(chosen[name], 1.0):
            raise ValueError(f"{option}: {name} takes no learning rate. Name a function of it that returns an optimizer.")
    return chosen


def require_ranked(context: typer.Context, chosen: Mapping[str, Optimizer]) -> None:
    """Refuse --rank where no optimizer has one."""
    ranked = any(has_rank(optimizer) for optimizer in chosen.values())
    refuse_unread(context, RANKED if ranked else ", ".join(chosen), {"rank": (RANKED,)})


def accepts(function: Callable[..., Any], *given: Any) -> bool:
    """Whether a function can be called with these arguments, as far as its signature says."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # of some functions written in C there is none
        return True
    try:
        signature.bind_partial(*given) if given else signature.bind()
    except TypeError:
        return False
    return True

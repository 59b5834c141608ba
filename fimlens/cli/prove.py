"""fimlens prove: decide the closed forms with SymPy, on the functions that ship."""

import difflib
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer
from rich.text import Text

from fimlens import __version__, derivations
from fimlens.cli.arguments import console, errors, long_progress, refusing, require_apart, require_writable, table
from fimlens.proofs.page import page
from fimlens.proofs.theorem import load_derivations
from fimlens.proofs.verdicts import Proof, try_to_prove


def prove(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Derivations, such as adam racs, or a file of your own, such as mine.py. Default: all of fimlens."),
    ] = None,
    html_file: Annotated[
        Path | None,
        typer.Option("--html", help="Write a page with the mathematics, every step and every verdict to this file."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every step and verdict as JSON to this file.")] = None,
) -> None:
    """Prove the closed forms symbolically, for all entries at the sizes listed. Exit with 1 if a step fails.

    All derivations of fimlens take about two minutes on one core; most of them alone take seconds.
    """
    with refusing("prove"):
        known = load_derivations(derivations)
        # A name that is given twice is proved once.
        chosen = [_find(name, known) for name in dict.fromkeys(names or known)]
        require_writable("--html", html_file)
        require_writable("--json", json_file)
        own = {name: Path(name) for name in names or () if name not in known}
        require_apart(own | {"--html": html_file, "--json": json_file})
        proofs = _run(chosen)
        _print(proofs)
        ok = all(proof.proved for proof in proofs)
        if json_file is not None:
            report = {"fimlens": __version__, "ok": ok, "derivations": [proof.to_json() for proof in proofs]}
            json_file.write_text(json.dumps(report, indent=2) + "\n")
        if html_file is not None:
            html_file.write_text(page(proofs), encoding="utf-8")
    if not ok:
        raise typer.Exit(1)


def _find(name: str, known: Mapping[str, ModuleType]) -> ModuleType:
    """A derivation by its name, or from a file of the user's own."""
    if name in known:
        return known[name]
    if not name.endswith(".py"):
        near = "".join(f" Did you mean {other}?" for other in difflib.get_close_matches(name, known, 1))
        raise ValueError(f"there is no derivation {name!r}.{near} The derivations are {', '.join(known)}; or name a file.")
    if not Path(name).is_file():
        raise ValueError(f"{name} is no file. Name a derivation, or a file that has SIZES and steps(m, n).")
    spec = importlib.util.spec_from_file_location(f"derivations.{Path(name).stem}", name)
    # Dataclasses look their module up in sys.modules, so it is entered there before its code runs.
    derivation = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(derivation)
    if not (hasattr(derivation, "SIZES") and hasattr(derivation, "steps")):
        raise ValueError(f"{name} is not a derivation: it needs SIZES, the sizes (m, n), and a generator steps(m, n).")
    if not _are_sizes(derivation.SIZES):
        raise ValueError(f"{name}: SIZES are pairs of positive numbers, such as ((2, 2), (2, 3)); got {derivation.SIZES!r}.")
    return derivation


def _are_sizes(given: Any) -> bool:
    """Whether these are the sizes of matrices, (m, n)."""
    try:
        return len(given) >= 0 and all(isinstance(side, int) and side > 0 for m, n in given for side in (m, n))
    except (TypeError, ValueError):  # no list, or no pairs
        return False


def _run(chosen: Sequence[ModuleType]) -> list[Proof]:
    """Prove the derivations at all their sizes, with a progress bar."""
    with long_progress(transient=True) as bar:
        task = bar.add_task("", total=sum(len(derivation.SIZES) for derivation in chosen))
        proofs = []
        for derivation in chosen:
            proofs.append(Proof(derivation, verdicts := []))
            for size in derivation.SIZES:
                bar.update(task, description=f"{proofs[-1].name} at {_size(size)}")
                verdicts.append(try_to_prove(derivation, size))
                bar.advance(task)
    return proofs


def _print(proofs: Sequence[Proof]) -> None:
    """Print a row for each proof, and a line for each step that failed."""
    shown = table("statement", "sizes", "steps", "seconds", "verdict")
    shown.columns[0].no_wrap = False
    for proof in proofs:
        statement = Text.assemble((proof.name, "bold"), f": {proof.paragraphs[0]}")
        sizes = ", ".join(_size(verdict.size) for verdict in proof.verdicts)
        steps = sum(len(verdict.steps) for verdict in proof.verdicts)
        shown.add_row(statement, sizes, str(steps), f"{proof.seconds:.1f}", "proved" if proof.proved else "NOT PROVED")
    console.print(shown)
    console.print(_conclusion(proofs))
    for verdict, step in (failure for proof in proofs for failure in proof.failures):
        where = f"{verdict.name} at {_size(verdict.size)}, step {len(verdict.steps)}"
        residue = f"; the residue is {step.residue_text}" if step.residue_text else ""
        errors.print(f"{where}: {step.description}{residue}", style="red")


def _conclusion(proofs: Sequence[Proof]) -> str:
    """Say how many statements are proved, and what that means."""
    proved = sum(proof.proved for proof in proofs)
    steps = sum(len(verdict.steps) for proof in proofs for verdict in proof.verdicts)
    return (
        f"{proved} of {len(proofs)} statements are proved, in {steps} steps. A step is decided for all entries at the sizes "
        "listed, on the functions that ship; nothing is proved of other sizes."
    )


def _size(size: tuple[int, int]) -> str:
    return "{} x {}".format(*size)

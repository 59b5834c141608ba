"""fimlens prove: every closed form, decided on the functions that run."""

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from fimlens import __version__
from fimlens.cli.arguments import console, errors, require_writable, table
from fimlens.proofs.page import page
from fimlens.proofs.theorem import derivations
from fimlens.proofs.verdicts import Proof, attempt, remainder


def prove(
    names: Annotated[list[str] | None, typer.Argument(help="Derivations, such as adam racs; all by default.")] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", help="Write a page here: the mathematics, every step and every verdict.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every step and verdict here.")] = None,
) -> None:
    """Prove the closed forms symbolically, for all entries at the sizes named; exit with 1 where a step fails."""
    try:
        chosen = _chosen(names)
        require_writable("--html", html_file)
        require_writable("--json", json_file)
        proofs = _carry_out(chosen)
        _print(proofs)
        ok = all(proof.proved for proof in proofs)
        if json_file is not None:
            report = {"fimlens": __version__, "ok": ok, "derivations": [proof.to_json() for proof in proofs]}
            json_file.write_text(json.dumps(report, indent=2) + "\n")
        if html_file is not None:
            html_file.write_text(page(proofs), encoding="utf-8")
    except (ValueError, OSError) as error:
        errors.print(f"fimlens prove: {error}", style="red", markup=False)
        raise typer.Exit(2) from error
    if not ok:
        raise typer.Exit(1)


def _chosen(names: list[str] | None) -> list[ModuleType]:
    known = derivations()
    for name in names or ():
        if name not in known:
            near = "".join(f" Did you mean {other}?" for other in difflib.get_close_matches(name, known, 1))
            raise ValueError(f"there is no derivation {name!r}.{near} There are {', '.join(known)}.")
    return [known[name] for name in dict.fromkeys(names or known)]


def _carry_out(chosen: Sequence[ModuleType]) -> list[Proof]:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=errors, transient=True) as bar:
        task = bar.add_task("", total=sum(len(derivation.SIZES) for derivation in chosen))
        proofs = []
        for derivation in chosen:
            proofs.append(Proof(derivation, verdicts := []))
            for size in derivation.SIZES:
                bar.update(task, description=f"{proofs[-1].name} at {_at(size)}")
                verdicts.append(attempt(derivation, size))
                bar.advance(task)
    return proofs


def _print(proofs: Sequence[Proof]) -> None:
    shown = table("statement", "all entries at", "steps", "seconds", "verdict")
    shown.columns[0].no_wrap = False
    for proof in proofs:
        statement = Text.assemble((proof.name, "bold"), f": {proof.paragraphs[0]}")
        sizes = ", ".join(_at(verdict.size) for verdict in proof.verdicts)
        steps = sum(len(verdict.steps) for verdict in proof.verdicts)
        shown.add_row(statement, sizes, str(steps), f"{proof.seconds:.1f}", "proved" if proof.proved else "NOT PROVED")
    console.print(shown)
    for verdict, step in (failure for proof in proofs for failure in proof.failures):
        where = f"{verdict.name} at {_at(verdict.size)}, step {len(verdict.steps)}"
        left = remainder(step)
        errors.print(f"{where}: {step.says}{left and '; there remains '}{left}", style="red", markup=False)


def _at(size: tuple[int, int]) -> str:
    return "{} x {}".format(*size)

"""fimlens ablate: what tracking, switching and compensation are worth to Alice, on a small language model."""

import json
import os
from collections.abc import Iterable
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fimlens._validate import finite
from fimlens.cli.arguments import console, errors, refusal, require_writable, table
from fimlens.experiments.ablation import (
    FULL,
    GROUPS,
    MAIN,
    PAPER,
    Arm,
    Results,
    Run,
    arms,
    carry_out,
    in_order,
    options_of,
    picture,
    runs_of,
    tuned,
)


def ablate(
    groups: Annotated[str, typer.Option(help="Which tables, separated by commas.")] = ",".join(GROUPS),
    rates: Annotated[str, typer.Option(help="Learning rates that each main arm is tuned over.")] = "0.01,0.02,0.05,0.1,0.2",
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each run.")] = 240,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each arm.")] = 3,
    workers: Annotated[int | None, typer.Option(min=1, help="Runs at a time; one a core by default.")] = None,
    out: Annotated[Path, typer.Option(help="Directory of runs.jsonl, ablate.json and ablate.png.")] = Path("ablate-out"),
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers here as well.")] = None,
) -> None:
    """Alice without tracking, switching and compensation, and with them; its strategies, rank and refresh interval.

    A byte-level language model of 0.3 million parameters is trained on the sources of Python's standard library. The four
    main arms are each tuned over the same rates; the others run at the rate that full Alice is best at. Runs are kept as they
    end: started again with the same --out, it goes on where it was.
    """
    try:
        chosen, grid = _groups(groups), _rates(rates)
        require_writable("--json", json_file)
        out.mkdir(parents=True, exist_ok=True)
        results = Results(out / "runs.jsonl")
        if results.broken:
            console.print(f"{out / 'runs.jsonl'}: {results.broken} lines are no runs, and are left out.", markup=False)
        workers = workers or os.cpu_count() or 1
        main, full = runs_of(["main"], grid, seeds, steps), options_of(MAIN[FULL])
        _train("main arms", [run for run in main if "main" in chosen or run.options == full], results, workers)
        best, _ = tuned(results, MAIN[FULL], grid, seeds, steps)
        _train("the others", runs_of([g for g in chosen if g != "main"], [best], seeds, steps), results, workers)
    except BrokenExecutor as error:
        remedy = "It may have run out of memory: start again, with fewer --workers. Runs that ended are kept."
        errors.print(f"fimlens ablate: a run was killed. {remedy}", style="red", markup=False)
        raise typer.Exit(1) from error
    except (ValueError, OSError) as error:
        errors.print(refusal("ablate", error), style="red", markup=False)
        raise typer.Exit(2) from error
    found = arms(results, grid, seeds, steps, chosen)
    _print(found)
    picture(found, out / "ablate.png")
    plain = [arm._replace(losses=[finite(x) for x in arm.losses]) for arm in found]
    numbers = json.dumps([arm._asdict() for arm in plain], indent=2, allow_nan=False) + "\n"  # null: it diverged
    for path in (out / "ablate.json", json_file):
        if path is not None:
            path.write_text(numbers)
    console.print(f"Wrote ablate.png and ablate.json to {out}.", markup=False, highlight=False)


def _train(what: str, runs: list[Run], results: Results, workers: int) -> None:
    columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=len(runs), completed=sum(run in results.losses for run in runs))
        for _ in carry_out(runs, results, workers):
            progress.advance(task)


def _print(found: Iterable[Arm]) -> None:
    shown = table("table", "arm", "rate", "loss", "each seed")
    for arm in found:
        shown.add_row(arm.group, arm.name, f"{arm.rate:g}", f"{arm.mean:.4f}", " ".join(f"{x:.4f}" for x in arm.losses))
    console.print("Held-out loss, nats per byte: the mean over seeds.", style="bold", highlight=False)
    console.print(shown)
    if any(arm.group == "main" for arm in found):
        order = " < ".join(sorted(PAPER, key=PAPER.__getitem__))
        keeps = "keeps" if in_order(list(found), PAPER) else "does not keep"
        console.print(f"The main table {keeps} the order of [G]'s at 130M parameters: {order}.", markup=False, highlight=False)


def _groups(given: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in given.split(",")))
    unknown = [name for name in names if name not in GROUPS]
    if unknown:
        raise ValueError(f"--groups: there is no table {unknown[0]!r}. There are {', '.join(GROUPS)}.")
    return names


def _rates(given: str) -> list[float]:
    try:
        rates = [float(rate) for rate in given.split(",")]
    except ValueError as error:
        raise ValueError(f"--rates: expected numbers separated by commas; got {given!r}.") from error
    if not all(0 < rate < float("inf") for rate in rates):
        raise ValueError(f"--rates: learning rates are positive; got {given!r}.")
    return rates

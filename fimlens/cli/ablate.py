"""The command `fimlens ablate`: what tracking, switching and compensation contribute to Alice, on a small language model."""

import json
import os
from collections.abc import Iterable
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Annotated

import typer

from fimlens._validate import finite, require_known
from fimlens.cli.arguments import console, errors, long_progress, refusing, require_apart, require_writable, table
from fimlens.experiments.ablation import (
    FULL,
    GROUPS,
    MAIN,
    PAPER,
    Arm,
    Results,
    Run,
    all_options,
    arms,
    best_rate,
    list_runs,
    plot,
    same_order,
    train_missing,
)


def ablate(
    groups: Annotated[str, typer.Option(help="Tables to make, separated by commas.")] = ",".join(GROUPS),
    rates: Annotated[str, typer.Option(help="Learning rates to try for each main arm.")] = "0.01,0.02,0.05,0.1,0.2",
    steps: Annotated[int, typer.Option(min=1, help="Steps of each run.")] = 240,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds for each arm.")] = 3,
    workers: Annotated[int | None, typer.Option(min=1, help="Runs at the same time; by default one per core.")] = None,
    out: Annotated[Path, typer.Option(file_okay=False, help="Directory of runs.jsonl, ablate.json and ablate.png.")] = Path(
        "ablate-out"
    ),
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the numbers to this file.")] = None,
) -> None:
    """Measure what tracking, switching, compensation, rank and refresh interval contribute to Alice.

    Each run trains a byte-level language model of 0.3 million parameters on the sources of Python's standard library. The four
    main arms are tuned over the same learning rates; the others run at the best rate of full Alice. Results are stored as runs
    end: the same command with the same --out continues after an interruption.
    """
    try:
        with refusing("ablate"):
            chosen, grid = _groups(groups), _rates(rates)
            require_writable("--json", json_file)
            require_apart({name: out / name for name in ("runs.jsonl", "ablate.png")} | {"--json": json_file})
            out.mkdir(parents=True, exist_ok=True)
            results = Results(out / "runs.jsonl")
            if results.broken:
                console.print(f"{out / 'runs.jsonl'}: {results.broken} lines cannot be read, and are ignored.")
            workers = workers or os.cpu_count() or 1
            main, full = list_runs(["main"], grid, seeds, steps), all_options(MAIN[FULL])
            console.print(
                f"{len(main)} runs of {steps} steps for the main arms, {workers} at a time; then the other arms, at Alice's "
                "best rate. The bar shows the time that is left, from the runs so far."
            )
            # Full Alice is always needed, because its best rate is the rate of all other tables.
            _train("main arms", [run for run in main if "main" in chosen or run.options == full], results, workers)
            best, _ = best_rate(results, MAIN[FULL], grid, seeds, steps)
            _train("other arms", list_runs([g for g in chosen if g != "main"], [best], seeds, steps), results, workers)
    except BrokenExecutor as error:
        remedy = "It may have run out of memory: start again with fewer --workers. Finished runs are not repeated."
        errors.print(f"fimlens ablate: a run was killed. {remedy}", style="red")
        raise typer.Exit(1) from error
    found = arms(results, grid, seeds, steps, chosen)
    _print(found)
    plot(found, out / "ablate.png")
    plain = [arm._replace(losses=[finite(x) for x in arm.losses]) for arm in found]
    numbers = json.dumps([arm._asdict() for arm in plain], indent=2, allow_nan=False) + "\n"  # null: the run diverged
    for path in (out / "ablate.json", json_file):
        if path is not None:
            path.write_text(numbers)
    console.print(f"Wrote ablate.png and ablate.json to {out}.")


def _train(what: str, runs: list[Run], results: Results, workers: int) -> None:
    """Train the runs without a result, with a bar of progress."""
    with long_progress(transient=True) as progress:
        task = progress.add_task(what, total=len(runs), completed=sum(run in results.losses for run in runs))
        for _ in train_missing(runs, results, workers):
            progress.advance(task)


def _print(found: Iterable[Arm]) -> None:
    """Print the table of results, and whether the main arms have the order of the paper."""
    shown = table("table", "arm", "rate", "loss", "each seed")
    for arm in found:
        shown.add_row(arm.group, arm.name, f"{arm.rate:g}", f"{arm.mean:.4f}", " ".join(f"{x:.4f}" for x in arm.losses))
    console.print("Held-out loss in nats per byte: the mean over seeds, and each seed.", style="bold")
    console.print(shown)
    if any(arm.group == "main" for arm in found):
        order = " < ".join(sorted(PAPER, key=PAPER.__getitem__))
        has = "has" if same_order(list(found), PAPER) else "does not have"
        console.print(f"The main table {has} the order of [G] at 130M parameters: {order}.")


def _groups(given: str) -> list[str]:
    """Read the names of tables, each once."""
    names = list(dict.fromkeys(name.strip() for name in given.split(",")))
    for name in names:
        require_known("--groups", "table", name, GROUPS)
    return names


def _rates(given: str) -> list[float]:
    """Read the learning rates."""
    try:
        rates = [float(rate) for rate in given.split(",")]
    except ValueError as error:
        raise ValueError(f"--rates: expected numbers separated by commas; got {given!r}.") from error
    if not all(0 < rate < float("inf") for rate in rates):
        raise ValueError(f"--rates: learning rates are positive; got {given!r}.")
    return rates

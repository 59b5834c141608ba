"""The parts of `fimlens compare`: what runs elsewhere take, the trainings behind a bar, and the report."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.progress import track

from fimlens.cli.arguments import console, errors, long_progress, table
from fimlens.experiments import dry_run, lengths_report, report, score_report
from fimlens.experiments.choices import CHOICE_HEADINGS, choice_cells
from fimlens.experiments.comparison import Entry, plan_for
from fimlens.experiments.lengths import Curve, run_lengths
from fimlens.pretrain.plan import Plan
from fimlens.pretrain.recipe import Data, Recipe
from fimlens.pretrain.timing import measure_or_read

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]  # headings and cells


def show_needs(entries: list[Entry], base: Plan, runs: dict[int, int], machine: dry_run.Machine, out: Path | None) -> None:
    """Print what all runs take on a machine, and write it to dry-run.json in `out`, where it is given.

    Args:
        entries: the optimizers.
        base: the plan of every run, apart from optimizer, rate, seed and length.
        runs: how many runs of each optimizer have each length.
        machine: the devices.
        out: a directory.
    """
    needs = dry_run.dry_run(entries, base, runs, machine)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "dry-run.json").write_text(json.dumps(dry_run.as_json(needs, base, machine), indent=2) + "\n")
    _show([(dry_run.MEMORY_HEADINGS, dry_run.memory_cells(needs)), (dry_run.TIME_HEADINGS, dry_run.time_cells(needs))])
    console.print(dry_run.conclude(needs, base, machine))


def train_all(
    make: Callable[[Recipe], list[Entry]],
    count: int,
    base: Recipe,
    data: Data,
    runs: dict[int, int],
    out: Path,
    *,
    tries: int,
    seeds: int,
) -> list[Curve]:
    """Train every optimizer at every length, or read what is trained already, behind a bar that counts the runs.

    Args:
        make: makes the entries of a plan.
        count: how many these are.
        base: the plan of every run, apart from optimizer, rate, seed and length.
        data: the text, or the examples of a task.
        runs: how many runs of one optimizer have each length, at most: a bracketed rate needs fewer tries.
        out: the directory of all runs.
        tries: learning rates to try at most for each optimizer.
        seeds: seeds to train at the best rate.
    """
    most, started, current = sum(runs.values()), dict[str, int](), ""
    every, steps = count * most, count * sum(at * each for at, each in runs.items())
    errors.print(f"{every} runs at most, of {steps:,} steps in all. Finished runs in {out} are read.")
    with long_progress(transient=True) as bar:
        total = bar.add_task("", total=every)

        def show_run(entry: Entry, power: int, seed: int) -> None:
            nonlocal current
            started[entry.name] = started.get(entry.name, -1) + 1
            current = f"{entry.name}, rate {entry.rate(power):g}, seed {seed}"
            bar.update(total, completed=most * (len(started) - 1) + started[entry.name], description=current)

        def show_metrics(line: Any) -> None:
            perplexity = {} if line.perplexity is None else {"perplexity": line.perplexity}
            words = [f"{name} {value:.3f}" for name, value in (perplexity | dict(line.scores)).items()]
            bar.update(total, description=f"{current}: {', '.join([f'step {line.step}', *words])}")

        options = {"tries": tries, "seeds": seeds, "on_start": show_run, "callback": show_metrics}
        return run_lengths(make, base, list(runs), data, out, **options)


def show_results(curves: list[Curve], base: Recipe, data: Data, out: Path) -> None:
    """Time a step of each optimizer, print all tables, and write table.md, compare.json and the figures to `out`.

    Args:
        curves: the trainings, the reference first.
        base: the plan of every run, apart from optimizer, rate, seed and length.
        data: the text, or the examples of a task.
        out: the directory of all runs.
    """
    entries = [curve.entry for curve in curves]
    results = {curve.entry.name: curve.runs[base.steps] for curve in curves}
    # Steps are timed after all trainings, whose own clocks depend on interruptions and on the load of the machine.
    timed = track(entries, "timing", console=errors, transient=True)
    costs = {each.name: measure_or_read(each.name, plan_for(each, base, 0, 0), data, out / "speed.json") for each in timed}
    rows = report.make_rows(entries, results, costs)
    if isinstance(base, Plan):
        tables, legend = _tables_of_losses(rows, base), report.legend(rows[0].name)
    else:
        scores, legend = base.task.scores, score_report.LEGEND
        tables = [(score_report.headings(scores), score_report.cells(entries, results, rows, scores))]
    tables.append((CHOICE_HEADINGS, choice_cells(entries, [row.rate for row in rows], base)))
    words, written = [legend], report.as_json(entries, results, rows, base)
    if len(curves[0].runs) > 1:
        step = {row.name: row.step for row in rows}
        tables.append(lengths_report.loss_cells(curves))
        tables.append((lengths_report.SPEED_HEADINGS, lengths_report.speed_cells(curves, step)))
        words += [lengths_report.LEGEND, lengths_report.conclude(curves, step)]
        written |= {"lengths": lengths_report.as_json(curves)}
        lengths_report.plot(curves, out / "lengths.png")
    (out / "table.md").write_text(
        "\n".join([*(report.markdown(*each) for each in tables), report.runs_table(entries, results)])
    )
    (out / "compare.json").write_text(json.dumps(written, indent=2) + "\n")
    report.plot(entries, results, rows, out / "compare.png")
    _show(tables)
    for line in [*words, f"Wrote table.md, compare.json and compare.png to {out}."]:
        console.print(line)


def _tables_of_losses(rows: list[report.Row], base: Plan) -> list[Table]:
    return [(report.LOSS_HEADINGS, report.loss_cells(rows, base)), (report.COST_HEADINGS, report.cost_cells(rows, base))]


def _show(tables: list[Table]) -> None:
    for headings, cells in tables:
        shown = table(*headings)
        for row in cells:
            shown.add_row(*row)
        console.print(shown)

"""The command `fimlens compare`: optimizers on one model and one text, each at its own best rate, over several seeds."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, track

from fimlens.cli.arguments import console, errors, refusal, table
from fimlens.cli.pretrain import options_of


def compare(
    more: Annotated[list[str] | None, typer.Argument(metavar="[OPTIMIZERS]...", help="More names.", show_default=False)] = None,
    optimizers: Annotated[
        list[str] | None,
        typer.Option(metavar="NAMES...", help="Names such as adam, alice or adamw:b2=0.95. The first is the reference."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds at each optimizer's best rate.")] = 3,
    tune: Annotated[bool, typer.Option("--tune/--no-tune", help="Try several learning rates, with the first seed.")] = True,
    tries: Annotated[int, typer.Option(min=3, help="Learning rates to try at most, for each optimizer.")] = 5,
    model: Annotated[str, typer.Option(help="A model of fimlens pretrain.")] = "cpu-1m",
    option: Annotated[
        list[str] | None, typer.Option(help="Option such as rank=32, for every optimizer that has it. Repeatable.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each run; with --lengths, of those that tune the rate.")] = 300,
    lengths: Annotated[
        str | None, typer.Option(help="Numbers of steps, as in 150,300,600: a whole schedule for each, --steps among them.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences per step.")] = 16,
    length: Annotated[int, typer.Option(min=1, help="Tokens per sequence.")] = 128,
    dtype: Annotated[str, typer.Option(help="Data type of weights and activations: float32 or bfloat16.")] = "float32",
    state_dtype: Annotated[str, typer.Option(help="Data type of the optimizers' states: float32 or bfloat16.")] = "float32",
    text_path: Annotated[
        list[Path] | None, typer.Option("--text", help="Text files or directories; by default Python's standard library.")
    ] = None,
    shards: Annotated[Path | None, typer.Option(help="Directory of token shards, instead of text.")] = None,
    out: Annotated[Path, typer.Option(help="Directory of runs, table and figure; a comparison in it continues.")] = Path(
        "compare-out"
    ),
) -> None:
    """Train each optimizer at its own best learning rate, and compare losses, speed and memory with the first one.

    All optimizers begin at the same weights and see the same batches. The same command with the same --out continues after an
    interruption. It writes table.md, compare.json and compare.png, and with --lengths the final losses against the length too,
    in lengths.png.
    """
    try:  # imported here, because Flax, Grain and Orbax are optional: the other commands work without them
        from fimlens.experiments import comparison, lengths_report, report
        from fimlens.experiments.lengths import read_lengths, run_lengths, tries_at
        from fimlens.pretrain import data
        from fimlens.pretrain.plan import Plan
    except ModuleNotFoundError as error:
        errors.print(f"fimlens compare: {error}. It needs pip install 'fimlens[train]'.", style="red", markup=False)
        raise typer.Exit(2) from error
    try:
        base = Plan(model, steps=steps, batch=batch, length=length, dtype=dtype, state_dtype=state_dtype)
        names = [*(optimizers or []), *(more or [])] or ["adam", "racs", "alice"]
        given, chosen = options_of(option), read_lengths(lengths, steps)
        own = {name: options_of(name.partition(":")[2].split(",")) for name in names if ":" in name}
        make = partial(comparison.make_entries, names, given=given, own=own)
        entries = make(base)  # a wrong name is refused before the text is read
        corpus = data.read_files(text_path) if shards is None else data.read_shards(shards)
        tries = tries if tune else 1
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with Progress(*columns, console=errors, transient=True) as bar:
            # Runs of one optimizer at most; a bracketed rate needs fewer tries.
            most = sum(each + seeds - 1 for each in tries_at(steps, chosen, tries).values())
            task, current = bar.add_task("", total=most * len(entries)), ""
            started: dict[str, int] = {}

            def show_run(entry: comparison.Entry, power: int, seed: int) -> None:
                nonlocal current
                started[entry.name] = started.get(entry.name, -1) + 1
                current = f"{entry.name}, rate {entry.rate(power):g}, seed {seed}"
                bar.update(task, completed=most * (len(started) - 1) + started[entry.name], description=current)

            def show_metrics(line: Any) -> None:
                bar.update(task, description=f"{current}: step {line.step}, perplexity {line.perplexity:.2f}")

            options = {"tries": tries, "seeds": seeds, "on_start": show_run, "callback": show_metrics}
            curves = run_lengths(make, base, chosen, corpus, out, **options)
        results = {curve.entry.name: curve.tuned for curve in curves}
        # Steps are timed after all trainings, whose own clocks depend on interruptions and on the load of the machine.
        timed = track(entries, "timing", console=errors, transient=True)
        costs = {each.name: comparison.measure_or_read(each, base, corpus, out / "speed.json") for each in timed}
        rows = report.make_rows(entries, results, costs)
        tables = [(report.LOSS_HEADINGS, report.loss_cells(rows, base)), (report.COST_HEADINGS, report.cost_cells(rows, base))]
        written = report.as_json(entries, results, rows, base)
        if len(chosen) > 1:
            tables += [
                lengths_report.loss_cells(curves),
                lengths_report.speed_cells(curves, {row.name: row.step for row in rows}),
            ]
            written |= {"lengths": lengths_report.as_json(curves)}
            lengths_report.plot(curves, out / "lengths.png")
        sections = [*(report.markdown(*each) for each in tables), report.runs_table(entries, results)]
        (out / "table.md").write_text("\n".join(sections))
        (out / "compare.json").write_text(json.dumps(written, indent=2) + "\n")
        report.plot(entries, results, rows, out / "compare.png")
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        errors.print(refusal("compare", error), style="red", markup=False)
        raise typer.Exit(2) from error
    for headings, cells in tables:
        shown = table(*headings)
        for row in cells:
            shown.add_row(*row)
        console.print(shown)
    console.print(report.legend(rows[0].name), highlight=False)
    if len(chosen) > 1:
        console.print(lengths_report.LEGEND, highlight=False)
        console.print(lengths_report.conclude(curves), highlight=False, markup=False)
    console.print(f"Wrote table.md, compare.json and compare.png to {out}.", markup=False, highlight=False)

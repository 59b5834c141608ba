"""fimlens compare: optimizers on one model and one text, each at its own best rate, over some seeds."""

import json
from dataclasses import asdict
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
        typer.Option(metavar="NAMES...", help="adam racs alice apollo-svd and so on; others are measured by the first."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds at each optimizer's best rate.")] = 3,
    tune: Annotated[bool, typer.Option("--tune/--no-tune", help="Try several rates of each, with the first seed.")] = True,
    tries: Annotated[int, typer.Option(min=3, help="At most so many rates of each.")] = 5,
    model: Annotated[str, typer.Option(help="As of fimlens pretrain.")] = "cpu-1m",
    option: Annotated[list[str] | None, typer.Option(help="Such as rank=32, for all that have it; as often as needed.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Of each run.")] = 300,
    batch: Annotated[int, typer.Option(min=1, help="Sequences a step.")] = 16,
    length: Annotated[int, typer.Option(min=1, help="Tokens a sequence.")] = 128,
    dtype: Annotated[str, typer.Option(help="Of weights and activations: float32 or bfloat16.")] = "float32",
    state_dtype: Annotated[str, typer.Option(help="Of the optimizers' states: float32 or bfloat16.")] = "float32",
    text_path: Annotated[
        list[Path] | None, typer.Option("--text", help="Files or directories; Python's standard library by default.")
    ] = None,
    shards: Annotated[Path | None, typer.Option(help="A directory of token shards, in place of text.")] = None,
    out: Annotated[Path, typer.Option(help="Directory of runs, table and figure; a comparison that is there goes on.")] = Path(
        "compare-out"
    ),
) -> None:
    """Train with each optimizer at its own best rate: what each reaches, and how much sooner than the first.

    All begin at the same weights and see the same batches. Runs are kept as they end: started again with the same --out, it
    goes on where it was. It writes table.md, compare.json and compare.png.
    """
    try:
        from fimlens.experiments import comparison as contest
        from fimlens.experiments import report as standing
        from fimlens.pretrain import data
        from fimlens.pretrain.plan import Plan
        from fimlens.pretrain.timing import Speed, speed
    except ModuleNotFoundError as error:
        errors.print(f"fimlens compare: {error}. It needs pip install 'fimlens[train]'.", style="red", markup=False)
        raise typer.Exit(2) from error
    try:
        base = Plan(model, steps=steps, batch=batch, length=length, dtype=dtype, state_dtype=state_dtype)
        names = [*(optimizers or []), *(more or [])] or ["adam", "racs", "alice"]
        contestants = contest.entries(names, base, options_of(option))
        corpus = data.of_files(text_path) if shards is None else data.of_shards(shards)
        tries = tries if tune else 1
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with Progress(*columns, console=errors, transient=True) as bar:
            most = tries + seeds - 1
            task, run, runs_of = bar.add_task("", total=most * len(contestants)), {}, {}

            def begun(entry: contest.Entry, power: int, seed: int) -> None:
                runs_of[entry.name] = runs_of.get(entry.name, -1) + 1
                done = most * (len(runs_of) - 1) + runs_of[entry.name]
                run["is"] = f"{entry.name}, rate {entry.rate(power):g}, seed {seed}"
                bar.update(task, completed=done, description=run["is"])

            def told(line: Any) -> None:
                bar.update(task, description=f"{run['is']}: step {line.step}, perplexity {line.perplexity:.2f}")

            results = contest.carried_out(
                contestants, base, corpus, out, tries=tries, seeds=seeds, begun=begun, told=told
            )  # fmt: skip
        kept = out / "speed.json"
        measured = json.loads(kept.read_text()) if kept.exists() else {}
        speeds = {}
        for each in track(contestants, "timing", console=errors, transient=True):
            plan = contest.plan_of(each, base, 0, 0)
            if measured.get(each.name, {}).get("plan") != asdict(plan):
                measured[each.name] = {"plan": asdict(plan), "speed": speed(plan, corpus)._asdict()}
                kept.write_text(json.dumps(measured, indent=2) + "\n")
            speeds[each.name] = Speed(**measured[each.name]["speed"])
        rows = standing.standings(contestants, results, speeds)
        tables = [(standing.REACHED, standing.reached(rows, base)), (standing.COSTS, standing.costs(rows, base))]
        written = [standing.markdown(*each) for each in tables] + [standing.tried(contestants, results)]
        (out / "table.md").write_text("\n".join(written))
        (out / "compare.json").write_text(json.dumps(standing.numbers(contestants, results, rows, base), indent=2) + "\n")
        standing.picture(contestants, results, rows, out / "compare.png")
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        errors.print(refusal("compare", error), style="red", markup=False)
        raise typer.Exit(2) from error
    for headings, cells in tables:
        shown = table(*headings)
        for row in cells:
            shown.add_row(*row)
        console.print(shown)
    console.print(
        f"Losses are held out, in nats a token, the median of the seeds; 'it' is what {rows[0].name} ends at, x how much "
        "sooner, effective its tokens over that time. The share is the optimizer's, of a step; MB are of weights and state. "
        "The first seed chose the rates, by this loss. *: at the edge of those tried.",
        highlight=False,
    )
    console.print(f"Wrote table.md, compare.json and compare.png to {out}.", markup=False, highlight=False)

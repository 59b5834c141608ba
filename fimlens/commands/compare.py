"""fimlens compare: optimizers on one model and one text, each at its own best rate, over some seeds."""

import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from fimlens.commands import console, errors, place
from fimlens.commands.pretrain import options_of


def compare(
    more: Annotated[list[str] | None, typer.Argument(metavar="[NAMES]...", help="Of optimizers.")] = None,
    optimizers: Annotated[list[str] | None, typer.Option(help="Names of optimizers: adam racs alice apollo-svd and so on.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds at each optimizer's best rate.")] = 3,
    tune: Annotated[bool, typer.Option("--tune/--no-tune", help="Try several rates of each with the first seed.")] = True,
    tries: Annotated[int, typer.Option(min=1, help="At most so many rates of each.")] = 5,
    model: Annotated[str, typer.Option(help="cpu-1m, cpu-5m, llama-60m, llama-130m, llama-350m, llama-1b or llama-7b.")] = "cpu-1m",
    option: Annotated[list[str] | None, typer.Option(help="Such as rank=32, for those optimizers that have it.")] = None,
    steps: Annotated[int, typer.Option(min=1)] = 400,
    batch: Annotated[int, typer.Option(min=1, help="Sequences a step.")] = 16,
    length: Annotated[int, typer.Option(min=1, help="Tokens a sequence.")] = 128,
    dtype: Annotated[str, typer.Option(help="Of weights and optimizer state: float32 or bfloat16.")] = "float32",
    text_path: Annotated[
        list[Path] | None, typer.Option("--text", help="Files or directories; Python's standard library by default.")
    ] = None,
    shards: Annotated[Path | None, typer.Option(help="A directory of token shards, in place of text.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Runs at a time; by default one a core, and one on a GPU.")] = None,
    out: Annotated[Path, typer.Option(help="Directory of runs, table and figures; a comparison that is there goes on.")] = Path("compare-out"),
) -> None:
    """Train with each optimizer at its own best rate; what each reaches, and how much sooner than the first named."""
    from fimlens.pretrain import contest, data
    from fimlens.pretrain.plan import Plan

    names = [*(optimizers or []), *(more or [])] or ["adam", "racs", "alice"]
    base = Plan(model, steps=steps, batch=batch, length=length, dtype=dtype)
    contestants = contest.entries(names, base, options_of(option))
    corpus = partial(data.of_files, text_path) if shards is None else partial(data.of_shards, shards)
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=errors) as bar:
        task = bar.add_task("training", total=None)

        def told(entry, power, seed, result, left):
            bar.print(f"{entry.name} {entry.rate(power):g} {seed}: {result.loss:.4f}")

        results = contest.carried_out(contestants, base, corpus, out, tries=tries if tune else 1, seeds=seeds, workers=workers or os.cpu_count(), told=told)

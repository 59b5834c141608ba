"""Whether a learning rate that was tuned on a narrow model suits a wide one, with and without `fl.width_multipliers`.

    python benchmarks/rate_transfer.py [--steps 150] [--seeds 1] [--json FILE] [--figure FILE] [--budget SECONDS]

The model is that of fimlens/experiments/trial.py with four layers, at widths of 64, 128 and 256; heads keep 16 numbers, and
the MLP is 2.6875 times as wide. At 64 and 128 the rates are five, a factor of two apart, around START; at 256 three, around
the best at 128. Every run has its whole schedule, a warm-up and a cosine, and the loss is in nats a byte on held-out windows.
The multipliers are relative to a width of 64, where they are one, so that both series share their runs there. Before the runs
we predicted two things. With multipliers the best rate at 256 is that at 64 or its neighbour. Without them AdamW's falls by a
factor of two or more, and Muon's stays.

Each line of the file is one run. A second call continues the file; with a budget no run starts later than that.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import jax
import optax
from rich.console import Console
from rich.table import Table

import fimlens as fl
from fimlens import plotting
from fimlens._records import add_records, known_records
from fimlens.experiments.trial import train_and_evaluate
from fimlens.language_model import llama

BASE, WIDTHS = 64, (64, 128, 256)
START = {"adamw": 0.01, "muon": 0.02, "racs": 0.08}
SERIES = (False, True)  # without and with multipliers

Run = tuple[str, bool, int, float]  # optimizer, whether it has multipliers, width and rate
Runs = dict[Run, list[float]]  # the losses of its seeds


def config(width: int) -> llama.Config:
    return llama.Config(vocabulary=256, hidden=width, mlp=width * 43 // 16, heads=width // 16, layers=4)


def shapes(width: int) -> dict:
    return jax.eval_shape(partial(llama.init, config(width)), jax.random.key(0))


def optimizer(name: str, multiplied: bool, width: int) -> Callable[[optax.Schedule], optax.GradientTransformation]:
    """Return the maker of an optimizer from its schedule."""
    make = getattr(fl, name)
    if not multiplied:
        return make
    return lambda rate: optax.chain(make(rate), fl.width_multipliers(name, shapes(width), shapes(BASE)))


def best(runs: Runs, name: str, multiplied: bool, width: int) -> tuple[float, float] | None:
    """Return the least median loss of a series at a width, and its rate; None before any run."""
    of = {rate: losses for (*series, rate), losses in runs.items() if series == [name, multiplied and width != BASE, width]}
    return min(((statistics.median(losses), rate) for rate, losses in of.items()), default=None)


def planned(runs: Runs, seeds: int) -> Iterable[tuple[Run, int]]:
    """Yield the runs that are left and the seed of each, in their order; the last width's depend on the best before it."""
    for width in WIDTHS:
        for multiplied in SERIES[: 1 if width == BASE else 2]:
            for name, start in START.items():
                last = width == WIDTHS[-1]
                centre = best(runs, name, multiplied, WIDTHS[-2])[1] if last else start
                for power in (-1, 0, 1) if last else (-2, -1, 0, 1, 2):
                    run = name, multiplied, width, centre * 2.0**power
                    yield from ((run, seed) for seed in range(len(runs.get(run, ())), seeds))


def read(path: Path, steps: int) -> Runs:
    """Return the losses of the runs of this length in the file."""
    runs: Runs = {}
    for run in (line for line in known_records(path) if line["steps"] == steps):
        runs.setdefault((run["optimizer"], run["multipliers"], run["width"], run["rate"]), []).append(run["loss"])
    return runs


def table(runs: Runs) -> Table:
    shown = Table("optimizer", "multipliers", *(f"best rate at {width}" for width in WIDTHS), *(f"loss, {w}" for w in WIDTHS))
    for name in START:
        for multiplied in SERIES:
            found = [best(runs, name, multiplied, width) for width in WIDTHS]
            cells = [f"{one[1]:g}" if one else "" for one in found] + [f"{one[0]:.4f}" if one else "" for one in found]
            shown.add_row(name, "yes" if multiplied else "no", *cells)
    return shown


def draw(runs: Runs, path: Path) -> None:
    """Draw the loss against the rate, a panel for each optimizer and series and a line for each width."""
    figure = plotting.sheet(len(START), len(SERIES), width=4.2, height=2.6)
    for axes, (name, multiplied) in zip(figure.axes, ((n, m) for n in START for m in SERIES), strict=True):
        for width, style, colour in zip(WIDTHS, plotting.STYLES, plotting.COLOURS, strict=False):
            series = name, multiplied and width != BASE, width
            points = sorted((rate, statistics.median(losses)) for (*own, rate), losses in runs.items() if tuple(own) == series)
            line = {"linestyle": style, "color": colour, "marker": "o", "markersize": 3, "label": f"width {width}"}
            if points:
                axes.plot(*zip(*points, strict=True), **line)
        rates = sorted({rate for (kind, *_, rate) in runs if kind == name})
        own = [loss for (kind, *_), losses in runs.items() if kind == name for loss in losses]
        axes.set_xscale("log", base=2)
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axes.set_ylim(min(own) - 0.05, max(own) + 0.05)  # the same for both series
        axes.set(title=f"{name}, {'with' if multiplied else 'without'} multipliers", xlabel="rate", ylabel="nats a byte")
    plotting.legend_below(figure)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path(__file__).with_name("rate_transfer.jsonl"))
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--budget", type=float, default=float("inf"))
    options = parser.parse_args()
    runs, end = read(options.json, options.steps), time.monotonic() + options.budget
    for run, seed in planned(runs, options.seeds):
        if time.monotonic() > end:
            break
        name, multiplied, width, rate = run
        make = optimizer(name, multiplied, width)
        loss = train_and_evaluate(make, rate, steps=options.steps, seed=seed, config=config(width))
        runs.setdefault(run, []).append(loss)
        line = {"optimizer": name, "multipliers": multiplied, "width": width, "rate": rate, "seed": seed}
        add_records(options.json, line | {"steps": options.steps, "loss": loss})
    Console(width=160).print(table(runs))
    if options.figure:
        draw(runs, options.figure)


if __name__ == "__main__":
    main()

"""What came of a comparison: a row for each optimizer, in a table and in pictures."""

import math
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes

from fimlens._validate import finite
from fimlens.experiments.comparison import Entry, Results, steps_to
from fimlens.experiments.tuning import best_power
from fimlens.plotting import COLOURS, STYLES, sheet
from fimlens.pretrain.plan import Plan
from fimlens.pretrain.timing import Speed

REACHED = ("optimizer", "rate", "loss", "spread", "perplexity", "steps to it", "x steps", "x time")


COSTS = ("optimizer", "tokens/s", "effective tokens/s", "share, %", "MB")


class Standing(NamedTuple):
    """What an optimizer reached at its best rate.

    Losses are held out, in nats a token, of each seed at the last step; `bracketed` says whether rates on both sides were
    tried and worse. `steps` is how many it takes to the loss that the first optimizer ends at with the same seed, the median
    over seeds, infinite where it never gets there; `step` the seconds of one, `state` bytes of optimizer state beside
    `weights`.
    """

    name: str
    rate: float
    bracketed: bool
    losses: list[float]
    steps: float
    step: float
    share: float
    weights: int
    state: int

    @property
    def loss(self) -> float:
        """The median over seeds."""
        return statistics.median(self.losses)

    @property
    def perplexity(self) -> float:
        """A token's."""
        return math.exp(self.loss) if math.isfinite(self.loss) else math.inf


def standings(contestants: list[Entry], results: dict[str, Results], speeds: dict[str, Speed]) -> list[Standing]:
    """A row for each, the first being the one that others are measured by.

    The gradient is the same for all, so its time is taken as the median of all measurements, and each optimizer's as its
    ratio to the gradient that it was timed beside.

    Raises:
        ValueError: the first diverged with some seed.
    """
    gradient = statistics.median(speeds[each.name].gradient for each in contestants)
    reference = results[contestants[0].name]
    if not all(math.isfinite(reference[_best(reference), seed].loss) for seed in _seeds(reference)):
        raise ValueError(f"compare: {contestants[0].name} diverged, and others are measured by it. Name another one first.")
    goals = {seed: reference[_best(reference), seed].loss for seed in _seeds(reference)}
    rows = []
    for each in contestants:
        runs, speed = results[each.name], speeds[each.name]
        best, tried = _best(runs), [power for power, seed in runs if seed == 0]
        seeds = _seeds(runs)
        steps = [steps_to(goals[seed], runs[best, seed].lines) for seed in seeds]
        rows.append(
            Standing(
                each.name,
                each.rate(best),
                min(tried) < best < max(tried),
                [runs[best, seed].loss for seed in seeds],
                statistics.median(math.inf if x is None else x for x in steps),
                gradient / (1 - speed.share),
                speed.share,
                speed.weights,
                speed.state,
            )
        )
    return rows


def _best(runs: Results) -> int:
    return best_power({key: result.loss for key, result in runs.items()})


def _seeds(runs: Results) -> list[int]:
    best = _best(runs)
    return sorted(seed for power, seed in runs if power == best)


def reached(rows: list[Standing], base: Plan) -> list[tuple[str, ...]]:
    """Cells under REACHED, from the lowest loss to the highest; a rate at the edge of those tried has a star.

    The steps are those to the loss that the first optimizer ends at; x how much sooner that is than in all its steps.
    """
    return [
        (
            row.name,
            f"{row.rate:g}" + ("" if row.bracketed else "*"),
            f"{row.loss:.4f}",
            f"{max(row.losses) - min(row.losses):.4f}" if math.isfinite(max(row.losses)) else "",
            f"{row.perplexity:.3f}",
            *(
                (
                    f"{row.steps:.0f}",
                    f"{base.steps / row.steps:.2f}",
                    f"{base.steps * rows[0].step / (row.steps * row.step):.2f}",
                )
                if math.isfinite(row.steps)
                else ("never", "", "")
            ),
        )
        for row in sorted(rows, key=lambda row: row.loss)
    ]


def costs(rows: list[Standing], base: Plan) -> list[tuple[str, ...]]:
    """Cells under COSTS, in the same order.

    Effective tokens/s are [G]'s: the tokens that the first optimizer was trained on, over the time to its loss. The share is
    the optimizer's, of a step; megabytes are of weights and optimizer state.
    """
    tokens = base.batch * base.length
    return [
        (
            row.name,
            f"{tokens / row.step:,.0f}",
            f"{tokens * base.steps / (row.steps * row.step):,.0f}" if math.isfinite(row.steps) else "",
            f"{100 * row.share:.1f}",
            f"{(row.weights + row.state) / 1e6:.2f}",
        )
        for row in sorted(rows, key=lambda row: row.loss)
    ]


def markdown(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table."""
    lines = [headings, ("---",) * len(headings), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def tried(contestants: list[Entry], results: dict[str, Results]) -> str:
    """A table of every run's loss: the first seed's at each rate, and the other seeds'."""
    lines = []
    for each in contestants:
        runs = results[each.name]
        rates = [f"{each.rate(power):g}: {runs[power, seed].loss:.4f}" for power, seed in sorted(runs) if seed == 0]
        others = [f"{runs[_best(runs), seed].loss:.4f}" for seed in _seeds(runs)[1:]]
        options = ", ".join(f"{key} {value}" for key, value in each.options.items())
        lines.append((each.name, options, ", ".join(rates), ", ".join(others)))
    return markdown(("optimizer", "options", "rate: loss of seed 0", "the other seeds at the best"), lines)


def numbers(contestants: list[Entry], results: dict[str, Results], rows: list[Standing], base: Plan) -> dict[str, Any]:
    """All of it for JSON: the plan, every run's curve, every row; null for what is infinite."""
    entries = []
    for each, row in zip(contestants, rows, strict=True):
        runs = [
            {
                "rate": each.rate(power),
                "seed": seed,
                "loss": finite(result.loss),
                "held_out": [(line.step, finite(line.held_out)) for line in result.lines if line.held_out is not None],
            }
            for (power, seed), result in sorted(results[each.name].items())
        ]
        losses = {"losses": [finite(x) for x in row.losses]}
        standing = {key: finite(value) for key, value in row._asdict().items()} | losses
        entries.append({**asdict(each), "standing": standing, "runs": runs})
    return {"plan": asdict(base), "entries": entries}


def picture(contestants: list[Entry], results: dict[str, Results], rows: list[Standing], path: Path) -> None:
    """Losses held out, the median over seeds, against steps and against time; names at the ends of their lines.

    The first and the five lowest of the others have a stroke and a colour each, in the order of their losses and the first
    last; all beyond are thin.
    """
    figure = sheet(1, 2, width=4.2, height=4.4)
    by_steps, by_time = figure.axes
    by_time.sharey(by_steps)
    lowest = sorted(rows[1:], key=lambda row: row.loss)[: len(STYLES) - 1]
    strokes = [{"linestyle": stroke, "color": colour, "linewidth": 1.8} for stroke, colour in zip(STYLES, COLOURS, strict=True)]
    marked = dict(zip([row.name for row in lowest], strokes, strict=False)) | {rows[0].name: strokes[-1] | {"linewidth": 2.6}}
    ends: list[tuple[Axes, float, float, str, dict[str, Any]]] = []
    top = 0.0
    for each, row in zip(contestants, rows, strict=True):
        runs = results[each.name]
        curves = [[x for x in runs[_best(runs), s].lines if x.held_out is not None] for s in _seeds(runs)]
        if not all(curves):
            continue
        steps = [float(line.step) for line in curves[0]]
        losses = [statistics.median(losses) for losses in zip(*([x.held_out for x in c] for c in curves), strict=True)]
        top = max(top, losses[len(losses) // 4])
        style = marked.get(each.name, {"color": "0.7", "linewidth": 0.8, "zorder": 1})
        for axes, unit in ((by_steps, 1.0), (by_time, row.step)):
            axes.plot([unit * step for step in steps], losses, **style)
            ends.append((axes, unit * steps[-1], losses[-1], each.name, style))
    bottom = min(end[2] for end in ends)
    for axes, what in ((by_steps, "steps"), (by_time, "seconds, at the measured time of a step")):
        axes.hlines(rows[0].loss, 0, max(end[1] for end in ends if end[0] is axes), color="0.7", linewidth=0.8, linestyle=":")
        axes.text(0, rows[0].loss, f" where {rows[0].name} ends", va="bottom", fontsize=8)
        axes.set_xlabel(what)
        _label([end[1:] for end in ends if end[0] is axes], axes, top - bottom)
    by_steps.set_ylabel("held-out loss, nats per token")
    by_steps.set_ylim(bottom - 0.03, top)
    figure.savefig(path, dpi=150)


def _label(ends: list[tuple[float, float, str, dict[str, Any]]], axes: Axes, height: float) -> None:
    """Names to the right of all lines, in the order of their losses and never over each other."""
    edge, place = max(x for x, *_ in ends), -math.inf
    for x, loss, name, style in sorted(ends, key=lambda end: end[1]):
        place = max(loss, place + 0.04 * height)
        axes.annotate(
            name, (x, loss), (1.08 * edge, place), va="center", fontsize=8,
            arrowprops={"arrowstyle": "-", "relpos": (0, 0.5), "shrinkB": 5, **style, "linewidth": 0.6},
        )  # fmt: skip
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= edge])
    axes.set_xlim(0, 1.4 * edge)

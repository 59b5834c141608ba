"""The report of a comparison: one row for each optimizer, shown as tables, JSON and a figure."""

import math
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes

from fimlens._validate import finite
from fimlens.experiments.comparison import Entry, Results, at_best_rate, best_of, steps_to_reach
from fimlens.plotting import COLOURS, STYLES, sheet
from fimlens.pretrain.recipe import Recipe
from fimlens.pretrain.timing import StepCost

LOSS_HEADINGS = ("optimizer", "rate", "loss", "spread", "perplexity", "steps", "speed-up", "in time")


COST_HEADINGS = ("optimizer", "tokens/s", "effective tokens/s", "share of step, %", "memory, MB")


class Row(NamedTuple):
    """What one optimizer reaches at its best learning rate, and what it costs.

    Attributes:
        name: the optimizer's name in the comparison.
        rate: its best learning rate.
        bracketed: whether a smaller and a larger rate were tried, and were worse.
        losses: held-out loss of each seed at the last step, in nats per token.
        steps: steps that this optimizer needs to reach the final loss of the first one with the same seed; the median over
            seeds, infinite if it never gets there.
        step: seconds of one step.
        share: the optimizer's share of those seconds.
        weights: bytes of the weights.
        state: bytes of the optimizer's state.
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
        """The median loss over the seeds."""
        return statistics.median(self.losses)

    @property
    def marked_rate(self) -> str:
        """The rate in words; a star marks one at the edge of those tried."""
        return f"{self.rate:g}" + ("" if self.bracketed else "*")

    @property
    def perplexity(self) -> float:
        """The perplexity per token."""
        return math.exp(self.loss) if self.loss < 700 else math.inf  # exp(710) overflows


def make_rows(entries: list[Entry], results: dict[str, Results], costs: dict[str, StepCost]) -> list[Row]:
    """Summarize each entry; the first one is the reference for the speed-up of the others.

    Raises:
        ValueError: the first entry diverged with some seed.
    """
    # The gradient of a model is the same for every optimizer, and its measurements differ by noise only: take their median. The
    # optimizer's time enters as a ratio to the gradient measured beside it, which cancels drifts of the machine's speed.
    gradients: dict[str, list[float]] = {}
    for each in entries:
        gradients.setdefault(each.model, []).append(costs[each.name].gradient)
    goals = {seed: result.loss for seed, result in at_best_rate(results[entries[0].name]).items()}
    if not all(map(math.isfinite, goals.values())):
        raise ValueError(f"compare: {entries[0].name} diverged, and others are compared with it. Name another one first.")
    rows = []
    for each in entries:
        runs, cost = results[each.name], costs[each.name]
        best, tried = best_of(runs), [power for power, seed in runs if seed == 0]
        own = at_best_rate(runs)
        steps = [steps_to_reach(goals[seed], result.metrics) for seed, result in own.items()]
        rows.append(
            Row(
                each.name,
                each.rate(best),
                min(tried) < best < max(tried),
                [result.loss for result in own.values()],
                statistics.median(math.inf if x is None else x for x in steps),
                statistics.median(gradients[each.model]) / (1 - cost.share),
                cost.share,
                cost.weights,
                cost.state,
            )
        )
    return rows


def loss_cells(rows: list[Row], base: Recipe) -> list[tuple[str, ...]]:
    """Return the cells below LOSS_HEADINGS, sorted by loss. A star marks a rate at the edge of those tried."""
    return [
        (
            row.name,
            row.marked_rate,
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


def cost_cells(rows: list[Row], base: Recipe) -> list[tuple[str, ...]]:
    """Return the cells below COST_HEADINGS, sorted by loss.

    Effective tokens per second are as in [G]: the tokens that the first optimizer is trained on, divided by the time that this
    one needs to reach its loss.
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


def legend(reference: str) -> str:
    """Explain the headings of both tables in words; `reference` is the name of the first optimizer."""
    return (
        "Loss is held out, in nats per token: the median over seeds, with its spread. Steps are those that the optimizer needs "
        f"to reach {reference}'s final loss. Speed-up is {reference}'s step count divided by these steps. In time is the same "
        "ratio with seconds: steps times the measured time of a step. Effective tokens/s are "
        f"{reference}'s tokens over that time. Share of step is the optimizer's part of a step's time. Memory is weights and "
        "optimizer state. The first seed chose the rates, by this loss; * marks a best rate at the edge of those tried. "
        "Adam's rate is that of embeddings, norms and other leaves that an optimizer leaves to Adam."
    )


def markdown(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Write a table in Markdown."""
    lines = [headings, ("---",) * len(headings), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def runs_table(entries: list[Entry], results: dict[str, Results]) -> str:
    """Write a Markdown table of the loss of every run: of the first seed at each rate, and of the other seeds."""
    lines = []
    for each in entries:
        runs = results[each.name]
        rates = [f"{each.rate(power):g}: {runs[power, seed].loss:.4f}" for power, seed in sorted(runs) if seed == 0]
        others = [f"{result.loss:.4f}" for result in list(at_best_rate(runs).values())[1:]]
        options = ", ".join(f"{key} {value}" for key, value in each.options.items())
        lines.append((each.name, options, ", ".join(rates), ", ".join(others)))
    return markdown(("optimizer", "options", "rate: loss of seed 0", "other seeds at the best rate"), lines)


def as_json(entries: list[Entry], results: dict[str, Results], rows: list[Row], base: Recipe) -> dict[str, Any]:
    """Return everything for JSON: the plan, and the curves of all runs and the row of each entry. None stands for infinity."""
    written = []
    for each, row in zip(entries, rows, strict=True):
        runs = [
            {
                "rate": each.rate(power),
                "seed": seed,
                "loss": finite(result.loss),
                "scores": dict(result.scores),
                "held_out": [(line.step, finite(line.held_out)) for line in result.metrics if line.held_out is not None],
            }
            for (power, seed), result in sorted(results[each.name].items())
        ]
        losses = {"losses": [finite(x) for x in row.losses]}
        standing = {key: finite(value) for key, value in row._asdict().items()} | losses
        written.append({**asdict(each), "standing": standing, "runs": runs})
    return {"plan": asdict(base), "entries": written}


def plot(entries: list[Entry], results: dict[str, Results], rows: list[Row], path: Path) -> None:
    """Draw the held-out loss, the median over seeds, against steps and against time, with names at the ends of the lines.

    The first optimizer and the five others with the lowest losses have a stroke and a colour each. Further lines are thin and
    grey: more than six strokes cannot be told apart.
    """
    figure = sheet(1, 2, width=4.2, height=4.4)
    by_steps, by_time = figure.axes
    by_time.sharey(by_steps)
    lowest = sorted(rows[1:], key=lambda row: row.loss)[: len(STYLES) - 1]
    strokes = [{"linestyle": stroke, "color": colour, "linewidth": 1.8} for stroke, colour in zip(STYLES, COLOURS, strict=True)]
    marked = dict(zip([row.name for row in lowest], strokes, strict=False)) | {rows[0].name: strokes[-1] | {"linewidth": 2.6}}
    ends: list[tuple[Axes, float, float, str, dict[str, Any]]] = []
    top = 0.0
    for each, row in zip(entries, rows, strict=True):
        runs = at_best_rate(results[each.name]).values()
        curves = [[x for x in result.metrics if x.held_out is not None] for result in runs]
        if not all(curves):
            continue  # a seed diverged
        steps = [float(line.step) for line in curves[0]]
        losses = [statistics.median(losses) for losses in zip(*([x.held_out for x in c] for c in curves), strict=True)]
        top = max(top, losses[len(losses) // 4])  # leaves out the first steps, whose losses would flatten the rest
        style = marked.get(each.name, {"color": "0.7", "linewidth": 0.8, "zorder": 1})
        marker = "o" if len(steps) == 1 else None
        for axes, unit in ((by_steps, 1.0), (by_time, row.step)):
            axes.plot([unit * step for step in steps], losses, marker=marker, **style)
            ends.append((axes, unit * steps[-1], losses[-1], each.name, style))
    bottom = min(end[2] for end in ends)
    for axes, what in ((by_steps, "steps"), (by_time, "seconds (steps times the measured time of a step)")):
        axes.hlines(rows[0].loss, 0, max(end[1] for end in ends if end[0] is axes), color="0.7", linewidth=0.8, linestyle=":")
        axes.text(0, rows[0].loss, f" final loss of {rows[0].name}", va="bottom", fontsize=8)
        axes.set_xlabel(what)
        _label_lines([end[1:] for end in ends if end[0] is axes], axes, top - bottom)
    by_steps.set_ylabel("held-out loss, nats per token")
    by_steps.set_ylim(bottom - 0.03, top)
    figure.savefig(path, dpi=150)


def _label_lines(ends: list[tuple[float, float, str, dict[str, Any]]], axes: Axes, height: float) -> None:
    """Write the names to the right of all lines, in the order of their losses, without overlaps."""
    edge, place = max(x for x, *_ in ends), -math.inf
    for x, loss, name, style in sorted(ends, key=lambda end: end[1]):
        place = max(loss, place + 0.04 * height)
        axes.annotate(
            name, (x, loss), (1.08 * edge, place), va="center", fontsize=8,
            arrowprops={"arrowstyle": "-", "relpos": (0, 0.5), "shrinkB": 5, **style, "linewidth": 0.6},
        )  # fmt: skip
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= edge])
    axes.set_xlim(0, 1.4 * edge)

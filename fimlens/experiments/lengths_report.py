"""The report of runs at several lengths: final losses, speed-ups, a figure, and a conclusion in words."""

import math
import statistics
from pathlib import Path
from typing import Any

from matplotlib.ticker import MaxNLocator

from fimlens._validate import finite
from fimlens.experiments.lengths import Curve, crossings, speed_ups
from fimlens.plotting import COLOURS, STYLES, sheet

SPEED_HEADINGS = ("optimizer", "steps", "speed-up", "in time", "by crossing", "a step")


MARKERS = "osD"  # strokes and colours come again after the sixth curve, with the next marker


LEGEND = (
    "Every run has its whole schedule. Loss: held out, the median over seeds ± half its range. Speed-up over the reference's L "
    "steps: L over the length at which the optimizer ends at the loss that the reference has after L. It is interpolated "
    "between measured lengths in log-log, with its range over seeds. Outside the measured lengths it is over x or under x. "
    "In time: the same over the time of a step as tuned, whose ratio to the reference's is in the last column. By crossing: L "
    "over the step at which the optimizer's curve of L steps is at that loss, as [G] counts; its schedule is unfinished there."
)


def loss_cells(curves: list[Curve]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return headings and cells: the median loss at each length, its spread over seeds, and the rate."""
    lengths = list(curves[0].losses)
    cells = []
    for curve in sorted(curves, key=lambda curve: statistics.median(curve.losses[lengths[-1]])):
        spread = [_with_spread(losses) for losses in curve.losses.values()]
        rates = " ".join(f"{rate:g}" for rate in dict.fromkeys(curve.rates.values()))
        cells.append((curve.entry.name, *spread, rates))
    return ("optimizer", *(f"{length} steps" for length in lengths), "rate"), cells


def _with_spread(losses: list[float]) -> str:
    """The median over seeds and half their range, infinite where a seed diverged."""
    middle = statistics.median(losses)
    return f"{middle:.4f} ± {(max(losses) - min(losses)) / 2:.4f}" if math.isfinite(middle) else "diverged"


def speed_cells(curves: list[Curve], step: dict[str, float]) -> list[tuple[str, ...]]:
    """Return the cells below SPEED_HEADINGS: each optimizer at each length of the first one, medians and ranges over seeds.

    Args:
        curves: the first is the reference.
        step: seconds of a step, by the optimizer's name.
    """
    cells = []
    for curve in curves[1:]:
        ratio = step[curve.entry.name] / step[curves[0].entry.name]
        crossed = crossings(curves[0], curve)
        for length, values in speed_ups(curves[0], curve).items():
            in_steps, in_time = (_speed(values, length, curve, each) for each in (1.0, ratio))
            cells.append((curve.entry.name, str(length), in_steps, in_time, _shown(crossed[length], 1.0), f"{ratio:.2f}"))
    return cells


def _speed(values: list[float], length: int, curve: Curve, ratio: float) -> str:
    """A speed-up over a length in words, divided by the ratio of the times of a step."""
    bounds = (length / ratio / end(curve.losses) for end in (max, min))
    return _shown([x / ratio for x in values], *bounds)


def _shown(values: list[float], least: float, most: float = math.inf) -> str:
    """The median and the range of a speed-up; 0 stands for less than `least`, and infinity for more than `most`."""
    if not values:
        return "unknown"

    def words(x: float) -> str:
        if x == math.inf:
            return f"over {most:.2f}"
        return f"{x:.2f}" if x else f"under {least:.2f}"

    # Of two values in the middle the lower one: a mean with a bound would be no speed-up at all.
    middle, ends = words(statistics.median_low(values)), [words(x) for x in (min(values), max(values))]
    return middle if ends[0] == ends[1] else f"{middle} ({ends[0]} to {ends[1]})"


def conclude(curves: list[Curve], step: dict[str, float]) -> str:
    """Say in words which optimizer ends lowest at the longest length, and how much sooner it gets to the reference's loss.

    The arguments are as in `speed_cells`.
    """
    reference, longest = curves[0], max(curves[0].losses)
    best = min(curves, key=lambda curve: statistics.median(curve.losses[longest]))
    losses = best.losses[longest], reference.losses[longest]
    words = f"At {longest} steps {best.entry.name} ends lowest: {statistics.median(losses[0]):.4f}"
    if best is reference:
        return f"{words}. No method is ahead of it."
    values, ratio = speed_ups(reference, best)[longest], step[best.entry.name] / step[reference.entry.name]
    in_steps, in_time = (_speed(values, longest, best, each) for each in (1.0, ratio))
    apart = max(losses[0]) < min(losses[1])
    seeds = "in every seed" if apart else "but seeds overlap"
    reached = f"{reference.entry.name} {statistics.median(losses[1]):.4f}, {seeds}"
    return f"{words}, {reached}. Its speed-up there is {in_steps} in steps and {in_time} in time."


def as_json(curves: list[Curve]) -> list[dict[str, Any]]:
    """Return the curves as plain data; None stands for infinity."""
    return [
        {
            "name": curve.entry.name,
            "options": curve.entry.options,
            "losses": {length: [finite(x) for x in losses] for length, losses in curve.losses.items()},
            "rates": curve.rates,
            "speed_ups": {at: [finite(x) for x in values] for at, values in speed_ups(curves[0], curve).items()},
            "crossings": crossings(curves[0], curve),
        }
        for curve in curves
    ]


def plot(curves: list[Curve], path: Path) -> None:
    """Draw the median loss at the end against the length, both logarithmic, with the range over seeds."""
    figure = sheet(width=5.6, height=4.2)
    (axes,) = figure.axes
    for k, curve in enumerate(curves):
        lengths = list(curve.losses)
        # Where most seeds diverged there is no point, and where one did, the bar ends at the others.
        middle = [statistics.median(losses) for losses in curve.losses.values()]
        middle = [m if math.isfinite(m) else math.nan for m in middle]
        ends = [[x for x in losses if math.isfinite(x)] or [math.nan] for losses in curve.losses.values()]
        bars = [[abs(m - end(x)) for m, x in zip(middle, ends, strict=True)] for end in (min, max)]
        marker = {"marker": MARKERS[k // len(STYLES) % len(MARKERS)], "markersize": 5 if k >= len(STYLES) else 3}
        style = {"linestyle": STYLES[k % len(STYLES)], "color": COLOURS[k % len(COLOURS)], **marker}
        axes.errorbar(lengths, middle, bars, capsize=2, label=curve.entry.name, **style)
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = list(curves[0].losses)
    axes.set_xticks(ticks, list(map(str, ticks)))
    axes.minorticks_off()
    axes.yaxis.set_major_locator(MaxNLocator(8))  # a logarithmic axis has no tick of its own within 1.3 to 1.9
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("steps, each with its whole schedule")
    axes.set_ylabel("held-out loss at the end, nats per token")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)

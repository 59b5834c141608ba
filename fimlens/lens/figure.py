"""The figures of the lens: the error of every structure, against the memory that it needs and in each divergence."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fimlens._validate import require_some
from fimlens.lens.compare import Comparison
from fimlens.lens.nearness import DIVERGENCES
from fimlens.lens.row import EXACT, Row
from fimlens.plotting import BASIS, OPTIMUM, SPECTRUM, legend_below, literal, panels, sheet

WIDEST = 1.5  # errors beyond are cut off and written: one bad structure would hide the differences among the others


def error_against_memory(comparisons: Sequence[Comparison]) -> Figure:
    """Draw one panel for each matrix: structures in order of memory, each with its basis error and its spectrum error.

    Memory is `kept`, the numbers that the optimizer of a structure keeps beside its momentum.
    """
    require_some("error_against_memory", comparisons, "comparisons")
    most = max(len(comparison.rows) for comparison in comparisons)
    figure = panels(len(comparisons), height=0.17 * most + 1.5)
    for axes, comparison in zip(figure.axes, comparisons, strict=True):
        _panel(axes, comparison)
    figure.axes[0].set_xlim(left=0)
    figure.suptitle(
        "Smallest structures first. The number: how many scalars the optimizer keeps beside its momentum",
        fontsize=9,
    )
    legend_below(figure)
    return figure


def _panel(axes: Axes, comparison: Comparison) -> None:
    """Draw one bar in two parts for each structure, from the smallest to the largest."""
    ordered = _ordered(comparison)
    places = range(len(ordered))
    basis = [max(row.basis, 0.0) for row in ordered]  # rounding may make a zero negative
    axes.barh(places, basis, height=0.6, color=BASIS, label="basis error")
    axes.barh(places, [row.spectrum for row in ordered], left=basis, height=0.6, color=SPECTRUM, label="spectrum error")
    solved = [(row.optimum, place) for place, row in zip(places, ordered, strict=True) if row.optimum is not None]
    if solved:
        axes.plot(*zip(*solved, strict=True), "|", color=OPTIMUM, markersize=11, markeredgewidth=1.6, label="numeric optimum")
    axes.set_yticks(places, [literal(f"{row.name}  {row.kept:,}") for row in ordered], fontsize=8)
    axes.set_ylim(len(ordered) - 0.4, -0.6)  # the smallest on top
    axes.tick_params(axis="y", length=0)
    axes.use_sticky_edges = False  # otherwise the longest bar touches the frame
    axes.set_xlabel(r"error $\|\tilde F - F\|^2 \,/\, \|F\|^2$")
    m, n = comparison.shape
    axes.set_title(literal(f"{comparison.matrix}\n{m} x {n}".strip()), fontsize=9)


def _ordered(comparison: Comparison) -> list[Row]:
    return sorted(comparison.rows, key=lambda row: (row.kept, -row.relative))


def error_in_each_divergence(comparisons: Sequence[Comparison]) -> Figure:
    """Draw a line of panels for each matrix, one panel for each divergence, with both parts of every structure's error.

    A star stands at the nearest structure that is not F itself, and a stroke at the error of t F~ with the best scalar t.
    """
    require_some("error_in_each_divergence", comparisons, "comparisons")
    most = max(len(comparison.rows) for comparison in comparisons)
    figure = sheet(len(comparisons), len(DIVERGENCES), width=3.0, height=0.14 * most + 1.1)
    for k, axes in enumerate(figure.axes):
        comparison, name = comparisons[k // len(DIVERGENCES)], list(DIVERGENCES)[k % len(DIVERGENCES)]
        _divergence_panel(axes, comparison, name, labelled=k % len(DIVERGENCES) == 0)
    legend_below(figure)
    return figure


def _divergence_panel(axes: Axes, comparison: Comparison, divergence: str, *, labelled: bool) -> None:
    """Draw the errors in one divergence: a bar in two parts for each structure, in the order of the lens's first figure."""
    ordered = _ordered(comparison)
    nats = any(row.divergences[divergence].unit == "nats" for row in ordered)
    best = comparison.best(divergence)
    nearnesses = [row.divergences[divergence] for row in ordered]
    low = min((near.basis for near in nearnesses if near.basis is not None and near.basis < 0), default=0.0)
    high = min(WIDEST, max((near.error for near in nearnesses if 0 < near.error < math.inf), default=0.0))
    thickness = 0.4 if nats else 0.7  # in nats the spectrum error lies on the bar of the basis, and takes back a part of it
    for place, (row, near) in enumerate(zip(ordered, nearnesses, strict=True)):
        if near.basis is not None:
            axes.barh(place, near.basis, height=0.7, color=BASIS, label="basis error")
            added = min(near.error, high) - near.basis
            axes.barh(place, added, left=near.basis, height=thickness, color=SPECTRUM, label="spectrum error")
        below = low - EXACT  # rounding may make a zero negative
        if below <= near.scaled <= high:
            axes.plot(near.scaled, place, "|", color=OPTIMUM, markersize=6, label=r"$t \tilde F$ with the best scalar $t$")
        if not below <= near.error <= high:
            edge, side = (high, "right") if near.error > high else (low, "left")
            axes.annotate(f"{near.error:.3g}", (edge, place), ha=side, va="center", fontsize=6)
        if row.name == best:
            axes.plot(near.error, place, "*", color=OPTIMUM, markersize=6, label="nearest, $F$ itself aside")
    axes.set_yticks(range(len(ordered)), [literal(row.name) for row in ordered] if labelled else [], fontsize=7)
    axes.set_ylim(len(ordered) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.axvline(0, color="0.6", linewidth=0.6)
    axes.set_xlabel("nats per entry, less those of $c I$" if nats else r"$D(F, \tilde F) \,/\, D(F, c I)$")
    axes.set_title(literal(f"{comparison.matrix}\n{divergence}".strip()), fontsize=8)

"""The figures of estimates: errors against memory and over a training, with error bars, and a map of layers and structures."""

import math
from collections.abc import Iterable, Mapping

import numpy as np
from matplotlib.figure import Figure

from fimlens._validate import require_some
from fimlens.lens.estimates import Estimates
from fimlens.lens.nearness import divergence_name
from fimlens.plotting import AMOUNT, BASIS, COLOURS, SPECTRUM, STYLES, legend_below, literal, panels, sheet

WIDEST = 1.5  # errors beyond are written at the upper edge: one bad structure would hide the differences among the others

END = 2.0  # of the errors over steps


def errors_with_bars(estimates: Mapping[str, Estimates]) -> Figure:
    """Draw one panel for each matrix: the error of each structure with its interval, against the numbers that it keeps.

    Args:
        estimates: by the name of the matrix.
    """
    require_some("errors_with_bars", estimates, "estimates")
    figure = panels(len(estimates), height=2.9)
    for axes, (matrix, found) in zip(figure.axes, estimates.items(), strict=True):
        drawn = {name for name, row in found.rows.items() if math.isfinite(row.relative) and row.relative <= WIDEST}
        top = max((found.rows[name].high for name in drawn), default=WIDEST)
        for name, row in found.rows.items():
            kept = max(1, found.kept(name))
            if name not in drawn:
                axes.plot(kept, top, "^", color=BASIS, markersize=3, label="beyond the upper edge")
                words = literal(f"{name} {row.relative:.3g}")
                axes.annotate(words, (kept, top), (3, -3), textcoords="offset points", fontsize=6, rotation=-60, va="top")
                continue
            bars = [[max(row.relative - row.low, 0)], [max(row.high - row.relative, 0)]]
            axes.errorbar(kept, row.relative, bars, fmt="o", color=BASIS, markersize=3, label="held out, with its interval")
            axes.plot(kept, row.plug_in, "x", color=SPECTRUM, markersize=4, label="plug-in: the same samples")
            axes.annotate(literal(name), (kept, row.relative), (3, 3), textcoords="offset points", fontsize=6)
        axes.set_xscale("log")
        axes.axhline(0, color="0.7", linewidth=0.6)
        axes.set_xlabel("numbers kept beside the momentum", fontsize=8)
        m, n = found.shape
        axes.set_title(f"{literal(matrix)}\n{m} x {n}", fontsize=8)
    figure.suptitle(f"Error in {_divergence(estimates.values())}", fontsize=9)
    legend_below(figure)
    return figure


def error_map(estimates: Mapping[str, Estimates]) -> Figure:
    """Draw the errors of all structures (columns) on all matrices (rows) as a map, the nearest of a row in bold.

    Args:
        estimates: by the name of the matrix.
    """
    require_some("error_map", estimates, "estimates")
    names = list(dict.fromkeys(name for found in estimates.values() for name in found.rows))
    figure = sheet(width=0.5 * len(names) + 2.2, height=0.28 * len(estimates) + 1.6)
    (axes,) = figure.axes
    errors = np.full((len(estimates), len(names)), np.nan)
    for i, found in enumerate(estimates.values()):
        for name, row in found.rows.items():
            errors[i, names.index(name)] = row.relative if math.isfinite(row.relative) else np.nan
    finite = errors[np.isfinite(errors)]
    low, high = (finite.min(), min(finite.max(), WIDEST)) if finite.size else (0, 1)
    axes.imshow(errors, cmap=AMOUNT, vmin=low, vmax=high, aspect="auto")
    for i, found in enumerate(estimates.values()):
        best = (found.ranked() or [None])[0]
        for j, name in enumerate(names):
            if name in found.rows:
                words = f"{found.rows[name].relative:.2f}"
                dark = errors[i, j] > low + 0.6 * (high - low)
                weight = "bold" if name == best else "normal"
                axes.text(j, i, words, ha="center", va="center", fontsize=6, weight=weight, color="w" if dark else "k")
    axes.set_xticks(range(len(names)), map(literal, names), rotation=60, ha="right", fontsize=7)
    axes.set_yticks(range(len(estimates)), map(literal, estimates), fontsize=7)
    axes.set_title(f"Held-out error in {_divergence(estimates.values())}", fontsize=9)
    return figure


def errors_over_steps(estimates: Mapping[str, Mapping[int, Estimates]]) -> Figure:
    """Draw one panel for each matrix: the error of each structure with its interval, over the steps of a training.

    A panel ends at an error of 2: what is beyond leaves it.

    Args:
        estimates: by the name of the matrix, and then by the step at which its gradients were taken.
    """
    require_some("errors_over_steps", estimates, "estimates")
    everywhere = [found for by_step in estimates.values() for found in by_step.values()]
    names = list(dict.fromkeys(name for found in everywhere for name in found.rows))
    figure = panels(len(estimates), height=2.9)
    for axes, (matrix, by_step) in zip(figure.axes, estimates.items(), strict=True):
        for k, name in enumerate(names):
            rows = {step: by_step[step].rows[name] for step in sorted(by_step) if name in by_step[step].rows}
            points = [(step, row.relative, row.low, row.high) for step, row in rows.items() if math.isfinite(row.relative)]
            if points:
                steps, errors, low, high = np.array(points).T
                style = {"color": COLOURS[k % len(COLOURS)], "linestyle": STYLES[k % len(STYLES)], "marker": "o"}
                bars = [errors - low, high - errors]
                axes.errorbar(steps, errors, bars, markersize=3, elinewidth=0.8, label=literal(name), **style)
        axes.set_xscale("function", functions=(np.sqrt, np.square))  # room for the first steps, and for steps equally far apart
        axes.set_xlim(0, 1.05 * max(by_step))
        axes.set_xticks(sorted(by_step), map(str, sorted(by_step)), fontsize=8)
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -END), min(high, END))
        axes.axhline(0, color="0.7", linewidth=0.6)
        axes.set_xlabel("steps", fontsize=8)
        m, n = next(iter(by_step.values())).shape
        axes.set_title(f"{literal(matrix)}\n{m} x {n}", fontsize=8)
    figure.suptitle(f"Held-out error in {_divergence(everywhere)}", fontsize=9)
    legend_below(figure)
    return figure


def _divergence(estimates: Iterable[Estimates]) -> str:
    return divergence_name(next(iter(estimates)).divergence)

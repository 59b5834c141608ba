"""The picture of the lens: error against memory, one panel a matrix, basis and spectrum error told apart."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fimlens.lens import Comparison

BASIS, SPECTRUM, OPTIMUM = "#30507a", "#e08a3c", "black"  # apart in grey, and for colour-blind readers


def error_against_memory(comparisons: Sequence[Comparison], path: Path) -> None:
    """Write the figure; the ending of `path` names its format."""
    columns = min(len(comparisons), 3)
    rows = -(-len(comparisons) // columns)
    figure = Figure(figsize=(6.5 * columns, 4.5 * rows), layout="constrained")
    for k, comparison in enumerate(comparisons):
        _panel(figure.add_subplot(rows, columns, k + 1), comparison)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=150)


def _panel(axes: Axes, comparison: Comparison) -> None:
    """Structures from the smallest state to the largest, each a bar in two parts, its size beneath its name."""
    ordered = sorted(comparison.rows, key=lambda row: (row.elements, row.relative))
    places = range(len(ordered))
    basis = [max(row.basis, 0.0) for row in ordered]
    axes.bar(places, basis, color=BASIS, label="basis error")
    axes.bar(places, [row.spectrum for row in ordered], bottom=basis, color=SPECTRUM, label="spectrum error")
    solved = [(place, row.optimum) for place, row in zip(places, ordered, strict=True) if row.optimum is not None]
    if solved:
        axes.plot(*zip(*solved, strict=True), "_", color=OPTIMUM, markersize=16, markeredgewidth=2, label="numeric optimum")
    names = [f"{row.name}  {row.elements:,}" for row in ordered]
    axes.set_xticks(list(places), names, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_xlabel("structure and memory: the numbers its optimizer keeps, fewest first")
    axes.set_ylabel(r"$\|\tilde F - F\|^2 \,/\, \|F\|^2$")
    m, n = comparison.shape
    axes.set_title(f"{comparison.matrix} ({m} x {n})".strip().replace("$", r"\$"), fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)

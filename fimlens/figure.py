"""Pictures: the lens's own, and the few kinds that the notebooks draw, in one style.

Each returns a Matplotlib `Figure`, which a notebook shows and `savefig` writes. Two colours serve for everything, apart in grey
and for colour-blind readers: blue for a first part or what is positive, orange for a second part or what is negative.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Array, Float
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import FuncNorm, LinearSegmentedColormap
from matplotlib.figure import Figure

from fimlens.lens import Comparison

BASIS, SPECTRUM, OPTIMUM = "#30507a", "#e08a3c", "black"
SIGNED = LinearSegmentedColormap.from_list("signed", [SPECTRUM, "white", BASIS])
AMOUNT = LinearSegmentedColormap.from_list("amount", ["white", BASIS])
STYLES = ("-", "--", "-.", ":")
COLOURS = (BASIS, SPECTRUM, "black", "#7fa8d1", "#a3531a", "#808080")

Matrix = Float[Array | np.ndarray, "k k"]


def sheet(rows: int = 1, columns: int = 1, *, width: float = 6.5, height: float = 4.5) -> Figure:
    """A blank figure with a grid of axes, each so wide and high, in inches; without the frame's upper and right sides."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained", dpi=130)
    with rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figure.subplots(rows, columns)
    return figure


def error_against_memory(comparisons: Sequence[Comparison]) -> Figure:
    """The lens: one panel a matrix, structures by their memory, basis and spectrum error told apart."""
    columns = min(len(comparisons), 3)
    figure = sheet(-(-len(comparisons) // columns), columns)
    for axes, comparison in zip(figure.axes, comparisons, strict=False):
        _panel(axes, comparison)
    for axes in figure.axes[len(comparisons) :]:
        axes.remove()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def portraits(rows: Sequence[Mapping[str, Matrix]], *, block: int, side: float = 2.3) -> Figure:
    """Square matrices under their titles, row by row, on one scale: white is 0, blue positive, orange negative.

    Colours go by the root of an entry, so that small ones are seen too, and the largest half per cent of a matrix may share
    the last colour. Faint lines part blocks of `block` entries; `side` is that of a picture, in inches.
    """
    limit = max(float(np.quantile(np.abs(matrix), 0.995)) for row in rows for matrix in row.values())
    scale = FuncNorm((lambda x: np.sign(x) * np.sqrt(np.abs(x)), lambda y: np.sign(y) * y**2), vmin=-limit, vmax=limit)
    figure = sheet(len(rows), max(map(len, rows)), width=side, height=side + 0.2)
    grid = np.array(figure.axes).reshape(len(rows), -1)
    for line, row in zip(grid, rows, strict=True):
        for axes in line[len(row) :]:
            axes.remove()
        for axes, (title, matrix) in zip(line, row.items(), strict=False):
            size = len(matrix)
            image = axes.imshow(matrix, cmap=SIGNED, norm=scale, interpolation="nearest")
            edges = np.arange(block, size, block) - 0.5
            axes.hlines(edges, -0.5, size - 0.5, color="0.85", linewidth=0.2)
            axes.vlines(edges, -0.5, size - 0.5, color="0.85", linewidth=0.2)
            axes.set_title(title, fontsize=9)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=figure.axes, extend="both", shrink=0.8, aspect=30, label="entry")
    ticks = limit * np.array([-1, -0.25, 0, 0.25, 1])
    bar.set_ticks(ticks, labels=[f"{tick:.0e}" if tick else "0" for tick in ticks])
    return figure


def numbers(values: Float[np.ndarray, "rows columns"], rows: Sequence[str], columns: Sequence[str], *, label: str) -> Figure:
    """A table of numbers in [0, 1], each on a ground as dark as it is large."""
    figure = sheet(width=1.2 * len(columns) + 2.2, height=0.34 * len(rows) + 1.2)
    axes = figure.axes[0]
    image = axes.imshow(values, cmap=AMOUNT, vmin=0, vmax=1, aspect="auto")
    for i, j in np.ndindex(values.shape):
        axes.text(j, i, f"{values[i, j]:.3f}", ha="center", va="center", color="white" if values[i, j] > 0.55 else "black")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.xaxis.tick_top()
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label=label)
    return figure


def curves(lines: Mapping[str, Sequence[float]], *, x: str, y: str) -> Figure:
    """Lines over 1, 2, 3, ..., each in a colour and a style of its own."""
    figure = sheet()
    axes = figure.axes[0]
    for k, (name, values) in enumerate(lines.items()):
        steps = range(1, len(values) + 1)
        axes.plot(steps, values, STYLES[k % len(STYLES)], color=COLOURS[k % len(COLOURS)], label=name)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(frameon=False)
    return figure


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
    axes.use_sticky_edges = False  # or the highest column ends at the frame
    axes.set_ylim(bottom=0)
    names = [f"{row.name}  {row.elements:,}" for row in ordered]
    axes.set_xticks(list(places), names, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_xlabel("structure and memory: the numbers its optimizer keeps, fewest first")
    axes.set_ylabel(r"$\|\tilde F - F\|^2 \,/\, \|F\|^2$")
    m, n = comparison.shape
    axes.set_title(f"{comparison.matrix} ({m} x {n})".strip().replace("$", r"\$"), fontsize=10)

"""The style of all figures, and the few kinds that more than one place draws.

Each function returns a Matplotlib `Figure`, which a notebook shows and `savefig` writes. Blue stands for a first part or for
positive, orange for a second part or for negative. Nothing rests on colour alone: parts also differ in lightness and lines in
stroke, and negative entries carry a minus where there is room.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Array, Float
from matplotlib import rc_context
from matplotlib.colors import FuncNorm, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

BASIS, SPECTRUM, OPTIMUM = "#30507a", "#e08a3c", "black"


SIGNED = LinearSegmentedColormap.from_list("signed", [SPECTRUM, "white", BASIS])


AMOUNT = LinearSegmentedColormap.from_list("amount", ["white", BASIS])


STYLES = ("-", "--", "-.", ":", (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))


COLOURS = (BASIS, SPECTRUM, "black", "#7fa8d1", "#a3531a", "#808080")


Matrix = Float[Array | np.ndarray, "k k"]


def sheet(rows: int = 1, columns: int = 1, *, width: float = 6.5, height: float = 4.5) -> Figure:
    """Return a blank figure with a grid of axes, each of the given size in inches."""
    # Not pyplot, which keeps every figure in memory until it is closed.
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained", dpi=130)
    with rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figure.subplots(rows, columns)
    return figure


def panels(count: int, *, height: float) -> Figure:
    """Return `count` axes that share a horizontal scale, at most three side by side and as wide together as a page."""
    columns = min(count, 3)
    figure = sheet(-(-count // columns), columns, width=8.4 / columns, height=height)
    for axes in figure.axes[count:]:  # the last row may be short
        axes.remove()
    for axes in figure.axes[1:]:
        axes.sharex(figure.axes[0])
    return figure


def legend_below(figure: Figure) -> None:
    """Put one legend below the figure, with every label of its axes once."""
    handles = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)


def portraits(rows: Sequence[Mapping[str, Matrix]], *, block: int, side: float = 2.3) -> Figure:
    """Draw square matrices on one scale of colours: white is zero, blue positive, orange with a minus negative.

    Args:
        rows: for each row of the figure, matrices by title.
        block: faint lines separate blocks of this many entries.
        side: side of one matrix, in inches.
    """
    # Small entries must show beside large ones: colours follow the root, and the largest half per cent may share the last one.
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
            y, x = np.nonzero(matrix < -0.04 * limit)  # paler entries look white
            points = 72 * side / size  # size of an entry on paper
            if points > 4:  # a smaller minus would only dirty the colour
                axes.plot(x, y, "_", color=COLOURS[4], markersize=0.5 * points, markeredgewidth=0.12 * points)
            edges = np.arange(block, size, block) - 0.5
            axes.hlines(edges, -0.5, size - 0.5, color="0.85", linewidth=0.2)
            axes.vlines(edges, -0.5, size - 0.5, color="0.85", linewidth=0.2)
            axes.set_title(title, fontsize=9)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=figure.axes, extend="both", shrink=0.8, aspect=30, label="entry")
    ticks = limit * np.array([-1, -0.25, 0, 0.25, 1])
    bar.set_ticks(ticks, labels=[f"{tick:.2g}" for tick in ticks])
    return figure


def numbers(
    values: Float[np.ndarray, "rows columns"],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    label: str,
    notes: Sequence[Sequence[str]] | None = None,
) -> Figure:
    """Draw a table of numbers in [0, 1] in which larger numbers stand on a darker ground.

    Args:
        values: the numbers.
        rows: headings of the rows.
        columns: headings of the columns.
        label: what the numbers are, written at the bar of colours.
        notes: a note below each number; "" for none.
    """
    figure = sheet(width=1.2 * len(columns) + 2.2, height=(0.34 if notes is None else 0.46) * len(rows) + 1.2)
    axes = figure.axes[0]
    image = axes.imshow(values, cmap=AMOUNT, vmin=0, vmax=1, aspect="auto")
    for i, j in np.ndindex(values.shape):
        written = f"{values[i, j]:.3f}" + (f"\n{notes[i][j]}" if notes and notes[i][j] else "")
        axes.text(j, i, written, ha="center", va="center", fontsize=8, color="white" if values[i, j] > 0.55 else "black")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.xaxis.tick_top()
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label=label)
    return figure


def curves(lines: Mapping[str, Sequence[float]], *, x: str, y: str) -> Figure:
    """Draw each sequence against 1, 2, 3, ..., with x and y as labels of the axes."""
    figure = sheet()
    axes = figure.axes[0]
    for k, (name, values) in enumerate(lines.items()):
        steps = range(1, len(values) + 1)
        axes.plot(steps, values, linestyle=STYLES[k % len(STYLES)], color=COLOURS[k % len(COLOURS)], label=name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(frameon=False)
    return figure


def literal(name: str) -> str:
    """Escape the dollar signs of a name that a user gave, which Matplotlib would read as a formula."""
    return name.replace("$", r"\$")

"""Pictures: the lens's own, and the few kinds that the notebooks draw, in one style.

Each returns a Matplotlib `Figure`, which a notebook shows and `savefig` writes. Blue is a first part or what is positive,
orange a second part or what is negative. Nothing rests on colour alone: parts differ in lightness too, lines in their strokes,
and negative entries have a minus where there is room.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fimlens.lens.compare import Comparison
from fimlens.plotting import BASIS, OPTIMUM, SPECTRUM, legend_below, panels


def error_against_memory(comparisons: Sequence[Comparison]) -> Figure:
    """The lens: one panel a matrix, structures by their memory, basis and spectrum error told apart.

    Memory is the numbers that hold F~, which no choice of an optimizer changes: `fit_elements`.
    """
    most = max(len(comparison.rows) for comparison in comparisons)
    figure = panels(len(comparisons), height=0.17 * most + 1.5)
    for axes, comparison in zip(figure.axes, comparisons, strict=True):
        _panel(axes, comparison)
    figure.axes[0].set_xlim(left=0)
    figure.suptitle(r"Structures, each with the numbers that hold its $\tilde F$, basis and spectrum: fewest first", fontsize=9)
    legend_below(figure)
    return figure


def _panel(axes: Axes, comparison: Comparison) -> None:
    """Structures from the smallest to the largest, each a bar in two parts, its size beside its name."""
    ordered = sorted(comparison.rows, key=lambda row: (row.fit_elements, -row.relative))
    places = range(len(ordered))
    basis = [max(row.basis, 0.0) for row in ordered]
    axes.barh(places, basis, height=0.6, color=BASIS, label="basis error")
    axes.barh(places, [row.spectrum for row in ordered], left=basis, height=0.6, color=SPECTRUM, label="spectrum error")
    solved = [(row.optimum, place) for place, row in zip(places, ordered, strict=True) if row.optimum is not None]
    if solved:
        axes.plot(*zip(*solved, strict=True), "|", color=OPTIMUM, markersize=11, markeredgewidth=1.6, label="numeric optimum")
    axes.set_yticks(places, [_literal(f"{row.name}  {row.fit_elements:,}") for row in ordered], fontsize=8)
    axes.set_ylim(len(ordered) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.use_sticky_edges = False  # or the longest bar ends at the frame
    axes.set_xlabel(r"error $\|\tilde F - F\|^2 \,/\, \|F\|^2$")
    m, n = comparison.shape
    axes.set_title(_literal(f"{comparison.matrix}\n{m} x {n}".strip()), fontsize=9)


def _literal(name: str) -> str:
    """A name that a user gave: its dollars are no formula."""
    return name.replace("$", r"\$")

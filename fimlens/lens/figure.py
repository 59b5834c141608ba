"""The figure of the lens: the error of every structure, ordered by the memory that it needs."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fimlens.lens.compare import Comparison
from fimlens.plotting import BASIS, OPTIMUM, SPECTRUM, legend_below, panels


def error_against_memory(comparisons: Sequence[Comparison]) -> Figure:
    """Draw one panel for each matrix: structures in order of memory, each with its basis error and its spectrum error.

    Memory is `fit_elements`, the number of scalars that store F~: it does not depend on what an optimizer averages.
    """
    most = max(len(comparison.rows) for comparison in comparisons)
    figure = panels(len(comparisons), height=0.17 * most + 1.5)
    for axes, comparison in zip(figure.axes, comparisons, strict=True):
        _panel(axes, comparison)
    figure.axes[0].set_xlim(left=0)
    figure.suptitle(
        r"Smallest structures first. The number: how many scalars store $\tilde F$, its basis and eigenvalues",
        fontsize=9,
    )
    legend_below(figure)
    return figure


def _panel(axes: Axes, comparison: Comparison) -> None:
    """Draw one bar in two parts for each structure, from the smallest to the largest."""
    ordered = sorted(comparison.rows, key=lambda row: (row.fit_elements, -row.relative))
    places = range(len(ordered))
    basis = [max(row.basis, 0.0) for row in ordered]  # rounding may make a zero negative
    axes.barh(places, basis, height=0.6, color=BASIS, label="basis error")
    axes.barh(places, [row.spectrum for row in ordered], left=basis, height=0.6, color=SPECTRUM, label="spectrum error")
    solved = [(row.optimum, place) for place, row in zip(places, ordered, strict=True) if row.optimum is not None]
    if solved:
        axes.plot(*zip(*solved, strict=True), "|", color=OPTIMUM, markersize=11, markeredgewidth=1.6, label="numeric optimum")
    axes.set_yticks(places, [_literal(f"{row.name}  {row.fit_elements:,}") for row in ordered], fontsize=8)
    axes.set_ylim(len(ordered) - 0.4, -0.6)  # the smallest on top
    axes.tick_params(axis="y", length=0)
    axes.use_sticky_edges = False  # otherwise the longest bar touches the frame
    axes.set_xlabel(r"error $\|\tilde F - F\|^2 \,/\, \|F\|^2$")
    m, n = comparison.shape
    axes.set_title(_literal(f"{comparison.matrix}\n{m} x {n}".strip()), fontsize=9)


def _literal(name: str) -> str:
    """Escape the dollar signs of a name that a user gave, which Matplotlib would read as a formula."""
    return name.replace("$", r"\$")

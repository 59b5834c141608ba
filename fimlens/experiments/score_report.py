"""The report of a comparison on a task: the scores of each optimizer, with what it costs, in one table."""

import statistics

from fimlens.experiments.comparison import Entry, Results, at_best_rate
from fimlens.experiments.report import Row

COSTS = ("loss", "ms a step", "share of step, %", "memory, MB")


LEGEND = (
    "Scores are on what is held out, at the end of a run: the median over seeds, with its spread. Loss is held out, in nats or "
    "as a squared error. Share of step is the optimizer's part of a step's time. Memory is weights and optimizer state. The "
    "first seed chose the rates, by the first score; * marks a best rate at the edge of those tried."
)


def headings(scores: tuple[str, ...]) -> tuple[str, ...]:
    """Return the headings of a table with these scores."""
    return ("optimizer", "rate", *(heading for name in scores for heading in (name, "spread")), *COSTS)


def cells(entries: list[Entry], results: dict[str, Results], rows: list[Row], scores: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return the cells below `headings`, sorted by the first score. A star marks a rate at the edge of those tried.

    Args:
        entries: the optimizers.
        results: the runs of each, by its name.
        rows: what each reaches and costs, in the order of the entries.
        scores: the names of the scores.
    """
    lines = []
    for each, row in zip(entries, rows, strict=True):
        found = [result.scores for result in at_best_rate(results[each.name]).values()]
        values = [[one[name] for one in found if one] for name in scores]
        words = [word for of in values for word in ((f"{statistics.median(of):.4f}", _spread(of)) if of else ("diverged", ""))]
        cost = f"{row.loss:.4f}", f"{1e3 * row.step:.0f}", f"{100 * row.share:.1f}", f"{(row.weights + row.state) / 1e6:.2f}"
        lines.append((statistics.median(values[0]) if values[0] else -1.0, (row.name, row.marked_rate, *words, *cost)))
    return [line for _, line in sorted(lines, key=lambda pair: -pair[0])]


def _spread(values: list[float]) -> str:
    return f"{max(values) - min(values):.4f}"

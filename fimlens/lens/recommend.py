"""Choose the structure of each matrix: the least estimated error within a budget of memory or of a step's cost."""

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import cache
from numbers import Real

import jax
import jax.numpy as jnp
import numpy as np

from fimlens._validate import require_size, require_some
from fimlens.costs.flops import step_flops
from fimlens.lens.estimates import Estimates
from fimlens.lens.recommendation import CHOSEN, KEPT, Candidate, Recommendation
from fimlens.optimizers.mixture import kept_size, scale_by_recommended
from fimlens.structure import Structure


def recommend(
    estimates: Mapping[str, Estimates], budget: float | int | Real, *, cost: str = "memory", grid: int = 10_000
) -> Recommendation:
    """Choose a structure for each matrix, so that the mean estimated error is least within a budget.

    Use it after `estimate`, on the matrices of one model; `fl.recommended` trains with what it chooses. Matrices count by their
    numbers of entries. A structure is left out where a cheaper one is not clearly worse, by the 95 % interval of the
    difference; so noise buys nothing. The rest is a multiple-choice knapsack, solved by dynamic programming. What a choice
    costs over the cheapest is rounded up to a cell of the grid, so that the budget is never exceeded.

    Args:
        estimates: of each matrix, by name, all in one divergence.
        budget: the most that all matrices may cost together.
        cost: "memory", the numbers that `fl.recommended` stores beside the momentum; or "flops", the FLOPs of its step,
            refreshes of bases included.
        grid: into how many cells the budget over the cheapest choice is divided. At most one cell a matrix stays unused.

    Raises:
        TypeError: what is given is no mapping to `Estimates`, or the grid is no whole number.
        ValueError: there are no estimates, or they are in different divergences, or no structure of a matrix has a finite
            error. Also: the budget is below the cheapest choice, or an option is unknown or out of its range.

    Examples:
        >>> import jax, fimlens as fl
        >>> plain, other = jax.random.normal(jax.random.key(0), (2, 64, 3, 4))
        >>> scaled = other * jax.numpy.array([1.0, 1.0, 3.0, 3.0])
        >>> structures = {"sgd": fl.Scalar(), "columns": fl.Columns(), "adam": fl.Diagonal()}
        >>> estimates = {"key": fl.estimate(structures, plain), "query": fl.estimate(structures, scaled)}
        >>> found = fl.recommend(estimates, budget=10)
        >>> {matrix: str(structure) for matrix, structure in found.choices.items()}, found.total_cost
        ({'key': 'Scalar()', 'query': 'Columns()'}, 5.0)
    """
    _require(estimates, budget, cost)
    budget = budget if isinstance(budget, int | float) else float(budget)  # NumPy's numbers make no fractions
    require_size("recommend", "grid", grid)
    table = {matrix: _candidates(found, COSTS[cost]) for matrix, found in estimates.items()}
    kept = {matrix: [row for row in rows if row.verdict == KEPT] for matrix, rows in table.items()}
    without = [matrix for matrix, rows in kept.items() if not rows]
    if without:
        raise ValueError(f"recommend: no structure of {', '.join(without)} has a finite error. Estimate more structures.")
    least = sum(Fraction(rows[0].cost) for rows in kept.values())
    if budget < least:
        raise ValueError(f"recommend: a budget of {budget:,} is too small. The cheapest choice takes {float(least):,.0f}.")
    entries = {matrix: math.prod(found.shape) for matrix, found in estimates.items()}
    options = [
        [(_cells(row, rows[0], Fraction(budget) - least, grid), row.error * entries[matrix]) for row in rows]
        for matrix, rows in kept.items()
    ]
    picks = {matrix: kept[matrix][pick] for matrix, pick in zip(kept, _knapsack(options, grid), strict=True)}
    marked = {
        matrix: tuple(row._replace(verdict=CHOSEN) if row is picks[matrix] else row for row in rows)
        for matrix, rows in table.items()
    }
    choices = {matrix: estimates[matrix].structures[row.structure] for matrix, row in picks.items()}
    divergence = next(iter(estimates.values())).divergence
    return Recommendation(choices, marked, entries, cost, divergence, float(budget))


def _require(estimates: object, budget: object, cost: str) -> None:
    """Refuse what cannot be chosen from."""
    if not isinstance(estimates, Mapping) or not all(isinstance(found, Estimates) for found in estimates.values()):
        raise TypeError("recommend: expected estimates by matrix, such as {'layers/0/attention/query': fl.estimate(...)}.")
    require_some("recommend", estimates, "estimates")
    divergences = {found.divergence: matrix for matrix, found in estimates.items()}
    if len(divergences) > 1:
        listed = ", ".join(f"{divergence} of {matrix}" for divergence, matrix in divergences.items())
        raise ValueError(f"recommend: errors in different divergences cannot be added: {listed}. Estimate all in one.")
    if not isinstance(budget, Real) or not math.isfinite(budget):
        raise ValueError(f"recommend: budget is a finite number; got {budget!r}.")
    if cost not in COSTS:
        raise ValueError(f"recommend: cost is one of {', '.join(COSTS)}; got {cost!r}.")


@cache  # most matrices of a model have one of a few shapes
def _memory(structure: Structure, shape: tuple[int, int]) -> float:
    scale_by_recommended({"*": structure})  # it refuses what is no optimizer
    return float(kept_size(structure, shape))


@cache
def _flops(structure: Structure, shape: tuple[int, int]) -> float:
    return step_flops(scale_by_recommended({"*": structure}), {"w": jax.ShapeDtypeStruct(shape, jnp.float32)})


COSTS: dict[str, Callable[[Structure, tuple[int, int]], float]] = {"memory": _memory, "flops": _flops}


def _candidates(found: Estimates, measure: Callable[[Structure, tuple[int, int]], float]) -> list[Candidate]:
    """Return what a matrix could have, each with its verdict, the cheapest first and what cannot be chosen last."""
    rows = []
    for name, row in found.rows.items():
        verdict = KEPT if math.isfinite(row.relative) else "its error is not finite"
        try:
            cost = measure(found.structures[name], found.shape)
        except (TypeError, ValueError) as error:
            cost, verdict = math.inf, str(error)
        rows.append(Candidate(name, cost, row.relative, row.se, verdict))
    rows.sort(key=lambda row: (row.verdict != KEPT, row.cost, row.error))
    kept: list[Candidate] = []
    for place, row in enumerate(rows):
        # Only against what is kept, so that whatever is left out has a cheaper one in the choice that is not clearly worse.
        cheaper = [other.structure for other in kept if other.cost < row.cost]
        enough = [other for other in cheaper if not found.clearly_nearer(row.structure, other)]
        if row.verdict == KEPT and enough:
            rows[place] = row._replace(verdict=f"no clear gain on {enough[0]}")
        elif row.verdict == KEPT:
            kept.append(row)
    return rows


def _cells(row: Candidate, cheapest: Candidate, room: Fraction, grid: int) -> int:
    """Return how many cells of the grid a candidate takes beyond the cheapest, rounded up; too many where there is no room."""
    extra = Fraction(row.cost) - Fraction(cheapest.cost)  # exact, as floats would round below the budget
    if extra > room:
        return grid + 1
    return math.ceil(extra * grid / room) if extra else 0


def _knapsack(options: list[list[tuple[int, float]]], grid: int) -> list[int]:
    """Return which option of each list to take, so that the errors add to the least and the cells to at most `grid`.

    `least` has the least error of the lists so far within each number of cells. Of equal sums the first options win.
    """
    least, choices = np.zeros(grid + 1), []
    for rows in options:
        sums = np.full((len(rows), grid + 1), np.inf)
        for number, (cells, error) in enumerate(rows):
            if cells <= grid:
                sums[number, cells:] = least[: grid + 1 - cells] + error
        choices.append(sums.argmin(axis=0))
        least = sums.min(axis=0)
    picks, left = [], grid
    for rows, choice in zip(reversed(options), reversed(choices), strict=True):
        picks.append(int(choice[left]))
        left -= rows[picks[-1]][0]
    return picks[::-1]

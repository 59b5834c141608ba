"""The answer of `recommend`: a structure for each matrix, and the table behind the choice."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from fimlens._validate import as_json, read_number
from fimlens.lens.nearness import divergence_name
from fimlens.structure import Structure
from fimlens.structures.named import STRUCTURES, read_structure

CHOSEN, KEPT = "chosen", "kept"


UNITS = {"memory": "numbers of state", "flops": "FLOPs a step"}  # of each cost


class Candidate(NamedTuple):
    """A structure that a matrix could have.

    Attributes:
        structure: its name.
        cost: what it costs; infinite where it is no optimizer.
        error: its estimated error.
        se: the standard error of that.
        verdict: "chosen", "kept" in the choice, or why it was left out.
    """

    structure: str
    cost: float
    error: float
    se: float
    verdict: str


@dataclass(frozen=True)
class Recommendation:
    """The answer of `recommend`; `fl.recommended` takes its choices.

    Attributes:
        choices: the structure of each matrix, by name.
        table: what could be chosen for each matrix, the cheapest first and what cannot last.
        entries: the number of entries of each matrix, by which its error counts.
        cost: "memory" or "flops".
        divergence: that of the errors, as it prints.
        budget: what could be spent.

    Examples:
        >>> import jax, fimlens as fl
        >>> G = jax.random.normal(jax.random.key(0), (64, 3, 4)) * jax.numpy.array([1.0, 1.0, 3.0, 3.0])
        >>> estimates = {"query": fl.estimate({"sgd": fl.Scalar(), "columns": fl.Columns()}, G)}
        >>> found = fl.recommend(estimates, budget=4)
        >>> [(row.structure, row.cost, row.verdict) for row in found.table["query"]]
        [('sgd', 1.0, 'kept'), ('columns', 4.0, 'chosen')]
    """

    choices: Mapping[str, Structure]
    table: Mapping[str, tuple[Candidate, ...]]
    entries: Mapping[str, int]
    cost: str
    divergence: str
    budget: float

    @property
    def chosen(self) -> dict[str, Candidate]:
        """The row of each matrix that was chosen."""
        return {matrix: next(row for row in rows if row.verdict == CHOSEN) for matrix, rows in self.table.items()}

    @property
    def total_cost(self) -> float:
        """What all choices cost together."""
        return math.fsum(row.cost for row in self.chosen.values())

    @property
    def total_error(self) -> float:
        """The mean error of the choices, in which each matrix counts by its number of entries."""
        return self._mean(self.chosen)

    def _mean(self, rows: Mapping[str, Candidate]) -> float:
        return math.fsum(row.error * self.entries[matrix] for matrix, row in rows.items()) / sum(self.entries.values())

    def best_single(self) -> tuple[str, float, float] | None:
        """Return the name, cost and error of the structure that is best within the budget if every matrix has the same."""
        found = []
        for name in {row.structure for rows in self.table.values() for row in rows}:
            rows = {matrix: row for matrix, listed in self.table.items() for row in listed if row.structure == name}
            spent = math.fsum(row.cost for row in rows.values())
            if len(rows) == len(self.table) and spent <= self.budget and math.isfinite(self._mean(rows)):
                found.append((self._mean(rows), spent, name))
        return min(found)[::-1] if found else None

    def in_words(self) -> str:
        """Return what was chosen, what it costs, and what the best single structure would give, in words."""
        unit = UNITS[self.cost]
        counts = Counter(row.structure for row in self.chosen.values()).most_common()
        listed = ", ".join(f"{name} for {count}" for name, count in counts)
        words = (
            f"Of {self.budget:,.0f} {unit}, {self.total_cost:,.0f} are spent, for a mean error of {self.total_error:.3f} "
            f"({divergence_name(self.divergence)}): {listed} of {len(self.table)} matrices."
        )
        single = self.best_single()
        if single is None:
            return f"{words} No single structure for all matrices is within the budget."
        name, spent, error = single
        doubt = ", which is not clearly less" if error < self.total_error else ""
        return f"{words} The best single structure within the budget is {name}: {spent:,.0f}, with {error:.3f}{doubt}."

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data, ready for `json.dump`: "inf" for what is infinite, and None for NaN.

        Raises:
            ValueError: a choice is made of other structures than those of fimlens.
        """
        texts = {matrix: _text(row.structure, self.choices[matrix]) for matrix, row in self.chosen.items()}
        table = {matrix: [as_json(row) for row in rows] for matrix, rows in self.table.items()}
        about = {"cost": self.cost, "divergence": self.divergence, "budget": self.budget}
        totals = {"total_cost": self.total_cost, "total_error": self.total_error}
        return about | totals | {"choices": texts, "entries": dict(self.entries), "table": table}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "Recommendation":
        """Return what `to_json` was called on."""
        numbers = ("cost", "error", "se")
        table = {
            matrix: tuple(Candidate(**row | {name: read_number(row[name]) for name in numbers}) for row in rows)
            for matrix, rows in plain["table"].items()
        }
        choices = {matrix: read_structure("from_json", text) for matrix, text in plain["choices"].items()}
        return cls(choices, table, plain["entries"], plain["cost"], plain["divergence"], plain["budget"])


def _text(name: str, structure: Structure) -> str:
    """Return what `read_structure` reads as the structure: its name, if that is fimlens' own, or else how Python writes it."""
    text = name if STRUCTURES.get(name) == structure else repr(structure)
    if read_structure("to_json", text) != structure:
        raise ValueError(f"to_json: {name!r} is another {structure} than fimlens'. Pass the choices themselves.")
    return text

"""The lens: all structures compared on one Fisher."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fimlens._validate import as_json
from fimlens.fisher.fisher import Fisher
from fimlens.lens.row import EXACT, Row, measure_row
from fimlens.solver.fit import Unsuited, fit, require_structure_and_fisher
from fimlens.structure import Structure
from fimlens.structures.named import name_structures

SOLVE_UP_TO = 256  # entries of the largest matrix that the solver runs on by default


@dataclass(frozen=True)
class Comparison:
    """The answer of `compare`: one row for each structure, all fitted to the Fisher of one matrix.

    Attributes:
        matrix: the name that the matrix was given.
        fisher: the Fisher, as it prints.
        shape: (m, n) of the matrix.
        rows: one for each structure that has a fit, in the order given.
        unsuited: the reason why a structure has no fit, as its `fit` gives it, by its name.

    Examples:
        >>> import jax, fimlens as fl
        >>> fisher = fl.Fisher.from_gradients(jax.random.normal(jax.random.key(0), (8, 3, 4)))
        >>> comparison = fl.compare([fl.Diagonal(), fl.Rows(), fl.LowRank(fl.Diagonal(), 9)], fisher)
        >>> [(row.name, row.claim, row.claim_holds) for row in comparison.rows]
        [('Diagonal()', 'EXACT', True), ('Rows()', 'EXACT', True)]
        >>> list(comparison.unsuited)
        ['LowRank(Diagonal(), 9)']
    """

    matrix: str
    fisher: str
    shape: tuple[int, int]
    rows: tuple[Row, ...]
    unsuited: Mapping[str, str]

    def best(self, divergence: str, *, scaled: bool = False) -> str | None:
        """Return the name of the structure nearest to F in a divergence, of those that are not F itself.

        Args:
            divergence: "Frobenius", "von Neumann" or "LogDet".
            scaled: whether every fit is first multiplied by its best scalar.
        """
        found = {row.name: row.divergences[divergence] for row in self.rows if row.relative > EXACT}
        errors = {name: near.scaled if scaled else near.error for name, near in found.items()}
        return min(errors, key=errors.get, default=None)

    @property
    def ok(self) -> bool:
        """Whether there are rows, and all their verdicts are good."""
        return bool(self.rows) and all(row.ok for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Return every number as plain data, ready for `json.dump`: "inf" or "-inf" for what is infinite, and None for NaN."""
        rows = [as_json(row) | {"ok": row.ok} for row in self.rows]
        return {
            "matrix": self.matrix,
            "fisher": self.fisher,
            "shape": list(self.shape),
            "rows": rows,
            "unsuited": dict(self.unsuited),
        }


def compare(
    structures: Mapping[str, Structure] | Iterable[Structure],
    fisher: Fisher,
    *,
    matrix: str = "",
    key: Array | None = None,
    solve_up_to: int = SOLVE_UP_TO,
    dtype: Any = jnp.float32,
    progress: Callable[[str], None] = lambda name: None,
) -> Comparison:
    """Compare structures on one Fisher: their errors, numeric optima and sizes, and whether their optimizers agree with them.

    Use it to choose a structure, or to judge a new one. Each row holds what `fit`, `gap`, `solve` and `state_size` say of a
    structure. It also holds how far `scale_by_structure` ends from the fit if it is fed the same gradients.

    Args:
        structures: by name, or without names: then named as they print.
        fisher: the Fisher of one matrix. Optimizers run only if it has samples.
        matrix: a name for the matrix.
        key: draws random starts and bases; jax.random.key(0) by default.
        solve_up_to: the solver runs if the matrix has at most this many entries.
        dtype: data type assumed when reporting state size in bytes.
        progress: called with each structure's name when its row is done.

    Raises:
        TypeError: `fisher` is not a Fisher, or one of `structures` is not a Structure instance.
        ValueError: there are no structures, or two have the same name.

    Examples:
        >>> import jax, fimlens as fl
        >>> fisher = fl.Fisher.from_gradients(jax.random.normal(jax.random.key(0), (8, 3, 4)))
        >>> fl.compare([fl.Diagonal(), fl.Rows()], fisher).ok
        True
    """
    named = name_structures("compare", structures)
    for structure in named.values():
        require_structure_and_fisher("compare", structure, fisher)
    key_data = jax.random.key_data(jax.random.key(0) if key is None else key)
    rows, unsuited = [], {}
    # In float64, so that a verdict at 1e-8 tells a wrong formula from rounding.
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        exact = jax.tree.map(lambda x: x.astype(jnp.float64), fisher)
        for name, structure in named.items():
            key = jax.random.wrap_key_data(key_data)
            try:
                fitted = fit(structure, exact, key=key)
            except Unsuited as error:
                unsuited[name] = str(error)
            else:
                rows.append(measure_row(name, structure, fitted, exact, key, solve_up_to, dtype))
            progress(name)
    return Comparison(matrix, repr(fisher), fisher.shape, tuple(rows), unsuited)

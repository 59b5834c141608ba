"""The nearest member of one family in each divergence, seen in all three: 3 x 3 errors for each matrix of the lens.

`python -m fimlens.lens.crossed docs/lens.json` prints them as Markdown, from what `fimlens lens` wrote.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fimlens.lens.nearness import DIVERGENCES, Nearness

# The name in the lens of the structure that is nearest in each divergence.
FAMILIES = {
    "rank one": dict(zip(DIVERGENCES, ("racs", "adafactor", "sinkgd"), strict=True)),
    "Kronecker": dict(zip(DIVERGENCES, ("kronecker", "shampoo squared", "kl-shampoo"), strict=True)),
}


def crossed_errors(rows: Mapping[str, Mapping[str, Nearness]]) -> dict[str, list[list[float]]]:
    """Return for each family the errors at the fits' own scale: a line for each fit, and a column for each divergence.

    Args:
        rows: how near each structure is in each divergence, by its name. Families that lack a structure are left out.
    """
    return {
        family: [[rows[name][seen_in].error for seen_in in DIVERGENCES] for name in names.values()]
        for family, names in FAMILIES.items()
        if all(name in rows for name in names.values())
    }


def table(report: Mapping[str, Any]) -> str:
    """The errors as Markdown, from a report of `fimlens lens`. The least of each column is bold."""
    lines = [f"| matrix | family | nearest in | {' | '.join(DIVERGENCES)} |", "|---|---|---|---|---|---|"]
    for matrix in report["matrices"]:
        rows = {row["name"]: {d: Nearness(**near) for d, near in row["divergences"].items()} for row in matrix["rows"]}
        for family, errors in crossed_errors(rows).items():
            least = [min(column, key=float) for column in zip(*errors, strict=True)]
            for divergence, line in zip(DIVERGENCES, errors, strict=True):
                cells = (f"**{x:.4f}**" if x == y else f"{float(x):.4f}" for x, y in zip(line, least, strict=True))
                lines.append(f"| {matrix['matrix']} | {family} | {divergence} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text())))

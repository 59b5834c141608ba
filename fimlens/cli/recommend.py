"""fimlens recommend: a structure for each matrix, from the estimates of `fimlens lens --gradients`."""

import contextlib
import json
from pathlib import Path
from typing import Annotated

import typer

from fimlens.cli.arguments import console, parse_divergence, refusing, require_apart, require_writable, table
from fimlens.lens.estimates import Estimates
from fimlens.lens.nearness import divergence_name
from fimlens.lens.recommend import recommend as choose
from fimlens.lens.recommendation import UNITS, Recommendation
from fimlens.structure import Structure
from fimlens.structures.named import read_structure

LEGEND = """
Each matrix has its structures from the cheapest to the dearest, with the estimated error and its standard error (+-). A \
structure can be chosen unless a cheaper one is about as near, as its verdict says. The choice is in bold."""


def recommend(
    estimates: Annotated[Path, typer.Argument(help="The estimates.json that `fimlens lens --gradients` wrote.")],
    budget: Annotated[float, typer.Option(help="The most that all matrices may cost together.")],
    cost: Annotated[str, typer.Option(help="; ".join(f"{name}: {unit}" for name, unit in UNITS.items()) + ".")] = "memory",
    divergence: Annotated[str, typer.Option(help="frobenius, von-neumann or logdet.")] = "frobenius",
    out: Annotated[Path, typer.Option(help="File for `fimlens pretrain --optimizer recommended:FILE`.")] = Path(
        "recommended.json"
    ),
) -> None:
    """Choose a structure for each matrix, so that the mean estimated error is least within a budget."""
    with refusing("recommend"):
        require_writable("--out", out)
        require_apart({"ESTIMATES": estimates, "--out": out})
        found = choose(_read(estimates, divergence), budget, cost=cost)
        out.write_text(json.dumps(found.to_json(), indent=1) + "\n")
    _print(found)
    console.print(LEGEND, style="dim")
    console.print(f"{found.in_words()} Choices: {out}")


def _read(path: Path, divergence: str) -> dict[str, Estimates]:
    """Return the estimates of each matrix in a file, of the structures of fimlens."""
    sense = str(parse_divergence("recommend", divergence))
    if not path.is_file():
        raise ValueError(f"{path} is no file. Let `fimlens lens --gradients` write it, as estimates.json.")
    try:
        matrices = json.loads(path.read_text())["matrices"]
        parts = {name: {part["divergence"]: part for part in each.values()}[sense] for name, each in matrices.items()}
        return {name: Estimates.from_json(part, _structures(part["structures"])) for name, part in parts.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"{path} holds no estimates in {sense}. Let `fimlens lens --gradients` write it."
        raise ValueError(message) from error


def _structures(texts: dict[str, str]) -> dict[str, Structure]:
    """Return the structures that a file writes, without those of other packages."""
    found = {}
    for name, text in texts.items():
        with contextlib.suppress(ValueError):
            found[name] = read_structure("recommend", text)
    return found


def _print(found: Recommendation) -> None:
    """Print the table behind the choice: one a matrix, the cheapest structure first."""
    for matrix, rows in found.table.items():
        console.print(f"\n{matrix}: {found.entries[matrix]:,} entries", style="bold")
        shown = table("structure", UNITS[found.cost], divergence_name(found.divergence), "+-", "verdict")
        shown.columns[-1].no_wrap = False
        for row in rows:
            numbers = f"{row.cost:,.0f}", f"{row.error:.3f}", f"{row.se:.3f}"
            shown.add_row(row.structure, *numbers, row.verdict, style="bold" if row.verdict == "chosen" else None)
        console.print(shown)

"""fimlens derive: find a structure's closed form from its definition."""

from typing import Annotated

import typer

from fimlens.cli.arguments import console, errors, parse_divergence, parse_structures, refusing
from fimlens.proofs.derive import derive as derived
from fimlens.structures.named import STRUCTURES


def derive(
    structure: Annotated[str, typer.Argument(help="A name of the lens, such as racs, or module:Structure for your own.")],
    rows: Annotated[int, typer.Option("-m", min=1, help="Number of rows of the matrix.")] = 2,
    columns: Annotated[int, typer.Option("-n", min=1, help="Number of columns of the matrix.")] = 2,
    divergence: Annotated[
        str | None,
        typer.Option(
            help="Sense in which the member is nearest: frobenius, von-neumann, logdet, or a number b for Beta(b). "
            "Default: the structure's own."
        ),
    ] = None,
    latex: Annotated[bool, typer.Option("--latex", help="Print only the equations, in LaTeX.")] = False,
) -> None:
    """Derive a structure's closed form from its definition, and check its own fit by it. Exit with 1 if that fails."""
    with refusing("derive", NotImplementedError, ArithmeticError):
        sense = None if divergence is None else parse_divergence("derive", divergence)
        structures = parse_structures("derive", structure, STRUCTURES).values()
        found = [derived(H, rows, columns, divergence=sense) for H in structures]
    for each in found:
        console.print(each.latex() if latex else str(each), soft_wrap=True)
    if not all(each.ok for each in found):
        errors.print("A fit was refused: see above.", style="red")
        raise typer.Exit(1)

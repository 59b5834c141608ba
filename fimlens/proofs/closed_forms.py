"""The table of closed forms, made of what `derive` finds: python -m fimlens.proofs.closed_forms prints it as Markdown."""

import jax
import numpy as np
import sympy as sp

from fimlens.proofs.derive import Derived, derive
from fimlens.structure import Claim, Structure
from fimlens.structures import (
    Columns,
    Diagonal,
    DiagonalKronecker,
    Drop,
    GeometricMarginals,
    Kronecker,
    LowRank,
    Marginals,
    Rotated,
    RowColumn,
    Rows,
    Scalar,
)

SHAPE = (2, 2)


STRUCTURES: dict[str, Structure] = {
    "Adam": Diagonal(),
    "row normalisation": Rows(),
    "column normalisation": Columns(),
    "LARS": Scalar(),
    "RACS": RowColumn(),
    "Adafactor": Marginals(),
    "Muon": Rotated(Rows(), "L"),
    "Shampoo": Rotated(GeometricMarginals()),
    "SOAP, one-sided": Rotated(Diagonal(), "L"),
    "Alice": LowRank(Diagonal(), 1),
    "GaLore": LowRank(Diagonal(), 1, Drop()),
    "Kronecker": Kronecker(),
    "S x M": DiagonalKronecker(),
}


def table() -> str:
    """One row a structure: its claim, the first of its coordinates at SHAPE, and what is true of the shipped fit."""
    m, n = SHAPE
    rows = [f"| | structure | claim | at {m} x {n}, F seen in its bases | the shipped fit |", "|---|---|---|---|---|"]
    for name, H in STRUCTURES.items():
        derived = derive(H, m, n)
        rows.append(
            f"| {name} | `{H}` | {H.claim.name} | {_first(derived)} | {derived.fit.partition(',')[0].partition(' (')[0]} |"
        )
    return "\n".join(rows)


def _first(derived: Derived) -> str:
    """The first coordinate of each part: in closed form, or given the others; another objective's minimiser as it ships."""
    own = derived.structure.claim in (Claim.BOUND, Claim.OTHER)
    places = [np.ravel(leaf)[0] for leaf in jax.tree.leaves(derived.coordinates)]
    shipped = [np.ravel(leaf)[0] for leaf in jax.tree.leaves(derived.shipped)]
    values = map(sp.factor_terms, shipped) if own else (derived.found.solution[c] for c in places)
    shown = ", ".join(f"`{c} = {value}`" for c, value in zip(places, values, strict=True))
    return shown.replace("_{", "_").replace("}", "") + ("" if own or derived.found.closed else ", a fixed point")


if __name__ == "__main__":
    print(table())

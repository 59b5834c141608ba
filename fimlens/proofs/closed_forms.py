"""The table of closed forms in docs/proofs.md, made from what `derive` finds.

`python -m fimlens.proofs.closed_forms` prints it as Markdown.
"""

import jax
import numpy as np
import sympy as sp

from fimlens.proofs.derive import Derived, derive
from fimlens.proofs.verify_fit import plain_text
from fimlens.structure import Claim
from fimlens.structures.named import named_structures

SHAPE = (2, 2)


LENS_NAMES = {
    "Adam": "adam",
    "row normalisation": "rows",
    "column normalisation": "columns",
    "LARS": "sgd",
    "RACS": "racs",
    "Adafactor": "adafactor",
    "Muon": "muon",
    "Shampoo": "shampoo",
    "SOAP, one-sided": "osoap",
    "Alice": "alice",
    "GaLore": "galore",
    "Kronecker": "kronecker",
    "S x M": "s x m",
}  # the lens's name of the structure in each row


def table() -> str:
    """The table as Markdown. A row has a structure, its claim, its first coordinates at SHAPE, and the verdict on its fit."""
    m, n = SHAPE
    rows = [f"| | structure | claim | at {m} x {n}, F in its bases | the shipped fit |", "|---|---|---|---|---|"]
    structures = named_structures(rank=1)  # a rank that suits SHAPE
    for name, lens_name in LENS_NAMES.items():
        H = structures[lens_name]
        derived = derive(H, m, n)
        verdict = derived.fit.partition(",")[0].partition(" (")[0]
        rows.append(f"| {name} | `{H}` | {H.claim.name} | {_first_coordinates(derived)} | {verdict} |")
    return "\n".join(rows)


def _first_coordinates(derived: Derived) -> str:
    """The first coordinate of each part of the tree, in closed form or given the others.

    A structure that minimises another objective than the gap, or whose equations are not solved, shows its shipped fit.
    """
    own = derived.structure.claim is Claim.BOUND or not derived.found.solution
    places = [np.ravel(leaf)[0] for leaf in jax.tree.leaves(derived.coordinates)]
    shipped = [np.ravel(leaf)[0] for leaf in jax.tree.leaves(derived.shipped)]
    values = map(sp.factor_terms, shipped) if own else (derived.found.solution[c] for c in places)
    shown = ", ".join(f"`{plain_text(c)} = {plain_text(value)}`" for c, value in zip(places, values, strict=True))
    return shown + ("" if own or derived.found.closed else ", a fixed point")


if __name__ == "__main__":
    print(table())

"""The structures behind optimizers that people know, by name: one table for the lens, the gallery and the proofs."""

import ast
from collections.abc import Iterable, Mapping
from typing import Any

from fimlens import divergence, structures
from fimlens.divergence import LogDet
from fimlens.structure import Structure, require_structure
from fimlens.structures import (
    Columns,
    Dense,
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


def named_structures(rank: int = 4, sweeps: int | None = None) -> dict[str, Structure]:
    """Return every named structure; `rank` is that of the low-rank ones, and `sweeps` bounds those of the products' fits.

    Examples:
        >>> from fimlens.structures.named import named_structures
        >>> print(named_structures()["osoap"])
        Rotated(Diagonal(), L)
    """
    return {
        "sgd": Scalar(),
        "rows": Rows(),
        "columns": Columns(),
        "racs": RowColumn(),
        "adafactor": Marginals(),
        "sinkgd": RowColumn(divergence=LogDet()),
        "adam": Diagonal(),
        "muon": Rotated(Rows(), "L"),
        "right whitening": Rotated(Columns(), "R"),
        "s x m": DiagonalKronecker(sweeps=sweeps),
        "galore": LowRank(Diagonal(), rank, Drop()),
        "alice": LowRank(Diagonal(), rank, Columns()),
        "osoap": Rotated(Diagonal(), "L"),
        "shampoo": Rotated(GeometricMarginals(), "LR"),
        "kronecker": Kronecker(sweeps=sweeps),
        "shampoo squared": Rotated(Marginals(), "LR"),
        "kl-shampoo": Kronecker(LogDet(), sweeps),
        "soap": Rotated(Diagonal(), "LR"),
        "dense": Dense(),
    }


STRUCTURES = named_structures()


_KINDS = {name: kind for room in (divergence, structures) for name, kind in vars(room).items() if isinstance(kind, type)}


def read_structure(call: str, text: str) -> Structure:
    """Return the structure that a text names, or writes as in Python: what `repr` writes of any structure of fimlens.

    Args:
        call: the public function that was given it, named in the message.
        text: such as "soap", or "LowRank(Diagonal(), rank=32)".

    Raises:
        TypeError: the text writes something else.
        ValueError: it is neither a name nor made of structures, trackers and divergences of fimlens.

    Examples:
        >>> from fimlens.structures.named import read_structure
        >>> print(read_structure("lens", "soap"), read_structure("lens", "Rotated(Diagonal(), sides='L')"))
        Rotated(Diagonal()) Rotated(Diagonal(), L)
    """
    if text in STRUCTURES:
        return STRUCTURES[text]
    try:
        found = _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, TypeError, KeyError, AttributeError) as error:
        known = f"{', '.join(STRUCTURES)}, or others as in Python: LowRank(Diagonal(), 32)"
        raise ValueError(f"{call}: there is no structure {text!r}. There are {known}.") from error
    require_structure(call, found)
    return found


def _value(node: Any) -> Any:
    """Return the value of a literal, or of a call of a structure, tracker or divergence."""
    if isinstance(node, ast.Call):
        return _KINDS[node.func.id](*map(_value, node.args), **{part.arg: _value(part.value) for part in node.keywords})
    return ast.literal_eval(node)


def name_structures(call: str, structures: Mapping[str, Structure] | Iterable[Structure]) -> dict[str, Structure]:
    """Return structures by name; those without names are named as they print.

    Args:
        call: the public function that was given them, named in the message.
        structures: the structures.

    Raises:
        TypeError: one is not a Structure instance, or `structures` is a single one.
        ValueError: there are none, or two have the same name.
    """
    if isinstance(structures, Structure | str):
        raise TypeError(f"{call}: expected several structures, as in [fl.Diagonal(), fl.Rows()]; got {structures!r}.")
    given = list(structures.items()) if isinstance(structures, Mapping) else [(str(s), s) for s in structures]
    if not given:
        raise ValueError(f"{call}: there are no structures. Give some, such as [fl.Diagonal(), fl.Rows()].")
    named: dict[str, Structure] = {}
    for name, structure in given:
        require_structure(call, structure)
        if name in named:
            raise ValueError(
                f"{call}: two structures are named {name}. Give them names, as in {{'first': ..., 'second': ...}}."
            )
        named[name] = structure
    return named

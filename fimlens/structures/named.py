"""The structures behind optimizers that people know, by name: one table for the lens, the gallery and the proofs."""

from collections.abc import Iterable, Mapping

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


def name_structures(call: str, structures: Mapping[str, Structure] | Iterable[Structure]) -> dict[str, Structure]:
    """Return structures by name; those without names are named as they print.

    Args:
        call: the public function that was given them, named in the message.
        structures: the structures.

    Raises:
        TypeError: one is not a Structure instance.
        ValueError: there are none, or two have the same name.
    """
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

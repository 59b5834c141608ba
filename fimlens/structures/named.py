"""The structures behind optimizers that people know, by name: one table for the lens, the gallery and the proofs."""

from fimlens.divergence import LogDet
from fimlens.structure import Structure
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


def named_structures(rank: int = 4) -> dict[str, Structure]:
    """Return every named structure; `rank` is that of the low-rank ones.

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
        "s x m": DiagonalKronecker(),
        "galore": LowRank(Diagonal(), rank, Drop()),
        "alice": LowRank(Diagonal(), rank, Columns()),
        "osoap": Rotated(Diagonal(), "L"),
        "shampoo": Rotated(GeometricMarginals(), "LR"),
        "kronecker": Kronecker(),
        "shampoo squared": Rotated(Marginals(), "LR"),
        "kl-shampoo": Kronecker(LogDet()),
        "soap": Rotated(Diagonal(), "LR"),
        "dense": Dense(),
    }


STRUCTURES = named_structures()

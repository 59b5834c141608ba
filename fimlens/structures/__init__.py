"""The families of matrices, and the trackers that find their bases.

A new family is one file here and one line below. EXAMPLES is the fixture of every law.
"""

from fimlens.divergence import LogDet
from fimlens.structures.blocks import Blocks as Blocks
from fimlens.structures.dense import Dense as Dense
from fimlens.structures.kronecker import DiagonalKronecker as DiagonalKronecker
from fimlens.structures.kronecker import Kronecker as Kronecker
from fimlens.structures.low_rank import LowRank as LowRank
from fimlens.structures.marginals import GeometricMarginals as GeometricMarginals
from fimlens.structures.marginals import Marginals as Marginals
from fimlens.structures.rank_one import RowColumn as RowColumn
from fimlens.structures.rotated import Rotated as Rotated
from fimlens.structures.spectra import Columns as Columns
from fimlens.structures.spectra import Diagonal as Diagonal
from fimlens.structures.spectra import Drop as Drop
from fimlens.structures.spectra import Rows as Rows
from fimlens.structures.spectra import Scalar as Scalar
from fimlens.structures.spectra import Spectrum as Spectrum
from fimlens.structures.subspace_iteration import SubspaceIteration as SubspaceIteration
from fimlens.structures.through import Through as Through
from fimlens.structures.trackers import Eigen as Eigen
from fimlens.structures.trackers import PowerStep as PowerStep
from fimlens.structures.trackers import RandomProjection as RandomProjection
from fimlens.structures.trackers import Singular as Singular
from fimlens.structures.trackers import Tracker as Tracker

EXAMPLES = (
    Diagonal(),
    Rows(),
    Columns(),
    Scalar(),
    RowColumn(),
    Marginals(),
    Marginals(LogDet()),
    GeometricMarginals(),
    Rotated(Diagonal(), "L"),
    Rotated(Diagonal(), "short"),
    Rotated(Diagonal(), "LR"),
    Rotated(Diagonal(), "LR", PowerStep()),
    Rotated(Diagonal(), "short", Singular()),
    Rotated(Rows(), "L"),
    Rotated(Columns(), "R"),
    Rotated(RowColumn(), "LR"),
    Rotated(Marginals(), "L"),
    Rotated(Marginals(LogDet()), "LR", PowerStep()),
    Rotated(Through(Diagonal(), Marginals(LogDet())), "LR"),
    Rotated(GeometricMarginals(), "LR"),
    LowRank(Diagonal(), 2),
    LowRank(RowColumn(), 2, Drop()),
    LowRank(Rotated(Diagonal(), "R"), 2, Scalar()),
    LowRank(Diagonal(), 2, tracker=SubspaceIteration(2, switch="none")),
    LowRank(Diagonal(), 2, sides="LR"),
    LowRank(RowColumn(), 2, sides="LR"),
    Kronecker(),
    DiagonalKronecker(),
    Dense(),
    Blocks(Rows(), columns=2),
    Blocks(Dense(), columns=4),
    Rotated(Blocks(Diagonal(), columns=2), "L"),
)

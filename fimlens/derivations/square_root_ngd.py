r"""Every structure's update is square-root natural gradient descent.

With $\tilde F = B\, \mathrm{Diag}(\lambda)\, B^T$, B orthonormal, $f(\tilde F) = B\, \mathrm{Diag}(f(\lambda))\, B^T$. The shipped update never builds $\tilde F$; that it is
$\mathrm{Mat}(\tilde F^{-1/2} g)$ is proved against `dense`, which is written apart: the update's map R is symmetric and inverts
the root twice over, $R R \tilde F g = g$ for every g, and R is positive where every $\lambda$ is, so $R = \tilde F^{-1/2}$. Where a structure
has no full range (GaLore), $R R \tilde F$ is the projection on it.
"""

import jax

from fimlens.fisher import unvec, vec
from fimlens.proof import coordinates, equal, frame, symbolic, symbols, update
from fimlens.structure import Params
from fimlens.structures import (
    Blocks,
    Columns,
    Corner,
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

SIZES = ((2, 2), (2, 3))
SPECTRA = (Diagonal(), Rows(), Columns(), Scalar(), RowColumn(), Marginals(), GeometricMarginals())
ROTATED = (Rotated(Rows(), "L"), Rotated(Columns(), "R"), Rotated(Diagonal(), "L"), Rotated(Diagonal()), Rotated(GeometricMarginals()))
PRODUCTS = (Kronecker(), DiagonalKronecker(), Blocks(Rows(), rows=2))
THIN = (LowRank(Diagonal(), 1), LowRank(Diagonal(), 1, Drop()), LowRank(Rotated(Diagonal(), "R"), 1, Scalar()), Corner(1))


def steps(m, n):
    G = symbols("G", m, n)
    for H in (*SPECTRA, *ROTATED, *PRODUCTS, *THIN):
        x = coordinates(H, m, n, "x")
        params = Params(frame(H, m, n), jax.tree.map(lambda x: x**2, x))
        image = symbolic(lambda p, G, H=H: unvec(H.dense(p) @ vec(G), G.shape))(params, G)
        kept = image if isinstance(H, LowRank) and H.complement == Drop() else None
        twice = update(H, params, update(H, params, image))
        if kept is not None:
            U = params.frame.bases.lead
            yield equal(f"{H}: R R F~ projects on its range", twice, U @ U.T @ G)
        else:
            yield equal(f"{H}: R R F~ g = g", twice, G)

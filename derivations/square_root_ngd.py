r"""Every structure's update is square-root natural gradient descent.

`to_eigenbasis` and `from_eigenbasis` are an isometry and its adjoint, and the update is $R_f = \mathrm{out} \cdot f(\lambda) \cdot \mathrm{into}$.
Four facts, for every G, every basis and all eigenvalues, make it $f(\tilde F)$:
(1) $R_x g = \tilde F g$, where `dense` writes $\tilde F$ apart;
(2) `to_eigenbasis` undoes `from_eigenbasis` on all that $f(\lambda)$ makes of coordinates, so that $R_f R_h = R_{fh}$;
(3) $f(\lambda) = 1/\sqrt{\lambda}$, so that $R_f R_f R_x$ is the identity on the range of the family;
(4) what an optimizer runs, `precondition` between `to_eigenbasis` and `from_eigenbasis`, is that $R_f$. With $\varepsilon$,
$f(\lambda) = 1/(\sqrt{\lambda} + \varepsilon)$.
"""

from fimlens.interpreter.interpret import symbolic
from fimlens.linalg.spectral_functions import inverse_root, scale
from fimlens.proofs.evaluate import applied, update, written
from fimlens.proofs.symbols import coordinates, frame, positive, symbols
from fimlens.proofs.theorem import equal
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


ROTATED = (Rotated(Rows(), "L"), Rotated(Columns(), "R"), Rotated(Diagonal(), "L"), Rotated(Diagonal()))


PRODUCTS = (Kronecker(), DiagonalKronecker(), Blocks(Rows(), rows=2))


THIN = (LowRank(Diagonal(), 1), LowRank(Diagonal(), 1, Drop()), LowRank(Rotated(Diagonal(), "R"), 1, Scalar()), Corner(1))


def steps(m, n):
    G, (x, eps) = symbols("G", m, n), positive("x", 2)
    root = symbolic(lambda x, eps: inverse_root(eps)(x))
    yield equal(
        "the shipped f is 1/(sqrt(x) + eps), eps zero or not", [root(x**2, eps), root(x**2, 0.0)], [1 / (x + eps), 1 / x]
    )
    for H in (*SPECTRA, *ROTATED, *PRODUCTS, *THIN):
        member = Params(frame(H, m, n), coordinates(H, m, n, "c"))
        yield equal(f"{H}: the update's path with f(x) = x is F~ g", applied(H, member, G), written(H, member, G))
        scaled = symbolic(lambda p, G, H=H: scale(lambda x: x, H.eigenvalues(p), H.to_eigenbasis(p.frame, G)))(member, G)
        again = symbolic(lambda at, X, H=H: H.to_eigenbasis(at, H.from_eigenbasis(at, X)))(member.frame, scaled)
        X = symbolic(lambda p, G, H=H: H.to_eigenbasis(p.frame, G))(member, G)
        without = symbolic(lambda p, X, H=H: H.from_eigenbasis(p.frame, H.precondition(p, X, 0.0)))(member, X)
        with_eps = symbolic(lambda p, X, eps, H=H: H.from_eigenbasis(p.frame, H.precondition(p, X, eps)))(member, X, eps)
        yield equal(f"{H}: what an optimizer runs is f(F~) g", without, update(H, member, G))
        yield equal(f"{H}: with eps too", with_eps, update(H, member, G, eps))
        yield equal(f"{H}: into undoes out on what the eigenvalues scale", again, scaled)

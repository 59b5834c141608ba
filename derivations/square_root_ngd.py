r"""The update of every structure is square-root natural gradient descent.

Theorem. The update that ships computes $f(\tilde F) g$ with $f(x) = 1/(\sqrt{x} + \varepsilon)$, for every $G$, every
basis and all positive eigenvalues. Where $\tilde F$ is singular and $\varepsilon = 0$, it does so on the range of
$\tilde F$.

Proof. Write $T$ for `to_eigenbasis`, $T^*$ for `from_eigenbasis` and $\lambda$ for the eigenvalues, and let $R_h =
T^*\, \mathrm{Diag}(h(\lambda))\, T$ for a function $h$. The steps decide four facts.
(1) For $h(x) = x$, $R_h g = \tilde F g$, where `dense` forms $\tilde F$ independently.
(2) $T T^*$ is the identity on every $\mathrm{Diag}(\lambda)\, T g$; as $\lambda$ is arbitrary, $R_h R_k = R_{hk}$.
(3) The shipped $f$ is $1/(\sqrt{x} + \varepsilon)$.
(4) An optimizer runs `precondition` between $T$ and $T^*$, and the result is $R_f g$.
By (1) and (2), $R_h = h(\tilde F)$ for every polynomial $h$ without a constant term. By interpolation at the
eigenvalues, $R_h = h(\tilde F)$ on the range of $\tilde F$ for every function $h$. By (3) and (4) the update is
$f(\tilde F) g$.
"""

from fimlens.interpreter.interpret import symbolic
from fimlens.linalg.spectral_functions import inverse_root, scale
from fimlens.proofs.evaluate import apply, apply_dense, update
from fimlens.proofs.symbols import coordinates, frame, positive, symbols
from fimlens.proofs.theorem import equal
from fimlens.structure import Params
from fimlens.structures import (
    Blocks,
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

SIZES = ((2, 2), (2, 3))


SPECTRA = (Diagonal(), Rows(), Columns(), Scalar(), RowColumn(), Marginals(), GeometricMarginals())


ROTATED = (Rotated(Rows(), "L"), Rotated(Columns(), "R"), Rotated(Diagonal(), "L"), Rotated(Diagonal()))


PRODUCTS = (Kronecker(), DiagonalKronecker(), Blocks(Rows(), rows=2))


LOW_RANK = (
    LowRank(Diagonal(), 1),
    LowRank(Diagonal(), 1, Drop()),
    LowRank(Rotated(Diagonal(), "R"), 1, Scalar()),
    LowRank(Diagonal(), 1, sides="LR"),
)


def steps(m, n):
    G, (x, eps) = symbols("G", m, n), positive("x", 2)
    root = symbolic(lambda x, eps: inverse_root(eps)(x))
    yield equal(
        "the shipped f is 1/(sqrt(x) + eps), for eps > 0 and for eps = 0",
        [root(x**2, eps), root(x**2, 0.0)],
        [1 / (x + eps), 1 / x],
    )
    for H in (*SPECTRA, *ROTATED, *PRODUCTS, *LOW_RANK):
        member = Params(frame(H, m, n), coordinates(H, m, n, "c"))
        yield equal(f"{H}: `apply` with f(x) = x gives F~ g", apply(H, member, G), apply_dense(H, member, G))
        scaled = symbolic(lambda p, G, H=H: scale(lambda x: x, H.eigenvalues(p), H.to_eigenbasis(p.frame, G)))(member, G)
        again = symbolic(lambda at, X, H=H: H.to_eigenbasis(at, H.from_eigenbasis(at, X)))(member.frame, scaled)
        X = symbolic(lambda p, G, H=H: H.to_eigenbasis(p.frame, G))(member, G)
        without = symbolic(lambda p, X, H=H: H.from_eigenbasis(p.frame, H.precondition(p, X, 0.0)))(member, X)
        with_eps = symbolic(lambda p, X, eps, H=H: H.from_eigenbasis(p.frame, H.precondition(p, X, eps)))(member, X, eps)
        yield equal(f"{H}: the optimizer's update is f(F~) g with eps = 0", without, update(H, member, G))
        yield equal(f"{H}: the optimizer's update is f(F~) g with eps > 0", with_eps, update(H, member, G, eps))
        yield equal(f"{H}: to_eigenbasis undoes from_eigenbasis on scaled coordinates", again, scaled)

r"""Alice is exact for its eigenvalues, in the subspace and outside it, for every subspace.

Theorem. Let $Q = (U, U_c)$ be orthonormal, with $U$ (m x r) and $U_c$ (m x (m - r)). Let the eigenvalues $L$ (m x n) be
free in the first $r$ rows and, in each column, equal to each other in the other rows. Then
$$\tilde F = (I \otimes Q)\, \mathrm{Diag}(\mathrm{vec} L)\, (I \otimes Q)^T$$
does not depend on $U_c$, so no basis of the complement is needed. Given $U$, the nearest to $F$ has $E[(U^T G)^2]$ in
the first rows and the means of the second moments below. With $\sigma = U^T G$ (r x n), its update is
$$U (D - \sigma\, \mathrm{Diag}(d)) + G\, \mathrm{Diag}(d) ,$$
where $D = \sigma / \sqrt{E[\sigma^2]}$ and $d_j = \sqrt{(m - r) / p_j}$ with $p_j$ from `compensation`. It needs two
products with the thin matrix $U$.

Proof. The error is a convex quadratic of the eigenvalues, and its gradient vanishes at the means. The update has the
part $U D$ in the subspace and $(G - U \sigma)\, \mathrm{Diag}(d)$ outside it. The steps decide this for every unit
vector $U$ ($r = 1$).
"""

import numpy as np

from fimlens.interpreter.interpret import symbolic
from fimlens.proofs.evaluate import dense, error, fitted, slope, update
from fimlens.proofs.symbols import any_fisher, coordinates, frame, rotation, symbols
from fimlens.proofs.theorem import convex, equal, vanishes
from fimlens.structure import Frame, Params
from fimlens.structures import Diagonal, LowRank
from fimlens.structures.parts import Parts
from fimlens.transforms.compensation import Seen, nearest
from fimlens.transforms.low_rank_update import Projections, low_rank_update, squares_of, squares_outside

SIZES = ((2, 2), (2, 3))


def steps(m, n):
    H, F, G = LowRank(Diagonal(), 1), any_fisher(m, n), symbols("G", m, n)
    Q, still, c = rotation(m, "t"), frame(H, m, n, turned=False), coordinates(H, m, n, "c")
    at = Frame(still.bases._replace(left=Q[:, :1]), (m, n))
    L = np.concatenate([c.lead, np.repeat(c.columns, m - 1, 0)])
    B = np.kron(np.eye(n, dtype=int), Q)
    yield equal("the member is diagonal in (U, U_c), for every U_c", dense(H, Params(at, c)), B * L.T.ravel() @ B.T)
    yield vanishes(
        "for every U the gradient with respect to the eigenvalues vanishes at the fit", slope(H, fitted(H, F, at), F)
    )
    yield convex(
        "the error is a convex quadratic of the eigenvalues (in the standard basis; the norm is the same in every basis)",
        error(H, Params(still, c), F),
        c,
    )
    member = Params(at, c._replace(lead=c.lead**2, columns=c.columns**2))
    U, sigma = Q[:, :1], Q[:, :1].T @ G
    d = symbolic(lambda eigenvalue: nearest(Seen(None, None, None, eigenvalue)))(member.coords.columns[None])[0]
    seen = Projections(U, None, sigma, None, sigma)
    shipped = symbolic(low_rank_update)(G, seen, sigma / c.lead, Parts(None, None, d, None))
    yield equal("the shipped update, U (D - sigma Diag d) + G Diag d, is F~^{-1/2} g", update(H, member, G), shipped)
    rest = symbolic(lambda G, seen: squares_outside(squares_of(G, seen), seen))(G, seen).columns
    residual = G - U @ sigma
    yield equal("the shipped difference of squares is the residual's", rest[0], (residual**2).sum(0))

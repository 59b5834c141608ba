r"""Alice's compensation is the nearest S (x) U_c U_c^T ([G], Theorem 5.1).

Theorem. Let $U$ (m x r) be given, let $U_c$ (m x (m - r)) be a basis of its complement, and let $S = \mathrm{Diag}(s)$
(n x n). The nearest $S \otimes U_c U_c^T$ to $F$ has $s_j = p_j / (m - r)$ with $p_j = E[\Vert g_j \Vert^2 - \Vert U^T
g_j \Vert^2]$. Its update is $\sqrt{m - r}\, (G - U U^T G)\, \mathrm{Diag}(p)^{-1/2}$.

Proof. The error is a convex quadratic of $s$. Its gradient vanishes at the mean of the second moments outside the
subspace, because $U_c U_c^T = I - U U^T$ has the trace $m - r$. Both statements hold for every $U$. ([G] writes
$S^{-2}$ for the $S$ used here.)
"""

import numpy as np
import sympy as sp

from fimlens.interpreter.interpret import symbolic
from fimlens.proofs.evaluate import error, fitted, slope, update
from fimlens.proofs.symbols import any_fisher, coordinates, frame, positive, symbols
from fimlens.proofs.theorem import convex, equal, vanishes
from fimlens.structure import Params
from fimlens.structures import Columns, Diagonal, LowRank
from fimlens.transforms.compensation import Seen, nearest

SIZES = ((2, 2), (2, 3), (3, 3))


def steps(m, n):
    for rank in range(1, m):
        yield from of_rank(rank, m, n)


def of_rank(r, m, n):
    H, F, G = LowRank(Diagonal(), r, Columns()), any_fisher(m, n), symbols("G", m, n)
    at = frame(H, m, n)
    U = at.bases.left
    nearest_member = fitted(H, F, at)
    whole, lead = symbolic(lambda F, U: (F.right(), F.map(lambda G: U.T @ G).right()))(F, U)
    p = np.diag(whole) - np.diag(lead)
    yield equal(f"{H}: the eigenvalues of the complement are p_j / (m - r)", nearest_member.coords.columns[0], p / (m - r))
    yield vanishes(f"{H}: the gradient with respect to them vanishes", slope(H, nearest_member, F).columns)
    c = coordinates(H, m, n, "c")
    still = frame(H, m, n, turned=False)
    yield convex(
        f"{H}: the error is a convex quadratic of them (in the standard basis; the norm is the same in every basis)",
        error(H, Params(still, c), F),
        c.columns,
    )
    x, sigma = positive("x", 1, n), U.T @ G
    member = Params(at, c._replace(columns=x**2 / (m - r)))
    tail = update(H, member, G - U @ sigma)
    yield equal(
        f"{H}: the update outside the subspace is sqrt(m - r) (G - U U^T G) / sqrt(p)",
        tail,
        sp.sqrt(m - r) * (G - U @ sigma) / x,
    )
    d = symbolic(lambda eigenvalue: nearest(Seen(None, None, None, eigenvalue)))((x**2 / (m - r))[None])
    yield equal(f"{H}: the shipped compensation is sqrt((m - r) / p)", d[0], sp.sqrt(m - r) / x)

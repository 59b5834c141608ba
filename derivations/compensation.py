r"""Alice's compensation is the nearest S (x) U_c U_c^T ([G], Theorem 5.1).

U (m x r) is given, $U_c$ is any basis of its complement. $\Vert S \otimes U_c U_c^T - F \Vert^2$ is a convex quadratic of the
diagonal S, least at $s_j = p_j / (m - r)$ with $p_j = E[\Vert g_j \Vert^2 - \Vert U^T g_j \Vert^2]$, as $U_c U_c^T = I - U U^T$
has $m - r$ dimensions. The update is $\sqrt{m - r}\, (G - U U^T G)\, \mathrm{Diag}(p)^{-1/2}$: in the theorem's letters
$S^{-2}$ is this S. Both hold for every U.
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
    U = at.bases.lead
    nearest_member = fitted(H, F, at)
    whole, lead = symbolic(lambda F, U: (F.right(), F.map(lambda G: U.T @ G).right()))(F, U)
    p = np.diag(whole) - np.diag(lead)
    yield equal(f"{H}: the tail's eigenvalues are p_j / (m - r)", nearest_member.coords.tail[0], p / (m - r))
    yield vanishes(f"{H}: the gradient by them vanishes", slope(H, nearest_member, F).tail)
    c = coordinates(H, m, n, "c")
    still = frame(H, m, n, turned=False)
    yield convex(
        f"{H}: the error is a convex quadratic of them (in the first frame; norms do not know bases)",
        error(H, Params(still, c), F),
        c.tail,
    )
    x, sigma = positive("x", 1, n), U.T @ G
    member = Params(at, c._replace(tail=x**2 / (m - r)))
    tail = update(H, member, G - U @ sigma)
    yield equal(f"{H}: what has no lead is divided by sqrt(p), times sqrt(m - r)", tail, sp.sqrt(m - r) * (G - U @ sigma) / x)
    d = symbolic(lambda value: nearest(Seen(value, value, value, value)))((x**2 / (m - r))[None])
    yield equal(f"{H}: so does the shipped compensation", d[0], sp.sqrt(m - r) / x)

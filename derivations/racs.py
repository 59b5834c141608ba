r"""RACS finds the nearest S (x) Q, both diagonal ([G], Proposition 3).

The eigenvalues are $q s^T$, and by the split of the error the best are the best rank one matrix for V, the second moments. For
any q the error is a convex quadratic of s, least at $s = V^T q / \Vert q \Vert^2$: half a sweep. A fixed point of both halves
is a singular pair of V. With $V = \sum_k \sigma_k u_k w_k^T$, at the pair k, scaled to $q = \sqrt{\sigma_k} u_k$ and
$s = \sqrt{\sigma_k} w_k$, the Hessian is, in the singular bases, $2 \sigma_k$ times a block of ones along the pair itself (0
along the scale, which is free), and a block of $2 \sigma_k$ and $-2 \sigma_l$ for every other l: their eigenvalues
$2(\sigma_k \pm \sigma_l)$ are non-negative for the leading pair alone. So a fixed point whose singular value is less is a
saddle. That the leading pair is the global minimum is the theorem of Eckart, Young and Mirsky, and that it can be taken
non-negative, so that power iteration from ones reaches it, that of Perron and Frobenius.
"""

import numpy as np
import sympy as sp

from fimlens.interpreter.interpret import symbolic
from fimlens.proofs.evaluate import error, fitted, hessian, slope
from fimlens.proofs.symbols import coordinates, diagonal_fisher, positive, rotation, symbols
from fimlens.proofs.theorem import equal, vanishes
from fimlens.structure import Params
from fimlens.structures import RowColumn
from fimlens.structures.rank_one import nearest_factor

SIZES = ((2, 2), (2, 3))


def steps(m, n):
    H, V = RowColumn(), positive("V", m, n)
    F, at = diagonal_fisher(V), H.frame(m, n)
    q, s = coordinates(H, m, n, "c")
    half = symbolic(nearest_factor)(V, q[:, 0])[None]
    yield vanishes("for any q the gradient by s vanishes after half a sweep", slope(H, Params(at, (q, half)), F)[1])
    whole, positive_definite = error(H, Params(at, (q, s)), F), 2 * (q**2).sum() * np.eye(n, dtype=int)
    yield equal(
        "for any q the Hessian by s is 2 ||q||^2 I: there is its only minimum", np.array(hessian(whole, s)), positive_definite
    )
    half = symbolic(nearest_factor)(V.T, s[0])[:, None]
    yield vanishes("for any s the gradient by q vanishes after the other half", slope(H, Params(at, (half, s)), F)[0])
    swept = fitted(RowColumn(sweeps=1), F)
    yield vanishes("so it does by q after a shipped sweep", slope(H, swept, F)[0])
    sigma, U, W = positive("sigma", m), rotation(m, "t"), rotation(n, "u")
    F = diagonal_fisher(U * sigma @ W[:, :m].T)
    for k in range(m):
        pair = U[:, k : k + 1] * sp.sqrt(sigma[k]), W[None, :, k] * sp.sqrt(sigma[k])
        yield vanishes(f"every singular pair is a fixed point: pair {k + 1}", slope(H, Params(at, pair), F))
    a, b = symbols("a", m, 1), symbols("b", 1, n)  # q and s in the singular bases
    D = np.zeros((m, n), int) + np.pad(np.diag(sigma), ((0, 0), (0, n - m)))
    E = error(H, Params(at, (a, b)), diagonal_fisher(D))
    for k in range(m):
        pair = dict.fromkeys((*a.ravel(), *b.ravel()), 0) | {a[k, 0]: sp.sqrt(sigma[k]), b[0, k]: sp.sqrt(sigma[k])}
        at_pair = np.array(hessian(E, (a, b)).subs(pair))
        yield equal(f"the Hessian at pair {k + 1} has blocks of 2 sigma_k and -2 sigma_l", at_pair, _blocks(sigma, k, m, n))


def _blocks(sigma, k, m, n):
    H = 2 * sigma[k] * np.eye(m + n, dtype=int)
    for other in range(m):
        H[other, m + other] = H[m + other, other] = 2 * sigma[k] if other == k else -2 * sigma[other]
    return H

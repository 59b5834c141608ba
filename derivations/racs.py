r"""RACS finds the S (x) Q, both diagonal, nearest in the Frobenius norm ([G], Proposition 3).

Theorem. Let $S = \mathrm{Diag}(s)$ (n x n) and $Q = \mathrm{Diag}(q)$ (m x m), and let $V = E[G^2]$ (m x n). The $S
\otimes Q$ nearest to $F$ is given by the best approximation $q s^T$ of rank one to $V$, its leading singular pair. RACS
alternates $s = V^T q / \Vert q \Vert^2$ and $q = V s / \Vert s \Vert^2$, which is a power iteration for that pair.

Proof. The eigenvalues of $S \otimes Q$ are $L = q s^T$, and by `error_split` the best ones minimise $\Vert q s^T - V
\Vert^2$. Given $q$ this is a convex quadratic of $s$, with its minimum at the first half step; given $s$, likewise for
$q$. A fixed point of both half steps is a singular pair of $V$.

Only the leading pair is a minimum. Let $V = \sum_k \sigma_k u_k w_k^T$, and take the pair $k$ with $q =
\sqrt{\sigma_k}\, u_k$ and $s = \sqrt{\sigma_k}\, w_k$. In the singular bases the Hessian has a block for each $l$,
which couples the directions $u_l$ of $q$ and $w_l$ of $s$. For $l = k$ all four entries are $2 \sigma_k$, with the
eigenvalue 0 along the change of scale between $q$ and $s$. For $l \neq k$ the diagonal is $2 \sigma_k$ and the other
entries are $-2 \sigma_l$, with the eigenvalues $2 (\sigma_k \pm \sigma_l)$. They are non-negative for all $l$ only if
$\sigma_k$ is the largest singular value; every other fixed point is a saddle.

That the leading pair is the global minimum is the theorem of Eckart, Young and Mirsky. That it can be chosen
non-negative, so that the power iteration from ones reaches it, is the theorem of Perron and Frobenius. Neither is
decided here.

With a cap $K$ a half step is the nearest $s$ for which no column of $V / q s^T$ has a mean over $K$. The error rises
with the distance of each entry of $s$ from the half step. Hence the nearest $s$ is the larger of the half step and of the
$s$ at which those means are $K$. RACS caps the rows in this way at each sweep, and the columns at last. Then both meet the
cap, as a larger $s$ lowers every mean. An entry is at most the number of a column's entries times their mean, so $V_{ij}
\leq K m\, q_i s_j$. Averages of $q$ and of $s$ hold at least $1 - \beta$ of the current factors, so no entry of the
update exceeds $\sqrt{K m} / (1 - \beta)$.
"""

from functools import partial

import numpy as np
import sympy as sp

from fimlens.divergence import Frobenius
from fimlens.interpreter.interpret import symbolic
from fimlens.proofs.evaluate import error, fitted, hessian, slope
from fimlens.proofs.symbols import coordinates, diagonal_fisher, positive, rotation, symbols
from fimlens.proofs.theorem import equal, vanishes
from fimlens.structure import Params
from fimlens.structures import RowColumn
from fimlens.structures.rank_one import capped_factor, least_factor, nearest_factor

SIZES = ((2, 2), (2, 3))


def steps(m, n):
    H, V = RowColumn(), positive("V", m, n)
    F, at = diagonal_fisher(V), H.frame(m, n)
    q, s = coordinates(H, m, n, "c")
    half_step = partial(nearest_factor, Frobenius())
    half = symbolic(half_step)(V, q[:, 0])[None]
    yield vanishes("given q, the gradient with respect to s vanishes after a half step", slope(H, Params(at, (q, half)), F)[1])
    whole, positive_definite = error(H, Params(at, (q, s)), F), 2 * (q**2).sum() * np.eye(n, dtype=int)
    yield equal(
        "given q, the Hessian with respect to s is 2 ||q||^2 I, so the half step is its only minimum",
        np.array(hessian(whole, s)),
        positive_definite,
    )
    half = symbolic(half_step)(V.T, s[0])[:, None]
    yield vanishes(
        "given s, the gradient with respect to q vanishes after the other half step", slope(H, Params(at, (half, s)), F)[0]
    )
    K, column = sp.Symbol("K", positive=True), symbolic(half_step)(V, q[:, 0])[None]
    yield equal(
        "given q, the gradient with respect to s is 2 ||q||^2 times the distance from the half step",
        slope(H, Params(at, (q, s)), F)[1],
        2 * (q**2).sum() * (s - column),
    )
    least = symbolic(least_factor)(V, q[:, 0], K)[None]
    yield equal(
        "given q, each column of V / q s^T has the mean K at the least s", (V / (q * least)).mean(0), K * np.ones(n, int)
    )
    larger = np.vectorize(sp.Max, otypes=[object])(column, least)
    yield equal(
        "the capped half step is the larger of the two",
        symbolic(partial(capped_factor, Frobenius()))(V, q[:, 0], K)[None],
        larger,
    )
    V_blocks = np.array([[1, 0, 1], [0, sp.Rational(1, 4), 0]], object)[:, :n] + sp.Integer(0)
    capped = fitted(RowColumn(sweeps=1, cap=2.0), diagonal_fisher(V_blocks)).coords
    mean = (V_blocks / np.multiply(*capped))[:, 1].mean()
    yield equal("a shipped sweep with a cap of 2 leaves the column of a lesser block at it", mean, sp.Integer(2))
    swept = fitted(RowColumn(sweeps=1), F)
    yield vanishes("the gradient with respect to q vanishes after a shipped sweep", slope(H, swept, F)[0])
    sigma, U, W = positive("sigma", m), rotation(m, "t"), rotation(n, "u")
    F = diagonal_fisher(U * sigma @ W[:, :m].T)
    for k in range(m):
        pair = U[:, k : k + 1] * sp.sqrt(sigma[k]), W[None, :, k] * sp.sqrt(sigma[k])
        yield vanishes(f"singular pair {k + 1} is a fixed point", slope(H, Params(at, pair), F))
    a, b = symbols("a", m, 1), symbols("b", 1, n)  # q and s in the singular bases
    D = np.zeros((m, n), int) + np.pad(np.diag(sigma), ((0, 0), (0, n - m)))
    E = error(H, Params(at, (a, b)), diagonal_fisher(D))
    for k in range(m):
        pair = dict.fromkeys((*a.ravel(), *b.ravel()), 0) | {a[k, 0]: sp.sqrt(sigma[k]), b[0, k]: sp.sqrt(sigma[k])}
        at_pair = np.array(hessian(E, (a, b)).subs(pair))
        yield equal(f"the Hessian at pair {k + 1} has blocks of 2 sigma_k and -2 sigma_l", at_pair, _blocks(sigma, k, m, n))


def _blocks(sigma, k, m, n):
    """The Hessian at the singular pair k, in the singular bases: coordinates of q first, then of s."""
    H = 2 * sigma[k] * np.eye(m + n, dtype=int)
    for other in range(m):
        H[other, m + other] = H[m + other, other] = 2 * sigma[k] if other == k else -2 * sigma[other]
    return H

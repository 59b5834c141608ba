r"""One fixed point gives the S (x) Q, both diagonal, nearest in every divergence of a degree.

Theorem. Let $V = E[G^2]$ (m x n), and let $\phi'' = x^{b-2}$. Among the $L = q s^T$ with positive $q$ (m x 1) and $s$ (n x 1),
the divergence $\sum_{ij} D(V_{ij}, L_{ij})$ is stationary where
$$q = V s^{b-1} / \sum_j s_j^b , \qquad s = V^T q^{b-1} / \sum_i q_i^b .$$
Given the other factor, each half step is the only minimum. $b = 2$ is the half step of RACS, $b = 1$ has the product of the
marginals as fixed point (Adafactor), and $b = 0$ is $s_j = \mathrm{mean}_i V_{ij} / q_i$ (`sinkgd`).

Proof. The derivative with respect to $s_j$ is
$$\sum_i \phi''(q_i s_j) (q_i s_j - V_{ij})\, q_i = s_j^{b-2} ( \sum_i q_i^b ) ( s_j - \hat s_j ) ,$$
where $\hat s$ is the half step. It is negative below $\hat s_j$ and positive above it, so $\hat s_j$ is the only minimum, and
with a bound $s_j \geq l_j$ the larger of $\hat s_j$ and $l_j$ is. The same holds for $q$. In the order $s$, $q$ no half step
increases the divergence.

A fixed point is the global minimum for $0 \leq b \leq 2$. It is the only one up to scale: $x \to x^{b-1}$ multiplies Hilbert's
projective metric by $|b - 1| \leq 1$, and a matrix $V$ without zeros contracts it (Birkhoff, 1957, not decided here). A minimum
exists and is positive, as each half step is, so it is this point. For $b = 1$ one sweep from ones is enough. For $0 \leq b \leq
1$ the divergence is also convex in $\alpha = \log q$ and $\beta = \log s$: its Hessian is
$$\sum_{ij} ( b L_{ij}^b + (1 - b) V_{ij} L_{ij}^{b-1} )\, z_{ij} z_{ij}^T ,$$
where $z_{ij} \in \mathbb{R}^{m + n}$ has ones at $i$ and $m + j$.
"""

import numpy as np
import sympy as sp

from fimlens.divergence import Beta, Frobenius, LogDet, VonNeumann
from fimlens.interpreter.interpret import symbolic
from fimlens.proofs.evaluate import error, excess_in, fitted, slope
from fimlens.proofs.symbols import coordinates, diagonal_fisher, positive
from fimlens.proofs.theorem import equal, vanishes
from fimlens.structure import Params
from fimlens.structures import Marginals, RowColumn
from fimlens.structures.rank_one import nearest_factor

SIZES = ((2, 2), (2, 3))


def steps(m, n):
    V = positive("V", m, n)
    F, at = diagonal_fisher(V), RowColumn().frame(m, n)
    q, s = coordinates(RowColumn(), m, n, "c")
    for b, d in enumerate((LogDet(), VonNeumann(), Frobenius())):
        H, scale = RowColumn(divergence=d), 2 if b == 2 else 1  # Frobenius is 2 Beta(2)
        by_q, by_s = slope(H, Params(at, (q, s)), F, excess_in(d))
        half = symbolic(lambda V, q, d=d: nearest_factor(d, V, q))
        formula = V.T @ q[:, 0] ** (b - 1) / (q**b).sum()
        yield equal(f"{d}: the shipped half step is V^T q^(b-1) / sum q^b", half(V, q[:, 0]), formula)
        apart = scale * s ** (b - 2) * (q**b).sum() * (s - half(V, q[:, 0])[None])
        yield equal(f"{d}: given q, the gradient has the sign of s minus the half step", by_s, apart)
        apart = scale * q ** (b - 2) * (s**b).sum() * (q - half(V.T, s[0])[:, None])
        yield equal(f"{d}: given s, the gradient has the sign of q minus the other half step", by_q, apart)
        swept = fitted(RowColumn(sweeps=1, divergence=d), F)
        yield vanishes(
            f"{d}: the gradient with respect to q vanishes after a shipped sweep", slope(H, swept, F, excess_in(d))[0]
        )
    same = [error(RowColumn(), Params(at, (q, s)), F, excess_in(d)) for d in (Frobenius(), Beta(2.0))]
    yield vanishes("the Frobenius norm is twice the divergence of degree 2", same[0] - 2 * same[1])
    one = fitted(RowColumn(sweeps=1, divergence=VonNeumann()), F)
    yield vanishes("at b = 1 both gradients vanish after a sweep", slope(RowColumn(), one, F, excess_in(VonNeumann())))
    product = symbolic(Marginals().eigenvalues)(fitted(Marginals(), F))
    yield equal("at b = 1 a sweep gives the product of the marginals", symbolic(RowColumn().eigenvalues)(one), product)
    logs, both = [*q.ravel(), *s.ravel()], np.eye(m + n, dtype=int)
    rank_ones = {(i, j): np.outer(both[i] + both[m + j], both[i] + both[m + j]) for i in range(m) for j in range(n)}
    for d, b in ((LogDet(), sp.Integer(0)), (Beta(0.5), sp.Rational(1, 2)), (VonNeumann(), sp.Integer(1))):
        whole = error(RowColumn(), Params(at, (q, s)), F, excess_in(d))
        H = [[x * sp.diff(y * sp.diff(whole, y), x) for y in logs] for x in logs]  # x d/dx is d/d(log x)
        weights = b * (q * s) ** b + (1 - b) * V * (q * s) ** (b - 1)
        yield equal(
            f"{d}: in logarithms the Hessian is a positive sum of matrices z z^T",
            np.array(H),
            sum(weights[place] * rank_one for place, rank_one in rank_ones.items()),
        )

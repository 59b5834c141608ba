r"""Adafactor is the nearest S (x) Q in von Neumann divergence, but not in the Frobenius norm.

Theorem. Let $V = E[G^2]$ (m x n) and let $L = r c^T$ with positive $r$ (m x 1) and $c$ (n x 1). The generalised
Kullback-Leibler divergence
$$D(V, L) = \sum_{ij} V_{ij} \log (V_{ij} / L_{ij}) - V_{ij} + L_{ij}$$
is smallest at the product of the marginals of $V$: row sum times column sum, divided by the total. These are
Adafactor's second moments.

Proof. With $\alpha = \log r$ and $\beta = \log c$, the divergence is, up to a constant, $\sum_{ij} e^{\alpha_i +
\beta_j} - V_{ij} (\alpha_i + \beta_j)$. Its Hessian is $\sum_{ij} L_{ij} z_{ij} z_{ij}^T$, where $z_{ij} \in
\mathbb{R}^{m + n}$ has ones at $i$ and $m + j$. So it is convex, and a point where its gradient vanishes is a global
minimum. The gradient vanishes at the product of the marginals.

This is `rank_one` for $b = 1$, which has a closed form. $D(V, L)$ is the von Neumann divergence of $\mathrm{Diag}(\mathrm{vec}
V)$ from $\tilde F = \mathrm{Diag}(c) \otimes \mathrm{Diag}(r)$, and the product of the marginals is a fixed point of both half
steps.

The gradient of the squared error does not vanish there for every $V$. It does for special ones, such as a $V$ of rank
one.
"""

import numpy as np
import sympy as sp

from fimlens.interpreter.interpret import symbolic
from fimlens.proofs.evaluate import error, fitted, hessian, objective, slope
from fimlens.proofs.symbols import coordinates, diagonal_fisher, positive, symbols
from fimlens.proofs.theorem import differs, equal, vanishes
from fimlens.structure import Params
from fimlens.structures import Marginals
from fimlens.structures.rank_one import nearest_factor

SIZES = ((2, 2), (2, 3))


def steps(m, n):
    H, V = Marginals(), positive("V", m, n)
    F = diagonal_fisher(V)
    nearest = fitted(H, F)
    L = symbolic(H.eigenvalues)(nearest)
    product = np.outer(V.sum(1), V.sum(0)) / V.sum()
    yield equal("the fit is the product of the marginals", L, product)
    r, c = coordinates(H, m, n, "c")
    free = symbolic(H.eigenvalues)(Params(nearest.frame, (r, c)))
    divergence = (free - V * np.vectorize(sp.log)(free)).sum()
    shipped = error(H, Params(nearest.frame, (r, c)), F, objective)
    yield vanishes("the objective is the divergence, up to a constant", sp.expand_log(shipped - divergence))
    yield vanishes("the gradient of the objective vanishes at the fit", slope(H, nearest, F, objective))
    r, c = product[:, :1], product[:1] / product[0, 0]
    half_steps = symbolic(lambda V, q, s: (nearest_factor(H.divergence, V, q), nearest_factor(H.divergence, V.T, s)))
    yield equal("the product is a fixed point of both half steps", half_steps(V, r[:, 0], c[0]), (c[0], r[:, 0]))
    a, b = symbols("a", m), symbols("b", n)  # alpha and beta
    L = np.vectorize(sp.exp)(np.add.outer(a, b))
    convex_form = (L - V * np.add.outer(a, b)).sum()
    both = np.eye(m + n, dtype=int)
    rank_ones = sum(L[i, j] * np.outer(both[i] + both[m + j], both[i] + both[m + j]) for i in range(m) for j in range(n))
    yield equal(
        "in logarithms the Hessian is a positive sum of matrices z z^T", np.array(hessian(convex_form, (a, b))), rank_ones
    )
    yield differs("the gradient of the squared error does not vanish at the fit", slope(H, nearest, F))

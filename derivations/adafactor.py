r"""Adafactor is the nearest S (x) Q in generalised Kullback-Leibler divergence, and not in the Frobenius norm.

With eigenvalues $L = r c^T$, $D(V, L) = \sum_{ij} V_{ij} \log (V_{ij} / L_{ij}) - V_{ij} + L_{ij}$. In $\alpha = \log r$ and
$\beta = \log c$ it is $\sum_{ij} e^{\alpha_i + \beta_j} - V_{ij} (\alpha_i + \beta_j)$ and a constant, convex: its Hessian is
$\sum_{ij} L_{ij} (e_i + e_j)(e_i + e_j)^T$. So where the gradient vanishes is the global minimum: the product of the marginals,
row means times column means over the mean. There the gradient of the squared error does not vanish for every V (it does where
the marginals are a singular pair of V, as where V is of rank one).
"""

import numpy as np
import sympy as sp

from fimlens.interpreter.interpret import symbolic
from fimlens.proofs.evaluate import error, fitted, hessian, objective, slope
from fimlens.proofs.symbols import coordinates, diagonal_fisher, positive, symbols
from fimlens.proofs.theorem import differs, equal, vanishes
from fimlens.structure import Params
from fimlens.structures import Marginals

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
    yield vanishes("the objective is the divergence, up to what V alone makes", sp.expand_log(shipped - divergence))
    yield vanishes("its gradient vanishes at the fit", slope(H, nearest, F, objective))
    a, b = symbols("a", m), symbols("b", n)
    L = np.vectorize(sp.exp)(np.add.outer(a, b))
    convex_form = (L - V * np.add.outer(a, b)).sum()
    both = np.eye(m + n, dtype=int)
    rank_ones = sum(L[i, j] * np.outer(both[i] + both[m + j], both[i] + both[m + j]) for i in range(m) for j in range(n))
    yield equal("in logarithms its Hessian is a sum of positive rank ones", np.array(hessian(convex_form, (a, b))), rank_ones)
    yield differs("the gradient of the squared error does not vanish there", slope(H, nearest, F))

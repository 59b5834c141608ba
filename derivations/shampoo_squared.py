r"""The product of both covariances is the nearest Kronecker product in von Neumann divergence, bases included.

$D(F \Vert \tilde F) = \mathrm{tr}(F \log F - F \log \tilde F - F + \tilde F)$. As
$\log (A \otimes B) = \log A \otimes I + I \otimes \log B$,
$$\mathrm{tr}(F \log (A \otimes B)) = \mathrm{tr}(E[G^T G] \log A) + \mathrm{tr}(E[G G^T] \log B):$$
only the two covariances are seen. In given bases it is Adafactor's problem for the second moments seen there, with Adafactor's
answer; and by a rotation of the bases it is stationary where they diagonalise the covariances. That this is the global minimum,
$E[G^T G] \otimes E[G G^T] / \mathrm{tr} F$, is Klein's inequality, $D \geq 0$, for each factor, which is not decided here. In
the Frobenius norm it is not stationary.
"""

import numpy as np

from fimlens.interpreter.interpret import symbolic
from fimlens.proofs.evaluate import fitted, objective, slope, slope_of_bases
from fimlens.proofs.symbols import any_fisher, coordinates, fisher_in_eigenbases, frame, symbols
from fimlens.proofs.theorem import differs, equal, vanishes
from fimlens.structure import Params
from fimlens.structures import Marginals, Rotated

SIZES = ((2, 2), (2, 3))


def steps(m, n):
    H, F = Rotated(Marginals()), any_fisher(m, n)
    at = frame(H, m, n, turned=(m, n) == (2, 2))
    U, W, _ = at.bases
    V = symbolic(lambda U, W, F: F.second_moment(lambda G: U.T @ G @ W))(U, W, F)
    left, right = symbolic(lambda F: (F.left(), F.right()))(F)
    a, b = symbols("a", m, 1), symbols("b", 1, n)  # logarithms of the factors' eigenvalues
    logs = (left * (U * a[:, 0] @ U.T)).sum() + (right * (W * b[0] @ W.T)).sum()
    where = "in any bases" if (m, n) == (2, 2) else "in the first frame"
    yield equal(f"{where} tr(F log(A (x) B)) is of the covariances alone", [(V * (a + b)).sum()], [logs])
    F = fisher_in_eigenbases(m, n, left=True, right=True)
    nearest = fitted(H, F)
    r, c = (np.diag(C) for C in symbolic(lambda F: (F.left(), F.right()))(F))
    L = symbolic(H.eigenvalues)(nearest)
    yield equal("the fit is E[G^T G] (x) E[GG^T] / tr F", L, np.outer(r, c) / r.sum())
    yield vanishes("the gradient of the divergence vanishes by the eigenvalues", slope(H, nearest, F, objective))
    free = Params(nearest.frame, coordinates(H, m, n, "c"))
    yield vanishes("and by both bases, whatever the eigenvalues", slope_of_bases(H, free, F, objective))
    yield differs("the gradient of the squared error does not vanish", slope(H, nearest, F))

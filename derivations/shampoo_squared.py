r"""The product of both covariances is the nearest Kronecker product in von Neumann divergence.

Theorem. Let $D(F \Vert \tilde F) = \mathrm{tr}(F \log F - F \log \tilde F - F + \tilde F)$. Among the positive definite
$\tilde F = A \otimes B$ with $A$ (n x n) and $B$ (m x m), $D$ is smallest at $\tilde F = E[G^T G] \otimes E[G G^T] /
\mathrm{tr} F$, bases included.

Proof. As $\log (A \otimes B) = \log A \otimes I + I \otimes \log B$,
$$\mathrm{tr}(F \log (A \otimes B)) = \mathrm{tr}(E[G^T G] \log A) + \mathrm{tr}(E[G G^T] \log B) ,$$
so that $D$ depends on $F$ through the two covariances alone. In given bases this is the problem of `adafactor` for the second
moments in those bases, with the same solution. With respect to rotations of the bases, $D$ is stationary if they diagonalise
the covariances. This is `nearest_product` for $b = 1$, where a half step depends on the other factor through its trace alone,
so that one of each is enough. That this is the global minimum follows from Klein's inequality, $D \geq 0$, for each factor; it
is not decided here.

In the Frobenius norm the product is not stationary.
"""

import numpy as np

from fimlens.interpreter.interpret import symbolic
from fimlens.proofs.evaluate import fitted, objective, slope, slope_of_bases
from fimlens.proofs.symbols import any_fisher, coordinates, fisher_in_eigenbases, frame, symbols
from fimlens.proofs.theorem import differs, equal, vanishes
from fimlens.structure import Params
from fimlens.structures import Kronecker, Marginals, Rotated

SIZES = ((2, 2), (2, 3))


def steps(m, n):
    H, F = Rotated(Marginals()), any_fisher(m, n)
    at = frame(H, m, n, turned=(m, n) == (2, 2))
    U, W, _ = at.bases
    V = symbolic(lambda U, W, F: F.second_moment(lambda G: U.T @ G @ W))(U, W, F)
    left, right = symbolic(lambda F: (F.left(), F.right()))(F)
    a, b = symbols("a", m, 1), symbols("b", 1, n)  # logarithms of the factors' eigenvalues
    logs = (left * (U * a[:, 0] @ U.T)).sum() + (right * (W * b[0] @ W.T)).sum()
    where = "in all bases" if (m, n) == (2, 2) else "in the standard bases"
    yield equal(f"{where} tr(F log(A (x) B)) depends on F through the covariances alone", [(V * (a + b)).sum()], [logs])
    F = fisher_in_eigenbases(m, n, left=True, right=True)
    nearest = fitted(H, F)
    r, c = (np.diag(C) for C in symbolic(lambda F: (F.left(), F.right()))(F))
    L = symbolic(H.eigenvalues)(nearest)
    yield equal("the fit is E[G^T G] (x) E[GG^T] / tr F", L, np.outer(r, c) / r.sum())
    H_b = Kronecker(H.divergence)
    yield equal(
        "the nearest product in von Neumann divergence, as fitted in the same bases, is the same",
        symbolic(H_b.eigenvalues)(fitted(H_b, F)),
        L,
    )
    yield vanishes("the gradient of the divergence with respect to the eigenvalues vanishes", slope(H, nearest, F, objective))
    free = Params(nearest.frame, coordinates(H, m, n, "c"))
    yield vanishes(
        "its gradient with respect to both bases vanishes, for all eigenvalues", slope_of_bases(H, free, F, objective)
    )
    yield differs("the gradient of the squared error does not vanish at the fit", slope(H, nearest, F))

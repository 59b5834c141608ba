r"""Column and row normalisation are the nearest S (x) I and I (x) Q, both diagonal ([G], Proposition 2).

Theorem. Among the matrices $S \otimes I$ with $S = \mathrm{Diag}(s)$ (n x n), the nearest to $F$ has $s_j = E \Vert g_j
\Vert^2 / m$. Its update divides the columns by their root mean square norms, $\sqrt{m}\, g_j / \sqrt{E \Vert g_j
\Vert^2}$. Among the matrices $I \otimes Q$ with $Q = \mathrm{Diag}(q)$ (m x m), the nearest has $q_i = E \Vert G_i
\Vert^2 / n$ for the rows $G_i$. Its update divides them in the same way, with the factor $\sqrt{n}$.

Proof. The error is a convex quadratic of $s$, or of $q$, and its gradient vanishes at the means over a column, or a
row, of the diagonal of $F$.
"""

import numpy as np
import sympy as sp

from fimlens.interpreter.interpret import symbolic
from fimlens.proofs.evaluate import dense, error, fitted, slope, update
from fimlens.proofs.symbols import any_fisher, coordinates, positive, symbols
from fimlens.proofs.theorem import convex, equal, vanishes
from fimlens.structure import Params
from fimlens.structures import Columns, Rows

SIZES = ((2, 2), (2, 3), (3, 2))


def steps(m, n):
    F, G = any_fisher(m, n), symbols("G", m, n)
    covariances = {0: symbolic(lambda F: F.right())(F), 1: symbolic(lambda F: F.left())(F)}
    for H, axis, other in ((Columns(), 0, m), (Rows(), 1, n)):
        nearest = fitted(H, F)
        yield equal(
            f"{H}: the fit is the mean square of a row or column", nearest.coords.ravel(), np.diag(covariances[axis]) / other
        )
        yield vanishes(f"{H}: the gradient of the error vanishes at the fit", slope(H, nearest, F))
        c = coordinates(H, m, n, "c")
        yield convex(f"{H}: the error is a convex quadratic of the eigenvalues", error(H, Params(nearest.frame, c), F), c)
        s, eye = np.diag(c.ravel()), np.eye(other, dtype=int)
        product = np.kron(s, eye) if axis == 0 else np.kron(eye, s)
        yield equal(f"{H}: the member is the Kronecker product with the identity", dense(H, Params(nearest.frame, c)), product)
        x = positive("x", *c.shape)
        divided = sp.sqrt(other) * G / x
        yield equal(
            f"{H}: the update is divided by the root mean square norm, with the factor sqrt({'mn'[axis]})",
            update(H, Params(nearest.frame, x**2 / other), G),
            divided,
        )

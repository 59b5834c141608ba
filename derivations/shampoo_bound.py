r"""Shampoo minimises a bound, and not the squared error ([G], Theorem 3.1).

Let $X = R \otimes I$ and $Y = I \otimes L$, which commute, $XY = R \otimes L$, and
$\tilde F = (XY)^{1/2} = R^{1/2} \otimes L^{1/2}$. For any matrices
$$XY - F^2 = (X - F)(Y - F) + (X - F) F + F (Y - F).$$
By the Powers-Stormer inequality, $\Vert A^{1/2} - B^{1/2} \Vert^2 \leq \Vert A - B \Vert_1$, and
$\Vert \cdot \Vert_1 \leq \sqrt{mn}\, \Vert \cdot \Vert$,
$$\Vert \tilde F - F \Vert^2 \leq \sqrt{mn}\, (a b + a f + f b), \quad a = \Vert X - F \Vert,\ b = \Vert Y - F \Vert,\ f = \Vert
F \Vert,$$
which grows with a and with b, so that it is least where each is: $R = E[G^T G]/m$ and $L = E[G G^T]/n$ (whitening). Where F is
a Kronecker product the answer is not F: the bound is not tight, and its minimiser is no minimiser of the squared error.
"""

import numpy as np
import sympy as sp

from fimlens.proofs.evaluate import dense, error, fitted, objective, slope
from fimlens.proofs.symbols import any_fisher, coordinates, diagonal_fisher, frame
from fimlens.proofs.theorem import convex, differs, equal, vanishes
from fimlens.structure import Params
from fimlens.structures import Columns, GeometricMarginals, Rotated, Rows

SIZES = ((2, 2), (2, 3))


def steps(m, n):
    X, Y, A = sp.symbols("X Y F", commutative=False)
    telescoped = sp.expand((X - A) * (Y - A) + (X - A) * A + A * (Y - A) - (X * Y - A * A))
    yield vanishes("the difference of products telescopes, at every size", telescoped)
    H, F = Rotated(GeometricMarginals()), any_fisher(m, n)
    at, (r, c) = frame(H, m, n, turned=(m, n) == (2, 2)), coordinates(H, m, n, "c")
    member, (U, W, _) = Params(at, (r, c)), at.bases
    root, where = dense(H, member), "in any bases" if (m, n) == (2, 2) else "in the first frame"
    yield equal(f"{where} the member is the root of R (x) L", root @ root, np.kron(W * c @ W.T, U * r[:, 0] @ U.T))
    sizes = 2 * sum(F.matrix.ravel() ** 2)
    left = Rotated(Rows(), "L")
    right = Rotated(Columns(), "R")
    gaps = error(left, Params(frame_of(left, at), r), F) + error(right, Params(frame_of(right, at), c), F)
    yield equal(f"{where} the objective is ||I (x) L - F||^2 + ||R (x) I - F||^2", error(H, member, F, objective), gaps - sizes)
    yield vanishes(f"{where} its gradient vanishes at the fit", slope(H, fitted(H, F, at), F, objective))
    yield convex("it is a convex quadratic", error(H, member, F, objective), (r, c))
    V = np.array([[sp.Integer((i + 1) * (j + 1)) for j in range(n)] for i in range(m)])
    product = diagonal_fisher(V)
    yield differs("of F = S (x) Q the answer is not F", dense(H, fitted(H, product)), product.matrix)
    yield differs("and the gradient of the squared error does not vanish there", slope(H, fitted(H, product), product))


def frame_of(H, at):
    """The bases of `at` on the sides that H turns."""
    left, right, inner = at.bases
    bases = at.bases._replace(left=left if "L" in H.sides else None, right=right if "R" in H.sides else None, inner=inner)
    return type(at)(bases, at.shape)

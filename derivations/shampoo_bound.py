r"""Shampoo minimises an upper bound, not the error itself ([G], Theorem 3.1).

Theorem. Let $\tilde F = R^{1/2} \otimes L^{1/2}$ with positive definite $R$ (n x n) and $L$ (m x m), and let $X = R
\otimes I$ and $Y = I \otimes L$. With $a = \Vert X - F \Vert$, $b = \Vert Y - F \Vert$ and $f = \Vert F \Vert$,
$$\Vert \tilde F - F \Vert^2 \leq \sqrt{mn}\, (a b + a f + f b) .$$
The bound is smallest at $R = E[G^T G] / m$ and $L = E[G G^T] / n$, which are Shampoo's factors. They do not minimise
the error.

Proof. $X$ and $Y$ commute and $X Y = R \otimes L = \tilde F^2$. For any matrices,
$$X Y - F^2 = (X - F)(Y - F) + (X - F) F + F (Y - F) .$$
The inequality of Powers and Stormer is $\Vert A^{1/2} - B^{1/2} \Vert^2 \leq \Vert A - B \Vert_1$ for PSD $A$ and $B$.
Together with $\Vert \cdot \Vert_1 \leq \sqrt{mn}\, \Vert \cdot \Vert$ it gives the bound. The bound grows with $a$ and
with $b$, so it is smallest where each of them is; by `whitening` that is at the means above.

Even if $F$ is a Kronecker product, $\tilde F$ is in general not $F$: the bound is not tight, and its minimiser does not
minimise the error.
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
    # Symbols that do not commute stand for matrices of any size.
    X, Y, A = sp.symbols("X Y F", commutative=False)
    telescoped = sp.expand((X - A) * (Y - A) + (X - A) * A + A * (Y - A) - (X * Y - A * A))
    yield vanishes("the difference X Y - F^2 telescopes, at every size", telescoped)
    H, F = Rotated(GeometricMarginals()), any_fisher(m, n)
    at, (r, c) = frame(H, m, n, turned=(m, n) == (2, 2)), coordinates(H, m, n, "c")
    member, (U, W, _) = Params(at, (r, c)), at.bases
    root, where = dense(H, member), "in all bases" if (m, n) == (2, 2) else "in the standard bases"
    yield equal(f"{where} the square of the member is R (x) L", root @ root, np.kron(W * c @ W.T, U * r[:, 0] @ U.T))
    sizes = 2 * sum(F.matrix.ravel() ** 2)
    left = Rotated(Rows(), "L")
    right = Rotated(Columns(), "R")
    gaps = error(left, Params(frame_of(left, at), r), F) + error(right, Params(frame_of(right, at), c), F)
    yield equal(f"{where} the objective is ||I (x) L - F||^2 + ||R (x) I - F||^2", error(H, member, F, objective), gaps - sizes)
    yield vanishes(f"{where} the gradient of the objective vanishes at the fit", slope(H, fitted(H, F, at), F, objective))
    yield convex("the objective is a convex quadratic of the eigenvalues of R and L", error(H, member, F, objective), (r, c))
    V = np.array([[sp.Integer((i + 1) * (j + 1)) for j in range(n)] for i in range(m)])
    product = diagonal_fisher(V)
    yield differs("for F = S (x) Q the fit is not F", dense(H, fitted(H, product)), product.matrix)
    yield differs("the gradient of the squared error does not vanish at that fit", slope(H, fitted(H, product), product))


def frame_of(H, at):
    """A frame of H that takes the bases of `at` on the sides that H rotates."""
    left, right, inner = at.bases
    bases = at.bases._replace(left=left if "L" in H.sides else None, right=right if "R" in H.sides else None, inner=inner)
    return type(at)(bases, at.shape)

r"""Whitening is the nearest I (x) M, and the nearest R (x) I, in every divergence ([G], Proposition 2).

Theorem. Among the matrices $I \otimes M$ with symmetric $M$ (m x m), the nearest to $F$ has $M = E[G G^T] / n$. Its
update is $\sqrt{n}\, E[G G^T]^{-1/2} G$. Among the matrices $R \otimes I$ with symmetric $R$ (n x n), the nearest has
$R = E[G^T G] / m$. Its update is $\sqrt{m}\, G\, E[G^T G]^{-1/2}$.

Proof. The error is a convex quadratic of $M$, and its gradient vanishes at $E[G G^T] / n$; likewise for $R$.

The shipped member is $I \otimes U\, \mathrm{Diag}(q)\, U^T$, where $q$ (length m) is the diagonal of $U^T M U$ for an
orthonormal basis $U$ (m x m). It is the minimum if $U$ diagonalises $M$. The eigenbasis is also the best basis: of all
bases it has the largest $\Vert q \Vert^2$ (Schur and Horn, not decided here). So the claim of the structure is EXACT.

The same matrices are nearest in every spectral Bregman divergence. In a given basis the means $q$ are nearest (`projections`),
and they leave $\mathrm{tr}\,\phi(F) - n \sum_i \phi(q_i)$. As $q$ is the diagonal of $M$ in the basis, it is majorised by the
eigenvalues of $M$ (Schur and Horn), so for convex $\phi$ the eigenbasis leaves the least. The steps decide that a gap for a
function $\phi$ known by its name alone is stationary there.
"""

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp

from fimlens.interpreter.interpret import symbolic
from fimlens.proofs.evaluate import dense, excess_in, fitted, slope_of_bases, update
from fimlens.proofs.symbols import AnyDivergence, any_fisher, fisher_in_eigenbases, frame, positive, symbols, symmetric
from fimlens.proofs.theorem import convex, equal, vanishes
from fimlens.structure import Params
from fimlens.structures import Columns, Rotated, Rows

SIZES = ((2, 2), (2, 3), (3, 2))


def steps(m, n):
    F, G = any_fisher(m, n), symbols("G", m, n)
    eye = {k: np.eye(k, dtype=int) for k in (m, n)}

    def left(M, F):
        return jnp.sum((jnp.kron(jnp.eye(n), M) - F.dense()) ** 2)

    def right(R, F):
        return jnp.sum((jnp.kron(R, jnp.eye(m)) - F.dense()) ** 2)

    sides = (
        (Rotated(Rows(), "L"), left, symbolic(lambda F: F.left())(F) / n, m, n, lambda M: np.kron(eye[n], M)),
        (Rotated(Columns(), "R"), right, symbolic(lambda F: F.right())(F) / m, n, m, lambda R: np.kron(R, eye[m])),
    )
    for H, error, best, size, other, lift in sides:
        yield vanishes(f"{H}: the gradient with respect to the matrix vanishes at the mean", symbolic(jax.grad(error))(best, F))
        M = symmetric("M", size)
        yield convex(f"{H}: the error is a convex quadratic of the matrix", symbolic(error)(M, F), M)
        at = frame(H, m, n)
        U = at.bases.left if H.sides == "L" else at.bases.right
        q = fitted(H, F, at).coords.ravel()
        yield equal(f"{H}: in every basis the shipped eigenvalues are the diagonal of U^T M U", q, np.diag(U.T @ best @ U))
        in_eigenbasis = fisher_in_eigenbases(m, n, left=H.sides == "L", right=H.sides == "R")
        yield vanishes(
            f"{H}: for every phi the gradient with respect to the basis vanishes in the eigenbasis",
            slope_of_bases(H, fitted(H, in_eigenbasis), in_eigenbasis, excess_in(AnyDivergence())),
        )
        # Eigenvalues that are squares have rational roots.
        x = positive("x", size)
        member = Params(at, (x**2 / other).reshape(fitted(H, F).coords.shape))
        yield equal(
            f"{H}: the member is the Kronecker product with the identity", dense(H, member), lift(U * x**2 @ U.T / other)
        )
        root = U / x @ U.T
        divided = sp.sqrt(other) * (root @ G if H.sides == "L" else G @ root)
        yield equal(
            f"{H}: the update is whitening, with the factor sqrt({'n' if H.sides == 'L' else 'm'})",
            update(H, member, G),
            divided,
        )

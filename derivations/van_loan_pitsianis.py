r"""The nearest Kronecker product is a leading singular pair (Van Loan and Pitsianis, 1993).

Theorem. Let $\mathcal{R}$ map a symmetric $A$ (n x n) to $E[G A G^T]$ (m x m). Its adjoint $\mathcal{R}^*$ maps a
symmetric $B$ (m x m) to $E[G^T B G]$ (n x n). The nearest $A \otimes B$ to $F$ is given by the leading singular pair of
$\mathcal{R}$, and $A$ and $B$ can be chosen PSD.

Proof. The identities
$$\langle F, A \otimes B \rangle = \langle \mathcal{R}(A), B \rangle = \langle A, \mathcal{R}^*(B) \rangle$$
give
$$\Vert A \otimes B - F \Vert^2 = \Vert A \Vert^2 \Vert B \Vert^2 - 2 \langle \mathcal{R}(A), B \rangle + \Vert F \Vert^2 ,$$
which is, up to a constant, the error of an approximation of rank one to $\mathcal{R}$. Given $A$ it is a convex
quadratic of $B$, smallest at $\mathcal{R}(A) / \Vert A \Vert^2$: a half step of a power iteration. The global minimum
is the leading singular pair (Eckart, Young and Mirsky). Both maps keep the cone of PSD matrices, so a leading pair lies
in it (Krein and Rutman), and the power iteration from the identity reaches it. The theorems named are not decided here.
"""

import jax
import jax.numpy as jnp
import numpy as np

from fimlens.interpreter.interpret import symbolic
from fimlens.proofs.evaluate import hessian, multiplicities
from fimlens.proofs.symbols import any_fisher, frame, one_gradient, positive, symbols, symmetric
from fimlens.proofs.theorem import equal, vanishes
from fimlens.structure import Frame, Params
from fimlens.structures import Kronecker

SIZES = ((2, 2), (2, 3))


def steps(m, n):
    F, A, B = any_fisher(m, n), symmetric("A", n), symmetric("B", m)
    forward, backward = symbolic(lambda F, A: F.left(A))(F, A), symbolic(lambda F, B: F.right(B))(F, B)
    product = symbolic(jnp.kron)(A, B)
    yield equal("<F, A (x) B> = <R(A), B>", [(F.matrix * product).sum()], [(forward * B).sum()])
    yield equal("<R(A), B> = <A, R*(B)>", [(forward * B).sum()], [(backward * A).sum()])

    def error(B, A, F):
        return jnp.sum((jnp.kron(A, B) - F.dense()) ** 2)

    yield vanishes(
        "given A, the gradient with respect to B vanishes at R(A)/||A||^2",
        symbolic(jax.grad(error))(forward / (A**2).sum(), A, F),
    )
    curvature = 2 * (A**2).sum() * np.diag(multiplicities(B))
    yield equal(
        "given A, the Hessian with respect to B is 2 ||A||^2, so positive definite",
        np.array(hessian(symbolic(error)(B, A, F), B)),
        curvature,
    )
    # A PSD matrix is a sum of matrices v v^T and F a mean over single gradients, so one of each is enough for the cone.
    G, v = symbols("G", m, n), symbols("v", n)
    one = symbolic(lambda F, A: F.left(A))(one_gradient(G), np.outer(v, v))
    yield equal("for one gradient R(v v^T) = (G v)(G v)^T, so R keeps the PSD cone", one, np.outer(G @ v, G @ v))
    w = symbols("w", m)
    other = symbolic(lambda F, B: F.right(B))(one_gradient(G), np.outer(w, w))
    yield equal("for one gradient R*(w w^T) = (G^T w)(G^T w)^T, so R* keeps it too", other, np.outer(G.T @ w, G.T @ w))
    H = Kronecker()
    at = frame(H, m, n)
    (U, _, W, _), (b, a) = at.bases, (positive("b", m), positive("a", n))
    unit = Frame(at.bases._replace(b=b, a=a), (m, n))
    rows, columns = symbolic(lambda F, at: H.stats(F, Params(at, None)).spectrum)(F, unit)
    yield equal(
        "the shipped statistics are R(A) / ||A||^2 and R*(B) / ||B||^2",
        [rows * (a**2).sum(), columns * (b**2).sum()],
        symbolic(lambda F, A, B: (F.left(A), F.right(B)))(F, W * a @ W.T, U * b @ U.T),
    )

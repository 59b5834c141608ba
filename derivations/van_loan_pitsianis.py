r"""The nearest Kronecker product is the leading singular pair of the rearranged Fisher (Van Loan and Pitsianis, 1993).

Let $\mathcal{R}$ take A to $E[G A G^T]$; it is linear, and its adjoint takes B to $E[G^T B G]$:
$$\langle F, A \otimes B \rangle = \langle \mathcal{R}(A), B \rangle = \langle A, \mathcal{R}^*(B) \rangle .$$
Hence
$$\Vert A \otimes B - F \Vert^2 = \Vert A \Vert^2 \Vert B \Vert^2 - 2 \langle \mathcal{R}(A), B \rangle + \Vert F \Vert^2$$
is the error of a rank one matrix for $\mathcal{R}$. For a given A it is a convex quadratic of B, least at
$\mathcal{R}(A)/\Vert A \Vert^2$; the global minimum is the leading singular pair (Eckart, Young, Mirsky). Both maps keep the
cone of PSD matrices, so that a leading pair lies in it (Krein and Rutman), where power iteration from the identity ends.
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
    yield equal("and = <A, R*(B)>", [(forward * B).sum()], [(backward * A).sum()])

    def error(B, A, F):
        return jnp.sum((jnp.kron(A, B) - F.dense()) ** 2)

    yield vanishes(
        "given A, the gradient by B vanishes at R(A)/||A||^2", symbolic(jax.grad(error))(forward / (A**2).sum(), A, F)
    )
    curvature = 2 * (A**2).sum() * np.diag(multiplicities(B))
    yield equal("its Hessian is 2 ||A||^2 and positive definite", np.array(hessian(symbolic(error)(B, A, F), B)), curvature)
    G, v = symbols("G", m, n), symbols("v", n)
    one = symbolic(lambda F, A: F.left(A))(one_gradient(G), np.outer(v, v))
    yield equal("of one gradient R(v v^T) is (G v)(G v)^T, so R keeps the cone", one, np.outer(G @ v, G @ v))
    w = symbols("w", m)
    other = symbolic(lambda F, B: F.right(B))(one_gradient(G), np.outer(w, w))
    yield equal("and R*(w w^T) is (G^T w)(G^T w)^T", other, np.outer(G.T @ w, G.T @ w))
    H = Kronecker()
    at = frame(H, m, n)
    (U, _, W, _), (b, a) = at.bases, (positive("b", m), positive("a", n))
    unit = Frame(at.bases._replace(b=b, a=a), (m, n))
    rows, columns = symbolic(lambda F, at: H.stats(F, Params(at, None)).spectrum)(F, unit)
    yield equal(
        "the shipped statistics are R(A) and R*(B)",
        [rows, columns],
        symbolic(lambda F, A, B: (F.left(A), F.right(B)))(F, W * a @ W.T, U * b @ U.T),
    )

r"""The nearest S (x) M with diagonal S is the limit of two half steps ([G], Theorem D.1).

Theorem. Let $S = \mathrm{Diag}(s)$ (n x n) be diagonal and $M$ (m x m) symmetric. Given $M$, the best $S$ has $s_j =
(E[G^T M G])_{jj} / \Vert M \Vert^2$; given $S$, the best $M$ is $E[G S G^T] / \Vert S \Vert^2$. The limit of
their alternation is the nearest $S \otimes M$, which can be chosen PSD.

Proof. Given $M$ the error is a convex quadratic of $s$, and given $S$ it is one of $M$; the gradient vanishes at the
two formulas. They are the half steps of the power iteration in `van_loan_pitsianis`, with $A$ restricted to diagonal
matrices. So the limit is the global minimum (Eckart, Young and Mirsky) and can be chosen PSD (Krein and Rutman). These
theorems are not decided here.
"""

import jax
import jax.numpy as jnp
import numpy as np

from fimlens.interpreter.interpret import symbolic
from fimlens.proofs.evaluate import dense, hessian, multiplicities
from fimlens.proofs.symbols import any_fisher, frame, positive, symmetric
from fimlens.proofs.theorem import equal, vanishes
from fimlens.structure import Frame, Params, Statistics
from fimlens.structures import DiagonalKronecker
from fimlens.structures.product import Weighted

SIZES = ((2, 2), (2, 3))


def steps(m, n):
    H, F, s, M = DiagonalKronecker(), any_fisher(m, n), positive("s", n), symmetric("M", m)

    def error(s, M, F):
        return jnp.sum((jnp.kron(jnp.diag(s), M) - F.dense()) ** 2)

    at = frame(H, m, n)
    U, b = at.bases.left, positive("b", m)
    weighted = symbolic(lambda F, at: H.stats(F, Params(at, None)).spectrum)
    rows, columns = weighted(F, Frame(at.bases._replace(b=b, a=s), (m, n)))
    M_in_basis = U * b @ U.T
    yield vanishes(
        "given M, the gradient with respect to s vanishes at the shipped statistics",
        symbolic(jax.grad(error))(columns, M_in_basis, F),
    )
    yield vanishes(
        "given S, the gradient with respect to M vanishes at the shipped statistics",
        symbolic(jax.grad(error, 1))(s, rows, F),
    )
    half = symbolic(error)(s, M, F)
    by_s, by_M = (np.array(hessian(half, x)) for x in (s, M))
    yield equal("given M, the Hessian with respect to s is 2 ||M||^2 I", by_s, 2 * (M**2).sum() * np.eye(n, dtype=int))
    yield equal(
        "given S, the Hessian with respect to M is 2 ||S||^2 for each entry",
        by_M,
        2 * (s**2).sum() * np.diag(multiplicities(M)),
    )
    r, v = positive("r", m), positive("v", n)
    scaled = Frame(frame(H, m, n, turned=False).bases._replace(b=2 * r), (m, n))
    fitted = symbolic(lambda M, v, at: H.fit(Statistics(None, Weighted(M, v)), at))(np.diag(r), v, scaled)
    yield equal(
        "the shipped fit is M and the best S given M, where v is the best given 2 M",
        fitted.coords,
        (r[:, None], 2 * v[None]),
    )
    c, d = positive("c", m, 1), positive("d", 1, n)
    product = np.kron(np.diag(d[0]), U * c[:, 0] @ U.T)
    yield equal("the member is S (x) M", dense(H, Params(at, (c, d))), product)

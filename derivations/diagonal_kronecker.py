r"""S (x) M, S diagonal, is fitted by two half-steps ([G], Theorem D.1).

$$s_j = (E[G^T M G])_{jj} / \Vert M \Vert^2, \qquad M = E[G S G^T] / \Vert S \Vert^2 .$$
For a given M the error is a convex quadratic of s, for a given S one of M, and each line is its minimum. Both are the halves of
a power iteration on the rearranged F with A restricted to diagonal matrices, so that the limit is the global minimum (Eckart,
Young, Mirsky) and can be taken PSD (Krein and Rutman), as in the theorem of Van Loan and Pitsianis.
"""

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp

from fimlens.interpreter.interpret import symbolic
from fimlens.proofs.evaluate import dense, hessian, multiplicities, slope
from fimlens.proofs.symbols import any_fisher, frame, positive, symmetric
from fimlens.proofs.theorem import equal, vanishes
from fimlens.structure import Frame, Params
from fimlens.structures import DiagonalKronecker

SIZES = ((2, 2), (2, 3))


def steps(m, n):
    H, F, s, M = DiagonalKronecker(), any_fisher(m, n), positive("s", n), symmetric("M", m)

    def error(s, M, F):
        return jnp.sum((jnp.kron(jnp.diag(s), M) - F.dense()) ** 2)

    at = frame(H, m, n)
    U, b = at.bases.left, positive("b", m)
    rows, columns = symbolic(H.stats)(F, Frame(at.bases._replace(b=b, a=s), (m, n)))
    of_M = U * b @ U.T
    best = columns / (b**2).sum()
    yield vanishes(
        "given M, the gradient by s vanishes at the shipped statistics over ||M||^2", symbolic(jax.grad(error))(best, of_M, F)
    )
    best = rows / (s**2).sum()
    yield vanishes("given S, the gradient by M vanishes at theirs over ||S||^2", symbolic(jax.grad(error, 1))(s, best, F))
    half = symbolic(error)(s, M, F)
    by_s, by_M = (np.array(hessian(half, x)) for x in (s, M))
    yield equal("the Hessian by s is 2 ||M||^2 I", by_s, 2 * (M**2).sum() * np.eye(n, dtype=int))
    yield equal("the Hessian by M is 2 ||S||^2, once an entry", by_M, 2 * (s**2).sum() * np.diag(multiplicities(M)))
    still = frame(H, m, n, turned=False)
    first = symbolic(H.stats)(F, Frame(still.bases._replace(a=s), (m, n))).left.diagonal()
    norm = sp.sqrt((first**2).sum())
    settled = Frame(still.bases._replace(b=first / norm, a=s), (m, n))  # B as one power step from S leaves it
    member = symbolic(lambda F, at: H.fit(H.stats(F, Params(at, None)), at))(F, settled)
    yield vanishes("of the shipped fit, so settled, the gradient by s vanishes", slope(H, member, F)[1])
    c, d = positive("c", m, 1), positive("d", 1, n)
    product = np.kron(np.diag(d[0]), U * c[:, 0] @ U.T)
    yield equal("the member is S (x) M", dense(H, Params(at, (c, d))), product)

r"""The nearest block-diagonal matrix has the covariance of each column as its block.

Theorem. Among the matrices with symmetric blocks $M_1, \ldots, M_n$ (m x m) on the diagonal, the nearest to $F$ has
$M_j = E[g_j g_j^T]$. Its update has the columns $M_j^{-1/2} g_j$. With a single block, the whole matrix, the nearest is
$F$ itself.

Proof. The error is a convex quadratic of the blocks, and its gradient vanishes at the covariances. The shipped member
writes each block in an orthonormal basis $U_j$ (m x m) of its own, with the diagonal of $U_j^T M_j U_j$ as eigenvalues.
It is the minimum if $U_j$ diagonalises $M_j$.
"""

import jax
import jax.numpy as jnp
import numpy as np

from fimlens.interpreter.interpret import symbolic
from fimlens.proofs.evaluate import dense, fitted, update
from fimlens.proofs.symbols import any_fisher, frame, positive, rotation, symbols, symmetric
from fimlens.proofs.theorem import convex, equal, vanishes
from fimlens.structure import Params
from fimlens.structures import Blocks, Dense

SIZES = ((2, 2), (2, 3))


def steps(m, n):
    H, F, G = Blocks(Dense(), columns=n), any_fisher(m, n), symbols("G", m, n)

    def error(M, F):
        return jnp.sum((jax.scipy.linalg.block_diag(*M) - F.dense()) ** 2)

    best = np.stack([F.matrix[j * m : (j + 1) * m, j * m : (j + 1) * m] for j in range(n)])
    yield vanishes("the gradient with respect to all blocks vanishes at E[g_j g_j^T]", symbolic(jax.grad(error))(best, F))
    M = np.stack([symmetric("MNP"[j], m) for j in range(n)])
    yield convex("the error is a convex quadratic of the blocks", symbolic(error)(M, F), M)
    U = np.stack([rotation(m, "tuw"[j]) for j in range(n)])
    standard = frame(H, m, n, turned=False)
    at = jax.tree.map(lambda old: U if old.shape == U.shape else old, standard)
    diagonals = [np.diag(U[j].T @ best[j] @ U[j]) for j in range(n)]
    yield equal(
        "in all bases the shipped eigenvalues are the diagonals of U_j^T M_j U_j",
        fitted(H, F, at).coords[:, :, 0],
        np.stack(diagonals),
    )
    x = positive("x", n, m)
    member = Params(at, x[:, :, None] ** 2)
    blocks = [U[j] * x[j] ** 2 @ U[j].T for j in range(n)]
    yield equal("the member has the blocks M_j", dense(H, member), symbolic(jax.scipy.linalg.block_diag)(*blocks))
    roots = np.stack([(U[j] / x[j] @ U[j].T) @ G[:, j] for j in range(n)], 1)
    yield equal("the update has the columns M_j^(-1/2) g_j", update(H, member, G), roots)

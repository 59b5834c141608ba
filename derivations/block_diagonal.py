r"""Blocks: the nearest DiagB(M_1, ..., M_n) takes each column's own covariance, and one block is F itself.

Over symmetric $M_j$ the squared error is a convex quadratic, least at $M_j = E[g_j g_j^T]$. The shipped member writes each
block in a basis $U_j$ of its own, with the diagonal of $U_j^T M_j U_j$ as eigenvalues: it is that minimum where $U_j$
diagonalises $M_j$, and its update is then $M_j^{-1/2} g_j$.
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
    yield vanishes("the gradient over all blocks vanishes at E[g_j g_j^T]", symbolic(jax.grad(error))(best, F))
    M = np.stack([symmetric("MNP"[j], m) for j in range(n)])
    yield convex("the error is a convex quadratic of them", symbolic(error)(M, F), M)
    U = np.stack([rotation(m, "tuw"[j]) for j in range(n)])
    still = frame(H, m, n, turned=False)
    at = jax.tree.map(lambda old: U if old.shape == U.shape else old, still)
    seen = [np.diag(U[j].T @ best[j] @ U[j]) for j in range(n)]
    yield equal(
        "in any bases the shipped eigenvalues are the diagonals of U_j^T M_j U_j",
        fitted(H, F, at).coords[:, :, 0],
        np.stack(seen),
    )
    x = positive("x", n, m)
    member = Params(at, x[:, :, None] ** 2)
    blocks = [U[j] * x[j] ** 2 @ U[j].T for j in range(n)]
    yield equal("the member is those blocks", dense(H, member), symbolic(jax.scipy.linalg.block_diag)(*blocks))
    roots = np.stack([(U[j] / x[j] @ U[j].T) @ G[:, j] for j in range(n)], 1)
    yield equal("the update is M_j^(-1/2) g_j", update(H, member, G), roots)

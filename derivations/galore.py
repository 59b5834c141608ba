r"""GaLore is Alice's structure without the complement of the subspace.

Theorem. Let $U$ (m x r) be orthonormal and $\tilde F = (I \otimes U)\, \mathrm{Diag}(\mathrm{vec} L)\, (I \otimes U)^T$
with eigenvalues $L$ (r x n), of rank $r n$. Given $U$, the nearest to $F$ has $L = E[(U^T G)^2]$. Its update, on the
range of $\tilde F$, is $U (U^T G / \sqrt{L})$: Adam in the subspace.

Proof. The error is a convex quadratic of $L$, and its gradient vanishes at the second moments in the subspace. Outside
the range, $\tilde F^{-1/2}$ is taken as a pseudo-inverse. The steps decide this for every unit vector $U$ ($r = 1$).
"""

import numpy as np

from fimlens.interpreter.interpret import symbolic
from fimlens.proofs.evaluate import dense, error, fitted, slope, update
from fimlens.proofs.symbols import any_fisher, coordinates, frame, symbols
from fimlens.proofs.theorem import convex, equal, vanishes
from fimlens.structure import Params
from fimlens.structures import Diagonal, Drop, LowRank

SIZES = ((2, 2), (2, 3))


def steps(m, n):
    H, F, G = LowRank(Diagonal(), 1, Drop()), any_fisher(m, n), symbols("G", m, n)
    at, c = frame(H, m, n), coordinates(H, m, n, "c")
    U = at.bases.left
    lift = np.kron(np.eye(n, dtype=int), U)
    yield equal("the member is (I (x) U) Diag(vec L) (I (x) U)^T", dense(H, Params(at, c)), lift * c.lead.T.ravel() @ lift.T)
    seen = symbolic(lambda U, F: F.second_moment(lambda G: U.T @ G))(U, F)
    yield equal("the fit is E[(U^T G)^2]", fitted(H, F, at).coords.lead, seen)
    yield vanishes("the gradient of the error vanishes at the fit", slope(H, fitted(H, F, at), F))
    yield convex(
        "the error is a convex quadratic of L (in the standard basis; the norm is the same in every basis)",
        error(H, Params(frame(H, m, n, turned=False), c), F),
        c,
    )
    squares = c._replace(lead=c.lead**2)
    yield equal("the update is U (U^T G / sqrt L)", update(H, Params(at, squares), G), U @ (U.T @ G / c.lead))

r"""Alice's low-rank part and its compensation are the nearest eigenvalues of one structure, whatever the subspace.

Take $Q = (U, U_c)$ orthonormal and eigenvalues L free in the first r rows and equal to each other, column by column, in the
rest. Then
$$\tilde F = (I \otimes Q)\, \mathrm{Diag}(\mathrm{vec} L)\, (I \otimes Q)^T$$
does not depend on $U_c$, so that no basis of the complement need be chosen; its nearest eigenvalues are $E[(U^T G)^2]$ on top
and means below, a convex quadratic's one minimum; and its update is $U (D - \sigma\, \mathrm{Diag}(d)) + G\, \mathrm{Diag}(d)$
with $\sigma = U^T G$, D the inner update of $\sigma$ and $d_j = \sqrt{(m - r)/p_j}$: two products of a thin matrix. Proved for
every unit vector U (r = 1).
"""

import numpy as np

from fimlens.interpreter.interpret import symbolic
from fimlens.proofs.evaluate import dense, error, fitted, slope, update
from fimlens.proofs.symbols import any_fisher, coordinates, frame, rotation, symbols
from fimlens.proofs.theorem import convex, equal, vanishes
from fimlens.structure import Frame, Params
from fimlens.structures import Diagonal, LowRank
from fimlens.transforms.compensation import Seen, nearest

SIZES = ((2, 2), (2, 3))


def steps(m, n):
    H, F, G = LowRank(Diagonal(), 1), any_fisher(m, n), symbols("G", m, n)
    Q, still, c = rotation(m, "t"), frame(H, m, n, turned=False), coordinates(H, m, n, "c")
    at = Frame(still.bases._replace(lead=Q[:, :1]), (m, n))
    L = np.concatenate([c.lead, np.repeat(c.tail, m - 1, 0)])
    B = np.kron(np.eye(n, dtype=int), Q)
    yield equal("the member is one matrix, diagonal in (U, U_c), for every U_c", dense(H, Params(at, c)), B * L.T.ravel() @ B.T)
    yield vanishes("for every U the gradient by all eigenvalues vanishes at the fit", slope(H, fitted(H, F, at), F))
    yield convex(
        "the error is a convex quadratic of them (in the first frame; norms do not know bases)",
        error(H, Params(still, c), F),
        c,
    )
    squares = c._replace(lead=c.lead**2, tail=c.tail**2)
    sigma = Q[:, :1].T @ G
    D = sigma / c.lead
    d = symbolic(lambda value: nearest(Seen(value, value, value, value)))(squares.tail[None])[0]
    expression = Q[:, :1] @ (D - sigma * d) + G * d
    yield equal("its update is U (D - sigma Diag d) + G Diag d", update(H, Params(at, squares), G), expression)

r"""GaLore is the structure of Alice with nothing outside the subspace.

$\tilde F = (I \otimes U)\, \mathrm{Diag}(\mathrm{vec} L)\, (I \otimes U)^T$, of rank r n: given U the nearest L is
$E[(U^T G)^2]$, and square-root natural gradient descent on the range (a pseudo-inverse) is $U (U^T G / \sqrt{L})$, which is
Adam in the subspace.
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
    U = at.bases.lead
    lift = np.kron(np.eye(n, dtype=int), U)
    yield equal("the member is lifted from the subspace", dense(H, Params(at, c)), lift * c.lead.T.ravel() @ lift.T)
    seen = symbolic(lambda U, F: F.second_moment(lambda G: U.T @ G))(U, F)
    yield equal("the fit is Adam's in the subspace", fitted(H, F, at).coords.lead, seen)
    yield vanishes("there the gradient vanishes", slope(H, fitted(H, F, at), F))
    yield convex(
        "of a convex quadratic (in the first frame; norms do not know bases)",
        error(H, Params(frame(H, m, n, turned=False), c), F),
        c,
    )
    squares = c._replace(lead=c.lead**2)
    yield equal("the update is U (U^T G / sqrt L)", update(H, Params(at, squares), G), U @ (U.T @ G / c.lead))

r"""One-sided SOAP solves its problem in two steps, and its basis is then not the best ([G], Theorem 3.2).

The family is $\mathrm{DiagB}(U D_1 U^T, \ldots, U D_n U^T)$. Step one takes all $D_j$ equal: the nearest $I \otimes U D U^T$
has U the eigenvectors of $E[G G^T]$, and the gradient by the basis vanishes there. Step two fixes U: by the split of the error
the best $D$ is $E[(U^T G)^2]$. Once D is free the eigenbasis is no longer stationary: with $V_{ij}$ the second moments, the
gradient by a rotation of rows i and k is proportional to $\sum_j F_{ij,kj} (V_{ij} - V_{kj})$, while $\sum_j F_{ij,kj} = 0$ is
all that the eigenbasis grants. Where V does not depend on j, or n = 1, both say the same.
"""

from fimlens.interpreter.interpret import symbolic
from fimlens.proofs.evaluate import error, fitted, slope, slope_of_bases
from fimlens.proofs.symbols import any_fisher, coordinates, fisher_in_eigenbases, frame
from fimlens.proofs.theorem import convex, differs, equal, vanishes
from fimlens.structure import Params
from fimlens.structures import Diagonal, Rotated, Rows

SIZES = ((2, 2), (2, 3))


def steps(m, n):
    H, tied, F = Rotated(Diagonal(), "L"), Rotated(Rows(), "L"), any_fisher(m, n)
    at = frame(H, m, n)
    seen = symbolic(lambda U, F: F.second_moment(lambda G: U.T @ G))(at.bases.left, F)
    yield equal("in any basis the fit is E[(U^T G)^2]", fitted(H, F, at).coords, seen)
    yield vanishes("there the gradient by D vanishes", slope(H, fitted(H, F, at), F))
    still, c = frame(H, m, n, turned=False), coordinates(H, m, n, "c")
    yield convex(
        "the error is a convex quadratic of D (in the first frame; norms do not know bases)", error(H, Params(still, c), F), c
    )
    F = fisher_in_eigenbases(m, n, left=True)
    yield vanishes(
        "in the eigenbasis the gradient by U vanishes where all D are equal", slope_of_bases(tied, fitted(tied, F), F)
    )
    yield differs("where D is free it does not", slope_of_bases(H, fitted(H, F), F).bases.left)

r"""SOAP's eigenvalues are the best in its basis, and its basis is not the best ([G], Theorem 3.3).

The family is $(U_R \otimes U_L)\, D\, (U_R \otimes U_L)^T$. Its bases solve Shampoo's problem: they are the eigenvectors of
$E[G G^T]$ and $E[G^T G]$, stationary for the nearest $I \otimes M$ and $R \otimes I$. Given them, $D = E[(U_L^T G U_R)^2]$ is
the global minimum by the split of the error. In the squared error of the whole family the bases are not stationary, on either
side.
"""

from fimlens.interpreter.interpret import symbolic
from fimlens.proofs.evaluate import error, fitted, slope, slope_of_bases
from fimlens.proofs.symbols import any_fisher, coordinates, fisher_in_eigenbases, frame
from fimlens.proofs.theorem import convex, differs, equal, vanishes
from fimlens.structure import Params
from fimlens.structures import Columns, Diagonal, Rotated, Rows

SIZES = ((2, 3), (2, 2))


def steps(m, n):
    H, F = Rotated(Diagonal()), any_fisher(m, n)
    at = frame(H, m, n, turned=(m, n) == (2, 2))
    seen = symbolic(lambda U, W, F: F.second_moment(lambda G: U.T @ G @ W))(at.bases.left, at.bases.right, F)
    where = "in any bases" if (m, n) == (2, 2) else "in the first frame"
    yield equal(f"{where} the fit is E[(U_L^T G U_R)^2]", fitted(H, F, at).coords, seen)
    yield vanishes(f"{where} the gradient by D vanishes there", slope(H, fitted(H, F, at), F))
    still, c = frame(H, m, n, turned=False), coordinates(H, m, n, "c")
    yield convex(
        "the error is a convex quadratic of D (in the first frame; norms do not know bases)", error(H, Params(still, c), F), c
    )
    F = fisher_in_eigenbases(m, n, left=True, right=True)
    for tied in (Rotated(Rows(), "L"), Rotated(Columns(), "R")):
        yield vanishes(f"the eigenbasis is stationary for {tied}", slope_of_bases(tied, fitted(tied, F), F))
    bases = slope_of_bases(H, fitted(H, F), F).bases
    yield differs("of SOAP's error the gradient by U_L does not vanish", bases.left)
    yield differs("nor that by U_R", bases.right)

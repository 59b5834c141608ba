r"""SOAP is exact in its bases, but the bases are not the best ([G], Theorem 3.3).

Theorem. Consider the matrices $(U_R \otimes U_L)\, \mathrm{Diag}(\mathrm{vec} D)\, (U_R \otimes U_L)^T$ with
orthonormal $U_L$ (m x m) and $U_R$ (n x n), and free eigenvalues $D$ (m x n). SOAP takes the eigenvectors of $E[G G^T]$
and of $E[G^T G]$ as bases; they solve Shampoo's problem. Given them, the best eigenvalues are $D = E[(U_L^T G U_R)^2]$.
The bases are not the best for free $D$.

Proof. By `whitening` the bases are stationary for the nearest $I \otimes M$ and for the nearest $R \otimes I$. By
`error_split` the eigenvalues are the global minimum in the given bases. In general the gradient of the error
with respect to either basis does not vanish.
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
    # With a rotation of size 3, the gradient is too long to write out.
    at = frame(H, m, n, turned=(m, n) == (2, 2))
    V = symbolic(lambda U, W, F: F.second_moment(lambda G: U.T @ G @ W))(at.bases.left, at.bases.right, F)
    where = "in all bases" if (m, n) == (2, 2) else "in the standard bases"
    yield equal(f"{where} the fit is E[(U_L^T G U_R)^2]", fitted(H, F, at).coords, V)
    yield vanishes(f"{where} the gradient with respect to D vanishes at the fit", slope(H, fitted(H, F, at), F))
    standard, c = frame(H, m, n, turned=False), coordinates(H, m, n, "c")
    yield convex(
        "the error is a convex quadratic of D (in the standard basis; the norm is the same in every basis)",
        error(H, Params(standard, c), F),
        c,
    )
    # The error is the same in every basis, so F may be written in the eigenbases, which are then the standard ones.
    F = fisher_in_eigenbases(m, n, left=True, right=True)
    for tied in (Rotated(Rows(), "L"), Rotated(Columns(), "R")):
        yield vanishes(f"the eigenbasis is stationary for {tied}", slope_of_bases(tied, fitted(tied, F), F))
    bases = slope_of_bases(H, fitted(H, F), F).bases
    yield differs("the gradient of SOAP's error with respect to U_L does not vanish", bases.left)
    yield differs("the gradient of SOAP's error with respect to U_R does not vanish", bases.right)

r"""One-sided SOAP is exact in its basis, but the basis is not the best ([G], Theorem 3.2).

Theorem. Consider the matrices with blocks $U D_1 U^T, \ldots, U D_n U^T$ on the diagonal, where $U$ (m x m) is
orthonormal and the $D_j$ (m x m) are diagonal. Step one ties the blocks, $D_j = D$: the nearest $I \otimes U D U^T$ has
the eigenvectors of $E[G G^T]$ as $U$. Step two keeps $U$ and frees the $D_j$: the best eigenvalues are $E[(U^T G)^2]$.
The result is the best for this $U$, but $U$ is not the best basis for free $D_j$.

Proof. Step one is `whitening`, step two is `error_split`. Now let $D_j$ be free and $V = E[(U^T G)^2]$. The gradient
with respect to a rotation of the rows $i$ and $k$ is proportional to $\sum_j F_{ij,kj} (V_{ij} - V_{kj})$, where
$F_{ij,kj}$ is the covariance of the entries $(i, j)$ and $(k, j)$ of $U^T G$. In the eigenbasis of $E[G G^T]$ only
$\sum_j F_{ij,kj} = 0$ holds. So in general the gradient does not vanish; it does if $V$ does not depend on $j$, or $n = 1$.
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
    V = symbolic(lambda U, F: F.second_moment(lambda G: U.T @ G))(at.bases.left, F)
    yield equal("in every basis the fit is E[(U^T G)^2]", fitted(H, F, at).coords, V)
    yield vanishes("the gradient with respect to D vanishes at the fit", slope(H, fitted(H, F, at), F))
    standard, c = frame(H, m, n, turned=False), coordinates(H, m, n, "c")
    yield convex(
        "the error is a convex quadratic of D (in the standard basis; the norm is the same in every basis)",
        error(H, Params(standard, c), F),
        c,
    )
    # The error is the same in every basis, so F may be written in the eigenbasis, which is then the standard one.
    F = fisher_in_eigenbases(m, n, left=True)
    yield vanishes(
        "in the eigenbasis the gradient with respect to U vanishes if all D are equal", slope_of_bases(tied, fitted(tied, F), F)
    )
    yield differs(
        "in the eigenbasis the gradient with respect to U does not vanish if D is free",
        slope_of_bases(H, fitted(H, F), F).bases.left,
    )

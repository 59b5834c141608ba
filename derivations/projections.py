r"""Where eigenvalues are tied linearly, the nearest are means, whatever the second moments.

Let the entries of L fall into classes of equal value. Then $\Vert L - V \Vert^2 = \sum_a \sum_{k \in a} (c_a - V_k)^2$ is a
convex quadratic in the $c_a$, whose minimum is each class's mean. By the split of the error the same holds in any basis, V seen
there.
"""

from fimlens.proofs.evaluate import error, fitted, slope
from fimlens.proofs.symbols import coordinates, diagonal_fisher, positive
from fimlens.proofs.theorem import convex, vanishes
from fimlens.structure import Params
from fimlens.structures import Blocks, Columns, Diagonal, Rows, Scalar

SIZES = ((2, 2), (2, 3), (4, 3))


def steps(m, n):
    F = diagonal_fisher(positive("V", m, n))
    for H in (Diagonal(), Rows(), Columns(), Scalar(), Blocks(Rows(), rows=2), Blocks(Scalar(), rows=2)):
        nearest = fitted(H, F)
        yield vanishes(f"{H}: the gradient vanishes at the fit", slope(H, nearest, F))
        c = coordinates(H, m, n, "c")
        yield convex(f"{H}: the error is a convex quadratic", error(H, Params(nearest.frame, c), F), c)

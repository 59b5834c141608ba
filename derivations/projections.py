r"""If eigenvalues are tied into classes, the nearest are the means over the classes.

Theorem. Let the entries of $L$ (m x n) fall into classes $a$ of one value $c_a$ each. For every $V$ (m x n), the $L$
nearest to $V$ has $c_a$ equal to the mean of $V$ over the class $a$.

Proof. The squared distance is
$$\Vert L - V \Vert^2 = \sum_a \sum_{k \in a} (c_a - V_k)^2 ,$$
a convex quadratic of the $c_a$ whose gradient vanishes at the means. By `error_split` the same eigenvalues are the best
in any given basis, where $V$ has the second moments in that basis.
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
        yield vanishes(f"{H}: the gradient of the error vanishes at the fit", slope(H, nearest, F))
        c = coordinates(H, m, n, "c")
        yield convex(f"{H}: the error is a convex quadratic of the eigenvalues", error(H, Params(nearest.frame, c), F), c)

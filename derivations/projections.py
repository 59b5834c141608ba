r"""If eigenvalues are tied into classes, the nearest are the means over the classes, in every divergence.

Theorem. Let the entries of $L$ (m x n) fall into classes $a$ of one value $c_a$ each, and let $V$ (m x n) be positive. For
every convex $\phi$, the $L$ with the least $\sum_k D(V_k, L_k)$, where $D(v, l) = \phi(v) - \phi(l) - \phi'(l) (v - l)$, has
$c_a$ equal to the mean of $V$ over the class $a$. So Adam and the normalisations are nearest in every spectral Bregman
divergence.

Proof. Let $\bar c_a$ be the mean over the class $a$, which has $n_a$ entries. Then
$$\sum_k D(V_k, L_k) = \sum_k D(V_k, \bar L_k) + \sum_a n_a D(\bar c_a, c_a) ,$$
as the terms with $V_k - \bar c_a$ sum to zero in each class. The last sum is not negative, and zero at $c_a = \bar c_a$. This
is the theorem of Banerjee et al. (2005). The steps decide the identity for a function $\phi$ that is known by its name alone.
For $\phi = x^2$ the sum is $\Vert L - V \Vert^2$, a convex quadratic of the $c_a$.

By `error_split` the same eigenvalues are the best in any given basis, where $V$ has the second moments in that basis.
"""

import numpy as np

from fimlens.interpreter.interpret import symbolic
from fimlens.proofs.evaluate import error, excess_in, fitted, slope
from fimlens.proofs.symbols import AnyDivergence, coordinates, diagonal_fisher, positive
from fimlens.proofs.theorem import convex, vanishes
from fimlens.structure import Params
from fimlens.structures import Blocks, Columns, Diagonal, Rows, Scalar

SIZES = ((2, 2), (2, 3), (4, 3))


def steps(m, n):
    F, every = diagonal_fisher(positive("V", m, n)), AnyDivergence()
    for H in (Diagonal(), Rows(), Columns(), Scalar(), Blocks(Rows(), rows=2), Blocks(Scalar(), rows=2)):
        nearest = fitted(H, F)
        yield vanishes(f"{H}: the gradient of the error vanishes at the fit", slope(H, nearest, F))
        c = coordinates(H, m, n, "c")
        free = Params(nearest.frame, c)
        yield convex(f"{H}: the error is a convex quadratic of the eigenvalues", error(H, free, F), c)
        apart = error(H, free, F, excess_in(every)) - error(H, nearest, F, excess_in(every))
        sizes = m * n // np.size(c)
        beyond = sizes * symbolic(lambda c, mean: every.between(mean, c).sum())(c, nearest.coords)
        yield vanishes(f"{H}: for every phi the error exceeds the fit's by n_a D(mean, c)", apart - beyond)

r"""A Fisher of samples and a Fisher as a matrix give the same expectations.

Theorem. Let $F = \frac{1}{N} \sum_k g_k g_k^T$ for $N$ gradients $G_k$ (m x n). Every statistic that the package takes
from a Fisher is the mean of a quadratic function of $G$. Computed from the $N$ samples or from the matrix $F$, it is
the same.

Proof. The mean of a quadratic function of $G$ is a linear function of $F$. The steps decide the theorem for $N = 2$ and
arbitrary $A$ (n x n) and $B$ (m x m). As all statistics are linear in $F$, a mean over more samples follows from this
case.
"""

import numpy as np

from fimlens.fisher.dense_form import DenseFisher
from fimlens.fisher.sample_form import SampleFisher
from fimlens.interpreter.interpret import symbolic
from fimlens.proofs.symbols import symbols
from fimlens.proofs.theorem import equal

SIZES = ((2, 2), (2, 3))


def steps(m, n):
    G, A, B = symbols("G", 2, m, n), symbols("A", n, n), symbols("B", m, m)
    g = np.stack([each.T.ravel() for each in G])
    samples, dense = SampleFisher("two gradients", "mean", G), DenseFisher("their mean", "mean", g.T @ g / 2, (m, n))
    yield equal("the matrix of the samples is the mean of g g^T", symbolic(lambda F: F.dense())(samples), dense.matrix)
    statistics = {
        "E[G^2]": lambda F, A, B: F.second_moment(),
        "E[(B G A)^2]": lambda F, A, B: F.second_moment(lambda G: B @ G @ A),
        "E[G G^T]": lambda F, A, B: F.left(),
        "E[G A G^T]": lambda F, A, B: F.left(A),
        "E[G Diag(a) G^T]": lambda F, A, B: F.left(A[0]),
        "E[G^T G]": lambda F, A, B: F.right(),
        "E[G^T B G]": lambda F, A, B: F.right(B),
        "the diagonal of E[G^T B G]": lambda F, A, B: F.right_diagonal(B),
        "E<G, B G A>": lambda F, A, B: F.inner(lambda G: B @ G @ A),
        "the Fisher of B G A": lambda F, A, B: F.map(lambda G: B @ G @ A).dense(),
        "the Fisher of G, scaled": lambda F, A, B: F.scaled(4.0).dense(),
    }
    for statistic, ask in statistics.items():
        yield equal(
            f"{statistic} is the same from the samples and from the matrix", *(symbolic(ask)(F, A, B) for F in (samples, dense))
        )

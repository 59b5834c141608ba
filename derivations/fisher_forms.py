r"""The two forms of a Fisher answer alike, and what is asked of them is linear in F.

With N gradients $F = \frac{1}{N} \sum_k g_k g_k^T$; every question is an expectation of something quadratic in G, so it can
be asked of samples or of the matrix. Proved for two gradients: a sum over more is a sum of these.
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
    yield equal("the samples written out are the mean of g g^T", symbolic(lambda F: F.dense())(samples), dense.matrix)
    questions = {
        "E[G^2]": lambda F, A, B: F.second_moment(),
        "E[(B G A)^2]": lambda F, A, B: F.second_moment(lambda G: B @ G @ A),
        "E[G G^T]": lambda F, A, B: F.left(),
        "E[G A G^T]": lambda F, A, B: F.left(A),
        "E[G^T G]": lambda F, A, B: F.right(),
        "E[G^T B G]": lambda F, A, B: F.right(B),
        "E<G, B G A>": lambda F, A, B: F.inner(lambda G: B @ G @ A),
        "the Fisher of B G A": lambda F, A, B: F.map(lambda G: B @ G @ A).dense(),
        "the Fisher of G, scaled": lambda F, A, B: F.scaled(4.0).dense(),
    }
    for says, ask in questions.items():
        yield equal(f"{says} is one, of samples and of the matrix", *(symbolic(ask)(F, A, B) for F in (samples, dense)))

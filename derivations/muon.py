r"""Muon is whitening by the Fisher of one matrix, its momentum.

With $G = U\, \mathrm{Diag}(\sigma)\, W^T$ and $F = g g^T$ the nearest $I \otimes M$ has
$M = G G^T / n = U\, \mathrm{Diag}(\sigma^2 / n)\, U^T$, so the update is $\sqrt{n}\, U W^T$: the orthogonal factor, times the
factor $\sqrt{n}$ that [G] restores. Newton-Schulz iterates $X \rightarrow a X + b X X^T X + c (X X^T)^2 X$, which keeps U and W
and moves the singular values alone.
"""

import numpy as np
import sympy as sp

from fimlens.proofs.evaluate import fitted, update
from fimlens.proofs.symbols import frame, one_gradient, positive, rotation
from fimlens.proofs.theorem import equal
from fimlens.structure import Frame
from fimlens.structures import Rotated, Rows

SIZES = ((2, 2), (2, 3))


def steps(m, n):
    H = Rotated(Rows(), "L")
    U, W, sigma = rotation(m, "t"), rotation(n, "u")[:, :m], positive("sigma", m)
    G = U * sigma @ W.T
    still = frame(H, m, n, turned=False)
    at = Frame(still.bases._replace(left=U), (m, n))
    nearest = fitted(H, one_gradient(G), at)
    yield equal("the eigenvalues are sigma^2 / n", nearest.coords[:, 0], sigma**2 / n)
    exact = type(nearest)(at, np.array(sigma**2 / n)[:, None])
    yield equal("the update is sqrt(n) U W^T", update(H, exact, G), sp.sqrt(n) * U @ W.T)
    a, b, c = sp.symbols("a b c")
    step = a * G + b * G @ G.T @ G + c * G @ G.T @ G @ G.T @ G
    moved = U * (a * sigma + b * sigma**3 + c * sigma**5) @ W.T
    yield equal("a Newton-Schulz step moves the singular values alone", step, moved)

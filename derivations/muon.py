r"""Muon is whitening by the Fisher of one matrix, its momentum.

Theorem. Let $F = g g^T$ for one matrix $G = U\, \mathrm{Diag}(\sigma)\, W^T$ of full rank $m \leq n$, with orthonormal
$U$ (m x m) and $W$ (n x m). The nearest $I \otimes M$ has $M = G G^T / n = U\, \mathrm{Diag}(\sigma^2 / n)\, U^T$. Its
update is $\sqrt{n}\, U W^T$: the orthogonal factor of $G$, times the factor $\sqrt{n}$ that [G] restores.

Proof. This is `whitening` for one gradient. To compute $U W^T$, Muon iterates $X \rightarrow a X + b X X^T X + c (X
X^T)^2 X$ (Newton-Schulz). Each step keeps $U$ and $W$ and changes the singular values alone.
"""

import numpy as np
import sympy as sp

from fimlens.proofs.evaluate import fitted, update
from fimlens.proofs.symbols import frame, one_gradient, positive, rotation
from fimlens.proofs.theorem import equal
from fimlens.structure import Frame, Params
from fimlens.structures import Rotated, Rows

SIZES = ((2, 2), (2, 3))


def steps(m, n):
    H = Rotated(Rows(), "L")
    U, W, sigma = rotation(m, "t"), rotation(n, "u")[:, :m], positive("sigma", m)
    G = U * sigma @ W.T
    standard = frame(H, m, n, turned=False)
    at = Frame(standard.bases._replace(left=U), (m, n))
    nearest = fitted(H, one_gradient(G), at)
    yield equal("the eigenvalues of the fit are sigma^2 / n", nearest.coords[:, 0], sigma**2 / n)
    # The same eigenvalues, simplified: SymPy finds the root of sigma^2, but not of the sum that the fit returns.
    exact = Params(at, np.array(sigma**2 / n)[:, None])
    yield equal("the update is sqrt(n) U W^T", update(H, exact, G), sp.sqrt(n) * U @ W.T)
    a, b, c = sp.symbols("a b c")
    step = a * G + b * G @ G.T @ G + c * G @ G.T @ G @ G.T @ G
    moved = U * (a * sigma + b * sigma**3 + c * sigma**5) @ W.T
    yield equal("a Newton-Schulz step changes the singular values alone", step, moved)

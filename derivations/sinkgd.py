r"""The k rounds of SinkGD are exactly k sweeps for the nearest S (x) Q in LogDet, on the gradient's squares.

Theorem. Let $V = G^2$ for one gradient $G$ (m x n) without zeros. A round of SinkGD divides each row of $X$ by the root of the
mean square of its entries, and then each column; it starts from $X = G$. A sweep replaces $q$ by $\mathrm{mean}_j V_{ij} /
s_j$, and then $s$ by $\mathrm{mean}_i V_{ij} / q_i$; it starts from ones. After $k$ rounds and $k$ sweeps, for every $k$,
$$X = G / \sqrt{q s^T} = \mathrm{Mat}(\tilde F^{-1/2} g) , \qquad \tilde F = \mathrm{Diag}(s) \otimes \mathrm{Diag}(q) .$$
A sweep minimises $D(F, \tilde F)$ under LogDet in $q$ and then in $s$, by `rank_one` with $b = 0$. So SinkGD is square-root
natural gradient descent with the nearest product in LogDet, stopped after $k$ sweeps. Where the rounds converge, all rows and
columns of their limit have the mean square 1 (Sinkhorn and Knopp, 1967, for positive $V$; not decided here).

Proof. By induction on the half rounds. Let $X = G / \sqrt{q s^T}$ for any positive $q$ and $s$, as it is for ones at the start.
The mean square of row $i$ of $X$ is $\mathrm{mean}_j V_{ij} / (q_i s_j) = q'_i / q_i$, where $q'_i$ is the half step at $s$. So
the normalised $X$ is $G / \sqrt{q' s^T}$: normalising discards the old $q$. The same holds for the columns. The steps decide
this for all $q$ and $s$, which is the induction, and decide the shipped sweeps for $k = 1$, and at 2 x 2 for $k = 2$.

The shipped sweeps begin with the factor of the longer side. So the rounds begin with the columns for $m \leq n$; for $m > n$
they begin with the rows, as published.
"""

from functools import partial

import numpy as np
import sympy as sp

from fimlens.divergence import LogDet
from fimlens.interpreter.interpret import symbolic
from fimlens.proofs.evaluate import fitted
from fimlens.proofs.symbols import one_gradient, positive
from fimlens.proofs.theorem import equal
from fimlens.structures import RowColumn
from fimlens.structures.rank_one import nearest_factor

SIZES = ((2, 2), (3, 2), (2, 3))


def steps(m, n):
    G, x, y = positive("G", m, n), positive("x", m, 1), positive("y", 1, n)  # x^2 = q and y^2 = s; signs of G do not matter
    V, half_step = G**2, symbolic(partial(nearest_factor, LogDet()))
    X = G / (x * y)
    q, s = half_step(V.T, y[0] ** 2)[:, None], half_step(V, x[:, 0] ** 2)[None]
    yield equal("normalising the rows of any G / sqrt(q s^T) replaces q by its half step", rows(X) ** 2, V / (q * y**2))
    yield equal("normalising its columns replaces s by its half step", columns(X) ** 2, V / (x**2 * s))
    order = (rows, columns) if m > n else (columns, rows)
    for k in (1, 2) if m * n <= 4 else (1,):  # the expressions of two rounds grow fast with the size
        for normalise in order:
            X = normalise(G if normalise is order[0] and k == 1 else X)
        swept = fitted(RowColumn(sweeps=k, divergence=LogDet()), one_gradient(G))
        eigenvalues = symbolic(RowColumn().eigenvalues)(swept)
        yield equal(f"{k} shipped sweep(s) on G^2 are {k} round(s) on G", X**2, V / eigenvalues)


def rows(X):
    """X with each row divided by the root of the mean square of its entries."""
    return X / np.vectorize(sp.sqrt)((X**2).sum(1, keepdims=True) / X.shape[1])


def columns(X):
    return rows(X.T).T

r"""Low-rank SOAP is exact for its eigenvalues, and needs no basis of a complement.

Theorem. Let $P = (U, U')$ and $Q = (V, V')$ be orthonormal, with $U$ (m x r) and $V$ (n x r), and let $X = P^T G Q$ (m
x n). The eigenvalues over $X$ are free in the lead $U^T G V$, one number for each row in $U^T G V'$, one for
each column in $U'^T G V$, and one number in $U'^T G V'$. The member does not depend on $U'$ or $V'$. Given $U$ and $V$,
the nearest to $F$ has as eigenvalues the means of the second moments of $X$ over each tied block.
With $A = U^T G$, $B = G V$, $X = U^T G V$ and $D$ the update of the lead, the update of the member is
$$c\,G + U ((a - c) A + (D - (a + b - c) X) V^T) + (b - c) B V^T ,$$
where $a$, $b$, $c$ are the inverse roots of the tied eigenvalues. The sums of squares of the tied blocks are differences of
those of $G$, $A$, $B$ and $X$.

Proof. The error is a convex quadratic of the eigenvalues, and its gradient vanishes at the means. The steps decide this
for every pair of unit vectors ($r = 1$).
"""

import jax
import numpy as np

from fimlens.interpreter.interpret import symbolic
from fimlens.proofs.evaluate import dense, error, fitted, slope, update
from fimlens.proofs.symbols import any_fisher, coordinates, frame, rotation, symbols
from fimlens.proofs.theorem import convex, equal, vanishes
from fimlens.structure import Frame, Params
from fimlens.structures import Diagonal, LowRank
from fimlens.structures.parts import Parts
from fimlens.transforms.low_rank_update import Projections, low_rank_update, squares_of, squares_outside

SIZES = ((2, 2), (2, 3))


def steps(m, n):
    H, F, G = LowRank(Diagonal(), 1, sides="LR"), any_fisher(m, n), symbols("G", m, n)
    P, Q = rotation(m, "t"), rotation(n, "u")
    still, c = frame(H, m, n, turned=False), coordinates(H, m, n, "c")
    at = Frame(still.bases._replace(left=P[:, :1], right=Q[:, :1]), (m, n))
    rows, tail = np.repeat(c.rows, n - 1, 1), np.broadcast_to(c.tail, (m - 1, n - 1))
    L = np.block([[c.lead, rows], [np.repeat(c.columns, m - 1, 0), tail]])
    B = np.kron(Q, P)
    yield equal(
        "the member is diagonal in (U, U') and (V, V'), for all U' and V'", dense(H, Params(at, c)), B * L.T.ravel() @ B.T
    )
    V = symbolic(lambda P, Q, F: F.second_moment(lambda G: P.T @ G @ Q))(P, Q, F)
    nearest = fitted(H, F, at).coords
    means = c._replace(
        lead=V[:1, :1],
        rows=V[:1, 1:].sum(1, keepdims=True) / (n - 1),
        columns=V[1:, :1].sum(0, keepdims=True) / (m - 1),
        tail=V[1:, 1:].sum(keepdims=True) / ((m - 1) * (n - 1)),
    )
    yield equal("the fit has the means of the second moments over each block", nearest, means)
    turned = (m, n) == (2, 2)
    where = "for all U and V" if turned else "in the standard bases"
    yield vanishes(f"{where} the gradient of the error vanishes at the fit", slope(H, fitted(H, F, at if turned else still), F))
    yield convex(
        "the error is a convex quadratic of the eigenvalues (in the standard basis; the norm is the same in every basis)",
        error(H, Params(still, c), F),
        c,
    )
    U, W = P[:, :1], Q[:, :1]
    seen = Projections(U, W, U.T @ G, G @ W, U.T @ G @ W)
    member = Params(at, jax.tree.map(lambda x: x**2, c))
    scales = Parts(None, 1 / c.rows, 1 / c.columns, 1 / c.tail)
    shipped = symbolic(low_rank_update)(G, seen, seen.X / c.lead, scales)
    yield equal("the shipped update, of thin products alone, is F~^{-1/2} g", update(H, member, G), shipped)
    rest = symbolic(lambda G, seen: squares_outside(squares_of(G, seen), seen))(G, seen)
    X = (P.T @ G @ Q) ** 2
    blocks = Parts(None, X[:1, 1:].sum(1, keepdims=True), X[1:, :1].sum(0, keepdims=True), X[1:, 1:].sum(keepdims=True))
    yield equal("the shipped differences of squares are the squares of the blocks", rest, blocks)

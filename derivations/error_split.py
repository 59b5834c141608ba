r"""In every divergence the gap is the sum of a basis error and a spectrum error.

Theorem. Let $\phi$ be convex and $D(F, \tilde F) = \mathrm{tr}[\phi(F) - \phi(\tilde F) - \phi'(\tilde F)(F - \tilde F)]$.
Let $\tilde F = B\, \mathrm{Diag}(\mathrm{vec} L)\, B^T$ with orthonormal $B$ (mn x mn), and let $V$ (m x n) have the second
moments in that basis: $\mathrm{vec} V$ is the diagonal of $B^T F B$. Then $D(F, \tilde F)$ is the sum of
$$\mathrm{tr}\,\phi(F) - \sum_k \phi(V_k) \qquad \text{and} \qquad
\sum_k \phi(V_k) - \phi(L_k) - \phi'(L_k) (V_k - L_k) .$$
Neither is negative, and the first does not depend on $L$: given the basis, the best eigenvalues are the nearest to $V$. For
$\phi = x^2$ the gap is $\Vert \tilde F - F \Vert^2$, and the two parts are $\Vert \mathrm{offdiag}(B^T F B) \Vert^2$ and
$\Vert L - V \Vert^2$.

Proof. In the basis $B$ the matrix $\phi'(\tilde F)$ is diagonal, so its product with $F$ depends on $F$ through $V$ alone. The
spectrum error is a sum of divergences of numbers, which are not negative as $\phi$ is convex. The diagonal $V$ is majorised by
the eigenvalues of $F$ (Schur, 1923), so $\sum_k \phi(V_k) \leq \mathrm{tr}\,\phi(F)$ (Hardy, Littlewood and Polya); these two
theorems are not decided here. The steps hold for a function $\phi$ that is known by its name alone.

If directions share one eigenvalue by construction, as in a low-rank structure, the member does not fix a basis among
them. Such a block counts once, with its multiplicity and with the mean of $V$ over it; the rest of its error belongs to
the basis. A family gives the eigenvalue 0 to directions outside its range. The error there counts as basis error.
"""

import numpy as np
import sympy as sp

from fimlens.divergence import Frobenius
from fimlens.interpreter.interpret import symbolic
from fimlens.proofs.evaluate import dense, eigenbasis, error
from fimlens.proofs.symbols import PHI, AnyDivergence, any_fisher, coordinates, frame
from fimlens.proofs.theorem import equal
from fimlens.solver.fit import split
from fimlens.structure import Params
from fimlens.structures import Diagonal, Drop, Kronecker, LowRank, Rotated, RowColumn, Rows, Scalar

SIZES = ((2, 2), (1, 3))


TWO_SIDED = LowRank(Diagonal(), 1, sides="LR")


FAMILIES = (
    Diagonal(),
    Rows(),
    Scalar(),
    RowColumn(),
    LowRank(Diagonal(), 1, Drop()),
    LowRank(Diagonal(), 1),
    Rotated(Rows(), "L"),
    Rotated(Diagonal(), "L"),
    Rotated(Diagonal()),
    Kronecker(),
    TWO_SIDED,
)


def steps(m, n):
    F, trace = any_fisher(m, n), sp.Symbol("T", real=True)  # T is tr phi(F)
    phi, slope = (np.vectorize(f, otypes=[object]) for f in PHI[:2])
    one, size = np.eye(m * n, dtype=int), (F.matrix**2).sum()
    for H in FAMILIES:
        split_in = lambda d, H=H: symbolic(lambda p, F, T: split(H.eigenvalue_blocks(p, F), d, T))  # noqa: E731
        member = Params(frame(H, m, n), coordinates(H, m, n, "c"))
        total, *parts = split_in(Frobenius())(member, F, size)
        yield equal(f"{H}: for phi = x^2 the shipped total is ||F~ - F||^2", total, error(H, member, F))
        yield equal(f"{H}: for phi = x^2 basis error + spectrum error = total", sum(parts), total)
        if H == TWO_SIDED:  # in all bases the other steps take a minute
            member = Params(frame(H, m, n, turned=False), member.coords)
        (B, L), written = eigenbasis(H, member), dense(H, member)
        yield equal(f"{H}: the member is B Diag(vec L) B^T", written, B * L @ B.T)
        yield equal(f"{H}: B is orthonormal where L is not 0", B.T @ B * L @ B.T, (B * L).T)
        total, *parts = split_in(AnyDivergence())(member, F, trace)
        counts, zero = (B * B).sum(0), sp.Integer(0)
        functions = (phi(L) * counts).sum() + phi(zero) * (m * n - counts.sum())  # tr phi(F~)
        derivative = B * slope(L) @ B.T + slope(zero) * (one - B @ B.T)  # phi'(F~)
        definition = trace - functions - (derivative * (F.matrix - written)).sum()
        yield equal(f"{H}: for every phi the shipped total is D(F, F~)", total, definition)
        yield equal(f"{H}: for every phi basis error + spectrum error = total", sum(parts), total)
        if B.shape == one.shape:
            V, (_, basis, spectrum) = np.diag(B.T @ F.matrix @ B), split_in(Frobenius())(member, F, size)
            yield equal(f"{H}: for phi = x^2 the basis error is ||F||^2 - ||V||^2", basis, size - (V**2).sum())
            yield equal(f"{H}: for phi = x^2 the spectrum error is ||L - V||^2", spectrum, ((L - V) ** 2).sum())

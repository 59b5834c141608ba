r"""The squared error is a basis error plus a spectrum error.

Let B be orthonormal, $\tilde F = B\, \mathrm{Diag}(\mathrm{vec} L)\, B^T$ and V the second moments in that basis, the diagonal
of $B^T F B$. As norms do not change with the basis,
$$\Vert \tilde F - F \Vert^2 = \Vert \mathrm{offdiag}(B^T F B) \Vert^2 + \Vert L - V \Vert^2 .$$
So, the basis given, the best eigenvalues are the projection of V on those that are allowed. A tied block (of low rank) hides
directions inside itself: there the eigenvalue and its V are one number with a multiplicity, and what they hide counts as basis.
"""

import numpy as np
import sympy as sp

from fimlens.interpreter.interpret import symbolic
from fimlens.proofs.evaluate import error
from fimlens.proofs.symbols import any_fisher, coordinates, frame
from fimlens.proofs.theorem import equal
from fimlens.solver.fit import gap_in_units
from fimlens.structure import Params
from fimlens.structures import Corner, Diagonal, Drop, Kronecker, LowRank, Rotated, RowColumn, Rows, Scalar

SIZES = ((2, 2), (1, 3))


FAMILIES = (
    Diagonal(),
    Rows(),
    Scalar(),
    RowColumn(),
    Rotated(Diagonal(), "L"),
    Rotated(Rows(), "L"),
    Rotated(Diagonal()),
    LowRank(Diagonal(), 1),
    LowRank(Diagonal(), 1, Drop()),
    Corner(1),
    Kronecker(),
)


def steps(m, n):
    F, unit = any_fisher(m, n), sp.Symbol("u", positive=True)
    size = sum(F.matrix.ravel() ** 2)
    for H in FAMILIES:
        member = Params(frame(H, m, n), coordinates(H, m, n, "c"))
        parts = symbolic(lambda p, F, unit, size, H=H: gap_in_units.__wrapped__(H, p, F, unit, size))(
            member, F, unit, size / unit**2
        )
        yield equal(f"{H}: the shipped total is ||F~ - F||^2", parts.total, error(H, member, F))
        if isinstance(member.coords, np.ndarray) and H in (Diagonal(), Rotated(Diagonal(), "L"), Rotated(Diagonal())):
            left, right, *_ = (*(member.frame.bases or (None, None)), None)
            B = np.kron(*(np.eye(k, dtype=int) if U is None else U for U, k in ((right, n), (left, m))))
            seen = B.T @ F.matrix @ B
            yield equal(
                f"{H}: basis is the off-diagonal part seen in it", parts.basis, ((seen - np.diag(np.diag(seen))) ** 2).sum()
            )
        yield equal(f"{H}: basis + spectrum is the total", parts.basis + parts.spectrum, parts.total)

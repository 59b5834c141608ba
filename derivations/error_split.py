r"""The error is the sum of a basis error and a spectrum error.

Theorem. Let $B$ (mn x mn) be orthonormal, $\tilde F = B\, \mathrm{Diag}(\mathrm{vec} L)\, B^T$, and let $V$ (m x n)
have the second moments in that basis: $\mathrm{vec} V$ is the diagonal of $B^T F B$. Then
$$\Vert \tilde F - F \Vert^2 = \Vert \mathrm{offdiag}(B^T F B) \Vert^2 + \Vert L - V \Vert^2 .$$
Given the basis, the best eigenvalues are therefore the projection of $V$ on the allowed ones.

Proof. The Frobenius norm is the same in every basis. In the basis $B$ the matrix $\tilde F$ is diagonal, so the error
splits into the entries off the diagonal, which do not depend on $L$, and those on it.

If directions share one eigenvalue by construction, as in a low-rank structure, the member does not fix a basis among
them. Such a block counts once, with its multiplicity and with the mean of $V$ over it; the rest of its error belongs to
the basis.
"""

from functools import partial

import numpy as np
import sympy as sp

from fimlens.interpreter.interpret import symbolic
from fimlens.proofs.evaluate import error
from fimlens.proofs.symbols import any_fisher, coordinates, frame
from fimlens.proofs.theorem import equal
from fimlens.solver.fit import gap_in_units
from fimlens.structure import Params
from fimlens.structures import Diagonal, Drop, Kronecker, LowRank, Rotated, RowColumn, Rows, Scalar

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
    LowRank(Diagonal(), 1, sides="LR"),
    Kronecker(),
)


def steps(m, n):
    F, unit = any_fisher(m, n), sp.Symbol("u", positive=True)
    size = sum(F.matrix.ravel() ** 2)  # ||F||^2; the shipped gap works in a unit of its own, and any unit must give the same
    for H in FAMILIES:
        member = Params(frame(H, m, n), coordinates(H, m, n, "c"))
        # The function under `jit` is called, so that a cached trace cannot stand in for the code as it is now.
        parts = symbolic(partial(gap_in_units.__wrapped__, H))(member, F, unit, size / unit**2)
        yield equal(f"{H}: the shipped total is ||F~ - F||^2", parts.total, error(H, member, F))
        if isinstance(member.coords, np.ndarray) and H in (Diagonal(), Rotated(Diagonal(), "L"), Rotated(Diagonal())):
            left, right, *_ = (*(member.frame.bases or (None, None)), None)
            B = np.kron(*(np.eye(k, dtype=int) if U is None else U for U, k in ((right, n), (left, m))))
            in_basis = B.T @ F.matrix @ B
            yield equal(
                f"{H}: the basis error is the off-diagonal part of B^T F B",
                parts.basis,
                ((in_basis - np.diag(np.diag(in_basis))) ** 2).sum(),
            )
        yield equal(f"{H}: basis error + spectrum error = total", parts.basis + parts.spectrum, parts.total)

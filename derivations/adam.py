r"""Adam is the nearest diagonal matrix ([G], Proposition 1).

Theorem. Among the matrices $\mathrm{Diag}(v)$ with $v \in \mathbb{R}^{mn}$, the nearest to $F$ has $v_k = F_{kk} =
E[g_k^2]$. Its update is $G / \sqrt{E[G^2]}$, which is Adam's.

Proof. The error splits entry by entry,
$$\Vert \mathrm{Diag}(v) - F \Vert^2 = \sum_k (v_k - F_{kk})^2 + \sum_{k \neq l} F_{kl}^2 .$$
It is a convex quadratic of $v$, and its gradient vanishes at $v_k = F_{kk}$ alone. So this is the global minimum. The
update divides each entry of $G$ by the root of its eigenvalue.
"""

from fimlens.interpreter.interpret import symbolic
from fimlens.proofs.evaluate import error, fitted, slope, update
from fimlens.proofs.symbols import any_fisher, positive, symbols
from fimlens.proofs.theorem import convex, equal, vanishes
from fimlens.structure import Params
from fimlens.structures import Diagonal

SIZES = ((2, 3), (2, 2), (1, 3))


def steps(m, n):
    H, F = Diagonal(), any_fisher(m, n)
    adam = fitted(H, F)
    yield equal("the shipped fit is E[G^2]", adam.coords, symbolic(lambda F: F.second_moment())(F))
    yield vanishes("the gradient of the error vanishes at the fit", slope(H, adam, F))
    v = symbols("v", m, n)
    yield convex(
        "the error is a convex quadratic of v, so the fit is its global minimum", error(H, Params(adam.frame, v), F), v
    )
    # Eigenvalues that are squares have rational roots, which keeps the step an identity of rational functions.
    x, G = positive("x", m, n), symbols("G", m, n)
    yield equal("the update is G divided by the root of the eigenvalues", update(H, Params(adam.frame, x**2), G), G / x)

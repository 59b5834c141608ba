r"""Adam is the nearest diagonal matrix ([G], Proposition 1).

Over $H = \{\mathrm{Diag}(v)\}$ the squared error splits entry by entry,
$$\Vert \mathrm{Diag}(v) - F \Vert^2 = \sum_k (v_k - F_{kk})^2 + \sum_{k \neq l} F_{kl}^2,$$
a convex quadratic in $v$, with its minimum at $v_k = F_{kk}$, that is $E[G^2]$. So
$\mathrm{Mat}(\tilde F^{-1/2} g) = G / \sqrt{E[G^2]}$.
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
    yield equal("the fit is E[G^2]", adam.coords, symbolic(lambda F: F.second_moment())(F))
    yield vanishes("the gradient of the squared error vanishes there", slope(H, adam, F))
    v = symbols("v", m, n)
    yield convex("it is a convex quadratic, so there is its global minimum", error(H, Params(adam.frame, v), F), v)
    x, G = positive("x", m, n), symbols("G", m, n)
    yield equal("the update divides by the root of E[G^2]", update(H, Params(adam.frame, x**2), G), G / x)

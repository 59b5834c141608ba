r"""LARS is c I with a trust ratio, LAMB is Adam's diagonal with one.

The nearest $c I$ has $c = \mathrm{tr} F / (mn)$. Of one gradient its update is $\sqrt{mn}\, G / \Vert G \Vert$, and a trust
ratio makes of $G / \sqrt{c}$, for every c, $\Vert W \Vert G / \Vert G \Vert$: LARS. LAMB applies the same ratio to
$G / \sqrt{E[G^2]}$.
"""

import numpy as np
import optax
import sympy as sp

from fimlens.interpreter.interpret import symbolic
from fimlens.proofs.evaluate import error, fitted, slope, update
from fimlens.proofs.symbols import any_fisher, coordinates, one_gradient, positive
from fimlens.proofs.theorem import convex, equal, vanishes
from fimlens.structure import Params
from fimlens.structures import Diagonal, Scalar
from fimlens.transforms.norms import scale_by_trust_ratio

SIZES = ((2, 2), (2, 3))


def steps(m, n):
    H, F, G, W = Scalar(), any_fisher(m, n), positive("G", m, n), positive("W", m, n)
    nearest = fitted(H, F)
    yield equal("the fit is tr F / (m n)", nearest.coords.ravel(), np.array([np.trace(F.matrix) / (m * n)]))
    yield vanishes("there the gradient vanishes", slope(H, nearest, F))
    c = coordinates(H, m, n, "c")
    yield convex("of a convex quadratic", error(H, Params(nearest.frame, c), F), c)
    size, weight = (sp.sqrt((x**2).sum()) for x in (G, W))
    yield equal("of one gradient it normalises", update(H, fitted(H, one_gradient(G)), G), sp.sqrt(m * n) * G / size)
    trusted = symbolic(lambda U, W: scale_by_trust_ratio().update(U, optax.EmptyState(), W)[0])
    yield equal(
        "with a trust ratio every c gives LARS", trusted(update(H, Params(nearest.frame, c**2), G), W), weight * G / size
    )
    x = positive("x", m, n)
    adam = update(Diagonal(), Params(nearest.frame, x**2), G)
    ratio = weight / sp.sqrt(((G / x) ** 2).sum())
    yield equal("LAMB is the same ratio times Adam's update", trusted(adam, W), ratio * G / x)

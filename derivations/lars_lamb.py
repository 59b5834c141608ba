r"""LARS is the nearest c I with a trust ratio, and LAMB is Adam with one.

Theorem. Among the matrices $c I$ (mn x mn), the nearest to $F$ has $c = \mathrm{tr} F / (mn)$. For the Fisher of one
gradient its update is $\sqrt{mn}\, G / \Vert G \Vert$. A trust ratio rescales an update $U$ of the weights $W$ (m x n)
to $\Vert W \Vert\, U / \Vert U \Vert$. Applied to $G / \sqrt{c}$ it gives LARS, $\Vert W \Vert\, G / \Vert G \Vert$,
for every $c > 0$. Applied to Adam's update it gives LAMB.

Proof. The error is a convex quadratic of $c$, and its gradient vanishes at the mean of the diagonal of $F$. A rescaled
update does not depend on a factor of $U$, and so not on $c$.
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
    # Positive entries decide the comparison of the norms with zero in the trust ratio.
    H, F, G, W = Scalar(), any_fisher(m, n), positive("G", m, n), positive("W", m, n)
    nearest = fitted(H, F)
    yield equal("the fit is tr F / (m n)", nearest.coords.ravel(), np.array([np.trace(F.matrix) / (m * n)]))
    yield vanishes("the gradient of the error vanishes at the fit", slope(H, nearest, F))
    c = coordinates(H, m, n, "c")
    yield convex("the error is a convex quadratic of c", error(H, Params(nearest.frame, c), F), c)
    size, weight = (sp.sqrt((x**2).sum()) for x in (G, W))
    yield equal(
        "for the Fisher of one gradient the update is sqrt(m n) G / ||G||",
        update(H, fitted(H, one_gradient(G)), G),
        sp.sqrt(m * n) * G / size,
    )
    trusted = symbolic(lambda U, W: scale_by_trust_ratio().update(U, optax.EmptyState(), W)[0])
    yield equal(
        "with a trust ratio the update is that of LARS, for every c",
        trusted(update(H, Params(nearest.frame, c**2), G), W),
        weight * G / size,
    )
    x = positive("x", m, n)
    adam = update(Diagonal(), Params(nearest.frame, x**2), G)
    ratio = weight / sp.sqrt(((G / x) ** 2).sum())
    yield equal("with a trust ratio Adam's update is that of LAMB", trusted(adam, W), ratio * G / x)

r"""One fixed point gives the Kronecker product nearest in every divergence of a degree.

Theorem. Let $\phi'' = x^{b-2}$, and let $\tilde F = A \otimes B$ with positive definite $A$ (n x n) and $B$ (m x m). Given
$B$, the only $A$ with the least $D(F, \tilde F)$ is $\hat A$; given $A$, the only $B$ is $\hat B$, where
$$\hat A = E[G^T B^{b-1} G] / \mathrm{tr} B^b , \qquad \hat B = E[G A^{b-1} G^T] / \mathrm{tr} A^b .$$
If $A$ is to be diagonal, it is the diagonal of $\hat A$. So $D$ falls with each half step, and the nearest product is a fixed
point of both. $b = 2$ is the half step of `van_loan_pitsianis`, $b = 1$ has the product of the covariances as fixed point
(`shampoo_squared`), and $b = 0$ is KL-Shampoo: $A = E[G^T B^{-1} G] / m$ and $B = E[G A^{-1} G^T] / n$.

Proof. As $\phi'(A \otimes B)$ is $A^{b-1} \otimes B^{b-1} / (b - 1)$, or $\log A \otimes I + I \otimes \log B$ for $b = 1$,
$$D(F, A \otimes B) = \mathrm{tr} B^b \, D(\hat A, A) + R(B) ,$$
with a rest that does not depend on $A$. $D(\hat A, A)$ is zero at $A = \hat A$ and positive elsewhere (Klein's inequality, not
decided here). For a diagonal $A$ it depends on $\hat A$ through its diagonal alone. The same holds for $B$. The steps decide
the identity for all eigenvalues and all bases.

For positive definite $F$ and $0 < b < 2$ a fixed point is the global minimum. It is the only one up to scale, as each half
step contracts Hilbert's projective metric. The map $X \to X^{b-1}$ multiplies the metric by at most $|b - 1| < 1$ (Loewner and
Heinz), and a positive linear map does not increase it (Bushell, 1973). A minimum exists and is positive definite, as each half
step is. For $b = 2$ it is the theorem of Eckart, Young and Mirsky. For $b = 0$ the product is the maximum likelihood estimate
of a matrix normal distribution, which is convex along geodesics (Wiesel, 2012). These theorems are not decided here.
"""

import numpy as np

from fimlens.divergence import Frobenius, LogDet, VonNeumann
from fimlens.interpreter.interpret import symbolic
from fimlens.proofs.evaluate import error, excess_in
from fimlens.proofs.symbols import any_fisher, frame, positive, symmetric
from fimlens.proofs.theorem import equal
from fimlens.structure import Frame, Params, Statistics
from fimlens.structures import DiagonalKronecker, Kronecker
from fimlens.structures.product import Weighted

SIZES = ((2, 2), (2, 3))


def steps(m, n):
    eye = {k: np.eye(k, dtype=int) for k in (m, n)}
    F, b, a = any_fisher(m, n), positive("b", m, 1), positive("a", 1, n)
    for degree, d in enumerate((LogDet(), VonNeumann(), Frobenius())):
        for H in (DiagonalKronecker(d), Kronecker(d)):
            still = frame(H, m, n, turned=False)
            r, C = positive("r", m), symmetric("C", n)
            C = np.diag(C) if isinstance(H, DiagonalKronecker) else C
            scaled = Frame(still.bases._replace(b=2 * r), (m, n))
            fitted = symbolic(lambda B, C, at, H=H: H.fit(Statistics(None, Weighted(B, C)), at))(np.diag(r), C, scaled)
            best = 2 * (C if C.ndim == 1 else np.diag(C))  # C is the best A given 2 B
            yield equal(f"{H}: the shipped fit is B and the best A given B", fitted.coords, (r[:, None], best[None]))
            at = frame(H, m, n, turned=(m, n) == (2, 2))
            U, _, W, _ = at.bases
            W = eye[n] if W is None else W
            at = Frame(at.bases._replace(b=b[:, 0], a=a[0]), (m, n))
            best_B, best_A = symbolic(lambda F, at, H=H: H.stats(F, Params(at, None)).spectrum)(F, at)
            weights = U * b[:, 0] ** (degree - 1) @ U.T, W * a[0] ** (degree - 1) @ W.T
            seen_B, seen_A = symbolic(lambda F, B, A: (F.left(A), F.right(B)))(F, *weights)
            sizes = (b**degree).sum(), (a**degree).sum()
            seen_A = np.diag(seen_A) if isinstance(H, DiagonalKronecker) else seen_A
            yield equal(f"{H}: the shipped half steps", [best_B, best_A], [seen_B / sizes[1], seen_A / sizes[0]])
            whole = lambda at, b, a, H=H, d=d: error(H, Params(at, (b, a)), F, excess_in(d))  # noqa: E731
            apart = lambda V, values, d=d: symbolic(lambda V, x: d.excess(V, x).sum())(V, values.ravel())  # noqa: E731
            along = lambda C, Q: C if C.ndim == 1 else np.diag(Q.T @ C @ Q)  # noqa: E731
            one = Frame(at.bases._replace(right=None if at.bases.right is None else eye[n]), (m, n))
            rests = [
                whole(at, b, a) - sizes[0] * apart(along(best_A, W), a),
                whole(one, b, a**0) - sizes[0] * apart(along(best_A, eye[n]), a**0),
            ]
            yield equal(f"{H}: D(F, A (x) B) is tr B^b D(A^, A) and a rest without A", *rests)
            one = Frame(at.bases._replace(left=eye[m]), (m, n))
            rests = [
                whole(at, b, a) - sizes[1] * apart(along(best_B, U), b),
                whole(one, b**0, a) - sizes[1] * apart(along(best_B, eye[m]), b**0),
            ]
            yield equal(f"{H}: D(F, A (x) B) is tr A^b D(B^, B) and a rest without B", *rests)

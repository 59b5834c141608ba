"""Witnesses of the named optimizers: NumPy, float64, written from the papers; they share nothing with the package.

Each is a generator: sent a gradient and the weight, it yields what is added to the weight. `frames`, where asked for, gives the
bases that the optimizer holds, for spaces in which a paper leaves them arbitrary (the null space of a covariance); a
witness uses them only after finding that they do diagonalise what it has itself computed.
"""

import numpy as np


def root_inverse(values, eps=0.0):
    scale = np.sqrt(values) + eps
    return np.divide(1, scale, out=np.zeros_like(scale), where=scale > 1e-12 * max(scale.max(), 1e-300))


def seen(X):
    """X less the rounding of a rotation: with exact numbers, coordinates in a null space are zero."""
    return np.where(np.abs(X) > 1e-13 * np.abs(X).max(), X, 0)


def bias_corrected(average, decay, t):
    return average / (1 - decay**t)


def in_short_side(witness):
    """Of a method stated for m <= n: transpose at the door."""

    def transposed(lr, **options):
        inner = witness(lr, **options)
        next(inner)
        G, W = yield
        while True:
            tall = G.shape[0] > G.shape[1]
            U = inner.send((G.T, W.T) if tall else (G, W))
            G, W = yield U.T if tall else U

    transposed.__name__ = witness.__name__
    return transposed


def sgd(lr):
    G, _ = yield
    while True:
        G, _ = yield -lr * G


def adam(lr, b1=0.9, b2=0.999, eps=1e-8, decay=0.0):
    m = v = 0.0
    t = 0
    G, W = yield
    while True:
        t += 1
        m, v = b1 * m + (1 - b1) * G, b2 * v + (1 - b2) * G**2
        G, W = yield -lr * (bias_corrected(m, b1, t) / (np.sqrt(bias_corrected(v, b2, t)) + eps) + decay * W)


def adamw(lr):
    return adam(lr, decay=1e-4)


def adafactor(lr):
    """Shazeer and Stern 2018, Algorithm 4 and section 8, on matrices."""
    R = C = 0.0
    t = 0
    G, W = yield
    while True:
        t += 1
        b = 1 - t**-0.8
        R, C = b * R + (1 - b) * (G**2).sum(1), b * C + (1 - b) * (G**2).sum(0)
        U = G / np.sqrt(np.outer(R, C) / R.sum())
        U = U / max(1.0, np.sqrt(np.mean(U**2)))
        G, W = yield -lr * max(1e-3, np.sqrt(np.mean(W**2))) * U


def lars(lr, beta=0.9, trust=0.001):
    velocity = 0.0
    G, W = yield
    while True:
        velocity = beta * velocity + lr * trust * np.linalg.norm(W) / np.linalg.norm(G) * G
        G, W = yield -velocity


def lamb(lr):
    inner = adam(1.0, eps=1e-6)
    next(inner)
    G, W = yield
    while True:
        U = inner.send((G, W))
        G, W = yield lr * np.linalg.norm(W) / np.linalg.norm(U) * U


def nesterov(beta=0.95):
    m, t = 0.0, 0
    G = yield
    while True:
        t += 1
        m = beta * m + (1 - beta) * G
        G = yield beta * m / (1 - beta ** (t + 1)) + (1 - beta) * G / (1 - beta**t)


def polar(G):
    """U V^T over the range of G: a matrix of standardised rows has none along (1, ..., 1)."""
    u, values, vt = np.linalg.svd(G, full_matrices=False)
    return u @ np.diag(values > 1e-10 * values.max()) @ vt


def newton_schulz(G, steps=5, eps=1e-8):
    X = G / (np.linalg.norm(G) + eps)
    for _ in range(steps):
        A = X @ X.T
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return X


def polar_express(G):
    """Amsel et al. 2025, five steps."""
    X = G / (1.02 * (np.linalg.norm(G) + 1e-8))
    for a, b, c in (
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ):
        X = a * X + b * X @ X.T @ X + c * X @ X.T @ X @ X.T @ X
    return X


def muon(lr, orthogonalized=newton_schulz):
    averaged = nesterov()
    next(averaged)
    G, _ = yield
    while True:
        m, n = G.shape
        G, _ = yield -lr * max(1, n / m) ** 0.5 * orthogonalized(averaged.send(G))


def muon_exact(lr):
    return muon(lr, polar)


def muon_by_polar_express(lr):
    return muon(lr, polar_express)


def normuon(lr, b2=0.95):
    """Li et al. 2025, on weights of inputs x outputs: a neuron is a column."""
    averaged, v = nesterov(), 0.0
    next(averaged)
    G, _ = yield
    while True:
        m, n = G.shape
        factor = newton_schulz(averaged.send(G))
        v = b2 * v + (1 - b2) * np.mean(factor**2, 0)
        U = factor / np.sqrt(v)
        G, _ = yield -lr * max(1, n / m) ** 0.5 * U * np.linalg.norm(factor) / np.linalg.norm(U)


def swan(lr):
    G, _ = yield
    while True:
        X = (G - G.mean(1, keepdims=True)) / (G.std(1, keepdims=True) + 1e-8 * np.abs(G).max(1, keepdims=True))
        G, _ = yield -lr * np.sqrt(max(G.shape)) * polar(X)


def eigenbasis(C):
    return np.linalg.eigh(C)[1][:, ::-1]


def agreed(C, given):
    """The eigenbasis of C; in its null space, which has none of its own, the given vectors, once they are seen to lie there."""
    values, U = np.linalg.eigh(C)
    values, U = values[::-1], U[:, ::-1].copy()
    null = values < 1e-10 * values.max()
    if null.any():
        inside = np.asarray(given, np.float64)[:, null]
        assert np.abs(inside - U[:, null] @ U[:, null].T @ inside).max() < 1e-4
        u, _, vt = np.linalg.svd(U[:, null] @ U[:, null].T @ inside, full_matrices=False)
        U[:, null] = u @ vt
    return U


def shampoo(lr, interval=1, b2=0.999, total=False, frames=None):
    """L^{-1/4} G R^{-1/4}, L and R over n and m. Between refreshes the eigenvalues are those of L, R along the basis."""
    L = R = 0.0
    t = 0
    G, _ = yield
    while True:
        m, n = G.shape
        L = b2 * L + (1 if total else 1 - b2) * G @ G.T / n
        R = b2 * R + (1 if total else 1 - b2) * G.T @ G / m
        weight = 1 if total else 1 - b2 ** (t + 1)
        if t % interval == 0:
            given = frames()
            UL, UR = agreed(L, given[0]), agreed(R, given[1])
        t += 1
        r, c = (np.maximum(np.diag(U.T @ C @ U), 0) / weight for U, C in ((UL, L), (UR, R)))
        r, c = (np.where(x > 1e-12 * x.max(), x, 0) for x in (r, c))
        G, _ = yield -lr * UL @ (seen(UL.T @ G @ UR) * root_inverse(np.sqrt(np.outer(r, c)), 1e-8)) @ UR.T


def shampoo_of_interval_3(lr, frames=None):
    return shampoo(lr, interval=3, frames=frames)


def shampoo_of_sums(lr, frames=None):
    return shampoo(lr, b2=1.0, total=True, frames=frames)


def carried(V, TL, TR, rows=None, columns=None):
    """Second moments after a turn by TL and TR: its squares, and then the means that covariances state, within a hundred."""
    V = TL**2 @ V @ (TR**2).T
    for known, axis in ((rows, 1), (columns, 0)):
        if known is not None:
            found = V.mean(axis)
            factor = np.clip(known / known.mean() / (found / found.mean()), 0.01, 100)
            V = V * (factor[:, None] if axis == 1 else factor)
    return V


def soap(lr, b1=0.95, b2=0.95, eps=1e-8, interval=10, frames=None, qr=True):
    """Vyas et al. 2024, Algorithm 3, as in the published code: its first step only starts the bases, and `qr` sorts.

    Unlike there, second moments turn with the bases.
    """
    L = R = M = V = 0.0
    UL = UR = None  # from the first gradient on
    t = 0
    G, _ = yield
    while True:
        step = np.zeros_like(G)
        if t > 0:
            X = UL.T @ G @ UR
            M, V = b1 * M + (1 - b1) * G, b2 * V + (1 - b2) * X**2
            N = UL.T @ bias_corrected(M, b1, t) @ UR / (np.sqrt(bias_corrected(V, b2, t)) + eps)
            step = -lr * UL @ N @ UR.T
        L, R = b2 * L + (1 - b2) * G @ G.T, b2 * R + (1 - b2) * G.T @ G
        if t == 0:
            given = frames()
            UL, UR = agreed(L, given[0]), agreed(R, given[1])
        elif t % interval == 0:
            old = UL, UR
            if qr:
                rows, columns = (np.argsort(-np.diag(U.T @ C @ U)) for C, U in ((L, UL), (R, UR)))
                UL, UR = np.linalg.qr(L @ UL[:, rows])[0], np.linalg.qr(R @ UR[:, columns])[0]
            else:
                UL, UR = eigenbasis(L), eigenbasis(R)
            V = carried(V, UL.T @ old[0], UR.T @ old[1], np.diag(UL.T @ L @ UL), np.diag(UR.T @ R @ UR))
        t += 1
        G, _ = yield step


def soap_by_eigh(lr, frames=None):
    return soap(lr, frames=frames, qr=False)


def soap_muon(lr, frames=None):
    """SOAP's update, brought to the norm of SOAP's momentum, and its polar factor; nothing where SOAP moves nothing."""
    inner, M = soap(-1.0, frames=frames), 0.0
    next(inner)
    G, W = yield
    while True:
        m, n = G.shape
        M = 0.95 * M + 0.05 * G
        U = inner.send((G, W))
        U = U * np.linalg.norm(M) / max(np.linalg.norm(U), 1e-300)
        G, W = yield -lr * max(1, n / m) ** 0.5 * newton_schulz(U, eps=1e-300)


def through(x, clamp=4000):
    """The inverse of a factor of mean 1, with roots of at most the clamp, the factor's length or 10."""
    return 1 / np.maximum(x / x.mean(), max(10, min(len(x), clamp)) ** -2.0)


def kl_shampoo(lr, b1=0.9, b2=0.98, eps=1e-8, interval=10, frames=None, moments=False):
    """Lin et al. 2025: each factor seen through the inverse of the other, the one before; the first step only starts the bases.

    Unlike in the authors' code, factors are seen through at mean 1, and everything is bias corrected; the update has the
    current gradient in its eigenvalues, and at a refresh they are those of the factors, up to scale. `moments`: KL-SOAP.
    """
    L = R = M = V = a = b = 0.0
    UL = UR = None  # from the first gradient on
    t = 0
    G, _ = yield
    while True:
        step, (m, n) = np.zeros_like(G), G.shape
        wa, wb = (through(bias_corrected(x, b2, t - 1)) if t > 1 else np.ones(k) for x, k in ((a, m), (b, n)))
        halves = (G, G.T) if t == 0 else (G @ UR * np.sqrt(wb), G.T @ UL * np.sqrt(wa))
        if t > 0:
            X = UL.T @ G @ UR
            M, V = b1 * M + (1 - b1) * G, b2 * V + (1 - b2) * X**2
            a, b = b2 * a + (1 - b2) * np.mean(X**2 * wb, 1), b2 * b + (1 - b2) * np.mean((X**2).T * wa, 1)
            values = np.outer(a, b) / np.sqrt(a.mean() * b.mean())
            N = UL.T @ bias_corrected(M, b1, t) @ UR / (np.sqrt(bias_corrected(V if moments else values, b2, t)) + eps)
            step = -lr * UL @ N @ UR.T
        L, R = (b2 * S + (1 - b2) * half @ half.T for S, half in zip((L, R), halves, strict=True))
        if t == 0:
            given = frames()
            UL, UR = agreed(L, given[0]), agreed(R, given[1])
        elif t % interval == 0:
            old = UL, UR
            rows, columns = (np.argsort(-np.diag(U.T @ S @ U)) for S, U in ((L, UL), (R, UR)))
            UL, UR = np.linalg.qr(L @ UL[:, rows])[0], np.linalg.qr(R @ UR[:, columns])[0]
            UL, UR = UL[:, np.argsort(rows)], UR[:, np.argsort(columns)]
            V = carried(V, UL.T @ old[0], UR.T @ old[1])
            sides = (a, UL, old[0], L), (b, UR, old[1], R)
            a, b = (carried(x[:, None], U.T @ U0, np.eye(1), np.diag(U.T @ S @ U))[:, 0] for x, U, U0, S in sides)
        t += 1
        G, _ = yield step


def kl_soap(lr, frames=None):
    return kl_shampoo(lr, frames=frames, moments=True)


def rounds_of_sinkgd(G, rounds=5):
    """Scetbon et al. 2025: rounds of normalisations, of the long vectors' other side first, to a root mean square of 1."""
    X, axis = G, int(G.shape[0] > G.shape[1])
    for _ in range(rounds):
        for k in (axis, 1 - axis):
            X = X / np.sqrt(np.mean(X**2, k, keepdims=True))
    return X


def sinkgd(lr):
    G, _ = yield
    while True:
        G, _ = yield -lr * rounds_of_sinkgd(G)


@in_short_side
def aro(lr, b1=0.95, interval=1):
    """ARO: R <- QR(M f(R^T M)^T), columns in the order of the gain that each stands for; then R f(R^T M), at 0.2."""
    G, _ = yield
    M, R, t, f = 0.0, np.eye(len(G)), 0, rounds_of_sinkgd
    while True:
        M = b1 * M + (1 - b1) * G
        if t % interval == 0:
            Y = f(R.T @ M)
            R = np.linalg.qr((M @ Y.T)[:, np.argsort(-np.sum(R.T @ M * Y, 1))])[0]
        t += 1
        G, _ = yield -0.2 * lr * R @ f(R.T @ M)


def aro_of_interval_3(lr):
    return aro(lr, interval=3)


@in_short_side
def osoap(lr, b1=0.9, b2=0.999, eps=1e-8, interval=10):
    """[G]'s Eigen-Adam: the basis turns, the gradient seen, before the update."""
    Q = M = V = 0.0
    U = None
    t = 0
    G, _ = yield
    while True:
        before, Q = Q, b2 * Q + (1 - b2) * G @ G.T
        if t % interval == 0:
            old, U = U, eigenbasis(Q)
            V = V if t == 0 else carried(V, U.T @ old, np.eye(G.shape[1]), np.diag(U.T @ before @ U))
        t += 1
        M, V = b1 * M + (1 - b1) * G, b2 * V + (1 - b2) * (U.T @ G) ** 2
        G, _ = yield -lr * U @ (U.T @ bias_corrected(M, b1, t) / (np.sqrt(bias_corrected(V, b2, t)) + eps))


def limited(C, measured, kept, gamma, weight=1.0):
    """C under [G]'s limiter, which lets a norm return to the peak that it fell from, and what the limiter keeps.

    The peak fades by gamma a step, or by 1 + 1 / t at step t if that is more. Norms are those of `measured`, times the weight.
    """
    norm = np.linalg.norm(measured) * weight
    if norm == 0:
        return C, kept
    if kept is None:
        return C, (norm, norm, norm, 1)
    phi, peak, faded, count = kept
    kappa = 0.5 / gamma**20
    eta = min(1, gamma * (peak if phi < kappa * faded and norm > gamma * phi / kappa else phi) / norm)
    new, faded = eta * norm, faded / max(gamma, 1 + 1 / count)
    return eta * C, (new, *((new, new) if new >= faded else (peak, faded)), count + 1)


@in_short_side
def racs(lr, beta=0.9, alpha=0.05, gamma=1.01, sweeps=5, corrected=False, cap=30.0, degree=2):
    """[G] Algorithm 1, and no row or column of a gradient with a mean squared update over `cap`; or for another degree b of
    the divergence: q = V s^(b-1) / sum s^b."""
    s = q = 0.0
    kept = None
    t = 0
    G, _ = yield
    while True:
        t += 1
        P, q_now = G**2, np.ones(len(G))
        for _ in range(sweeps):
            s_now = P.T @ q_now ** (degree - 1) / np.sum(q_now**degree)
            q_now = np.maximum(P @ s_now ** (degree - 1) / np.sum(s_now**degree), (P / s_now).mean(1) / cap)
        s_now = np.maximum(s_now, (P.T / q_now).mean(1) / cap)
        s, q = beta * s + (1 - beta) * s_now, beta * q + (1 - beta) * q_now
        weight = 1 - beta**t if corrected else 1.0
        U = G / np.sqrt(np.outer(q, s)) * weight
        U, kept = limited(U, U, kept, gamma)
        G, _ = yield -lr * alpha * U


def racs_in_print(lr):
    return racs(lr, cap=np.inf)


def racs_under_von_neumann(lr):
    return racs(lr, degree=1)


def racs_between(lr):
    return racs(lr, degree=0.5)


def racs_under_logdet(lr):
    return racs(lr, degree=0)


def racs_corrected(lr):
    return racs(lr, corrected=True)


def singular_moments(lr, b1, b2, eps, interval, two_sided, factored, frames):
    """[D] Algorithms 1 to 3: moments in the space of the current gradient's singular vectors, carried along."""
    UL = UR = None
    m = v = 0.0
    t = 0
    G, _ = yield
    while True:
        if t % interval == 0:
            old = UL, UR
            given = frames()
            UL = agreed(G @ G.T, given[0])
            UR = agreed(G.T @ G, given[1]) if two_sided else np.eye(G.shape[1])
            if t > 0:
                TL, TR = UL.T @ old[0], UR.T @ old[1]
                m = TL @ m @ TR.T
                v = carried(v, TL, TR)
        t += 1
        X = seen(UL.T @ G @ UR)
        m, v = b1 * m + (1 - b1) * X, b2 * v + (1 - b2) * X**2
        V = bias_corrected(v, b2, t)
        if factored:
            V = np.outer(V.sum(1), V.sum(0)) / V.sum()
        G, _ = yield -lr * UL @ (seen(bias_corrected(m, b1, t)) / (np.sqrt(V) + eps)) @ UR.T


@in_short_side
def adadiag(lr, frames=None):
    return singular_moments(lr, 0.9, 0.999, 1e-8, 20, False, False, frames)


def adadiag_pp(lr, frames=None):
    return singular_moments(lr, 0.9, 0.999, 1e-8, 20, True, False, frames)


@in_short_side
def adafacdiag(lr, frames=None):
    return singular_moments(lr, 0.9, 0.999, 1e-8, 20, False, True, frames)

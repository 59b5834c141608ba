"""The low-rank optimizers once more, in NumPy, float64, written from [G]; nothing is shared with the package.

Each is a generator as in numpy_optimizers. Directions that a method draws at random are read from the optimizer's state, by
`frames()`, after finding that they are what they should be: orthonormal, and outside the subspace that they make way for.
"""

import numpy as np
from numpy_optimizers import in_short_side


def gauge(U):
    return U * np.where(np.take_along_axis(U, np.abs(U).argmax(0)[None], 0) < 0, -1, 1)


def column_norms(X):
    return np.sqrt((X**2).sum(0))


def adam_like(b1, b2, eps, corrected):
    """m / (sqrt(v) + eps) of what is sent; `turn` is an r x r matrix, "reset" or None."""
    m = v = 0.0
    t = 0
    sigma, turn = yield
    while True:
        if isinstance(turn, str):
            m, v, t = 0.0, 0.0, 0
        elif turn is not None and t > 0:
            m, v = turn @ m, turn**2 @ v
        t += 1
        m, v = b1 * m + (1 - b1) * sigma, b2 * v + (1 - b2) * sigma**2
        c1, c2 = (1 - b1**t, 1 - b2**t) if corrected else (1.0, 1.0)
        sigma, turn = yield (m / c1) / (np.sqrt(v / c2) + eps)


def limited(C, phi, gamma):
    norm = np.linalg.norm(C)
    eta = gamma / max(norm / phi, gamma) if phi > 0 else 1.0
    return eta * C, eta * norm


def turned(moments, U, old):
    return {"keep": None, "rotate": None if old is None else U.T @ old, "reset": "reset"}[moments]


def switched(V, leading, given, strategy):
    """The leading columns of V, and the drawn ones, once seen to be what the strategy says."""
    m, r = V.shape
    given = np.asarray(given, np.float64)
    if strategy == "none" or m == r:
        return V
    count = min(r - leading, m - r) if strategy == "complement" else r - leading
    stay, drawn = (V[:, :0], given) if strategy == "gaussian" else (V[:, : r - count], given[:, r - count :])
    assert np.abs(drawn.T @ drawn - np.eye(drawn.shape[1])).max(initial=0) < 1e-4
    assert np.abs((V if strategy == "complement" else stay).T @ drawn).max(initial=0) < 1e-4
    return np.concatenate([stay, drawn], 1)


@in_short_side
def alice(
    lr, rank, leading, interval=5, b1=0.9, b2=0.9, b3=0.999, alpha=0.3, alpha_c=0.4, gamma=1.01,
    switch="complement", compensation="optimal", moments="keep", corrected=False, frames=None,
):  # fmt: skip
    """[G]'s algorithm, with an m x m matrix Q and the residual written out."""
    U = None
    Qt = np.zeros((rank, rank))
    p = phi = 0.0
    t = 0
    inner = adam_like(b1, b2, 1e-8, corrected)
    next(inner)
    G, _ = yield
    while True:
        m, turn = len(G), None
        if t % interval == 0:
            before = np.linalg.svd(G)[0][:, :rank] if U is None else U
            Q = b3 * before @ Qt @ before.T + (1 - b3) * G @ G.T
            V = np.linalg.qr(Q @ before)[0]
            V = gauge(V @ np.linalg.eigh(V.T @ Q @ V)[1][:, ::-1])
            new = switched(V, leading, frames(), switch)
            turn = turned(moments, new, U)
            if moments == "rotate" and U is not None:
                Qt = turn @ Qt @ turn.T
            if moments == "reset":
                Qt = np.zeros((rank, rank))
            U = new
        t += 1
        sigma = U.T @ G
        Qt = b3 * Qt + (1 - b3) * sigma @ sigma.T
        D = inner.send((sigma, turn))
        rest = G - U @ sigma
        C = np.zeros_like(G)
        if rank < m and compensation != "none":
            if compensation == "optimal":
                p = b1 * p + (1 - b1) * ((G**2).sum(0) - (sigma**2).sum(0))
                C = np.sqrt(m - rank) * rest / np.sqrt(p / (1 - b1**t if corrected else 1))
            else:
                C = rest * column_norms(D) / column_norms(sigma)
            if compensation == "fira+":
                C *= np.linalg.norm(D) / np.linalg.norm(C)
            C, phi = limited(C, phi, gamma)
        G, _ = yield -lr * alpha * (U @ D + alpha_c * C)


@in_short_side
def galore(lr, rank, interval=5, alpha=0.3, moments="keep", fira=False, plus=False, frames=None):
    """Zhao et al. 2024; with `fira`, Chen et al. 2024."""
    U = None
    phi = 0.0
    t = 0
    inner = adam_like(0.9, 0.999, 1e-8, True)
    next(inner)
    G, _ = yield
    while True:
        turn = None
        if t % interval == 0:
            new = gauge(np.linalg.svd(G)[0][:, :rank])
            turn, U = turned(moments, new, U), new
        t += 1
        sigma = U.T @ G
        D = inner.send((sigma, turn))
        C = np.zeros_like(G)
        if fira and rank < len(G):
            C = (G - U @ sigma) * column_norms(D) / column_norms(sigma)
            if plus:
                C *= np.linalg.norm(D) / np.linalg.norm(C)
            C, phi = limited(C, phi, 1.01)
        G, _ = yield -lr * alpha * (U @ D + C)


@in_short_side
def apollo(lr, rank, interval=5, variant="random", frames=None):
    """Zhu et al. 2024: P of the state for the random ones."""
    phi = 0.0
    t = 0
    inner = adam_like(0.9, 0.999, 1e-8, True)
    next(inner)
    G, _ = yield
    while True:
        if t % interval == 0:
            P = np.linalg.svd(G)[0][:, :rank].T if variant == "svd" else np.asarray(frames(), np.float64).T
            P = gauge(P.T).T if variant == "svd" else P
        t += 1
        sigma = P @ G
        D = inner.send((sigma, None))
        mini = variant == "mini"
        s = np.linalg.norm(D) / np.linalg.norm(sigma) if mini else column_norms(D) / column_norms(sigma)
        U, phi = limited(G * s, phi, 1.01)
        G, _ = yield -lr * (128**0.5 if mini else 1) * U

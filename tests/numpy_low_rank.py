"""The low-rank optimizers once more, in NumPy, float64; nothing is shared with the package.

They are written from [G], and Fira and Apollo from the code of their authors (xichen-fy/Fira, zhuhanqing/APOLLO on GitHub).

Each is a generator as in numpy_optimizers. Directions that a method draws at random are read from the optimizer's state, by
`frames()`, after finding that they are what they should be: orthonormal, and outside the subspace that they make way for.
"""

import numpy as np
from numpy_optimizers import in_short_side, limited, newton_schulz, root_inverse, seen


def gauge(U):
    return U * np.where(np.take_along_axis(U, np.abs(U).argmax(0)[None], 0) < 0, -1, 1)


def column_norms(X):
    return np.sqrt((X**2).sum(0))


def adam_like(b1, b2, eps, corrected):
    """m / (sqrt(v) + eps) of what is sent, and the same without eps, as limiters see it.

    `turn` is a rotation of its rows, or two of rows and columns, "reset" or None.
    """
    m = v = 0.0
    t = 0
    sigma, turn = yield
    while True:
        if isinstance(turn, str):
            m, v, t = 0.0, 0.0, 0
        elif turn is not None and t > 0:
            L, R = turn if isinstance(turn, tuple) else (turn, np.eye(sigma.shape[1]))
            m, v = L @ m @ R.T, L**2 @ v @ (R**2).T
        t += 1
        m, v = b1 * m + (1 - b1) * sigma, b2 * v + (1 - b2) * sigma**2
        c1, c2 = (1 - b1**t, 1 - b2**t) if corrected else (1.0, 1.0)
        sigma, turn = yield [(m / c1) / (np.sqrt(v / c2) + small) for small in (eps, 0.0)]


def uncorrected(t):
    """What undoes the bias correction of Adam's update after t steps: Fira and Apollo apply it after their limiter."""
    return (1 - 0.9**t) / np.sqrt(1 - 0.999**t)


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


def iterated(before, Qt, G, b3):
    """One subspace iteration on Q = b3 U Q~ U^T + (1 - b3) G G^T, written out, from U = before; its Ritz vectors."""
    Q = b3 * before @ Qt @ before.T + (1 - b3) * G @ G.T
    V = np.linalg.qr(Q @ before)[0]
    return gauge(V @ np.linalg.eigh(V.T @ Q @ V)[1][:, ::-1])


@in_short_side
def alice(
    lr, rank, leading, interval=5, b1=0.9, b2=0.9, b3=0.999, alpha=0.3, alpha_c=0.4, gamma=1.01,
    switch="complement", compensation="optimal", moments="keep", corrected=False, frames=None,
):  # fmt: skip
    """[G]'s algorithm, with an m x m matrix Q and the residual written out."""
    U = None
    Qt = np.zeros((rank, rank))
    p = 0.0
    kept = None
    t = 0
    inner = adam_like(b1, b2, 1e-8, corrected)
    next(inner)
    G, _ = yield
    while True:
        m, turn = len(G), None
        if t % interval == 0:
            before = np.linalg.svd(G)[0][:, :rank] if U is None else U
            new = switched(iterated(before, Qt, G, b3), leading, frames(), switch)
            turn = turned(moments, new, U)
            if moments == "rotate" and U is not None:
                Qt = turn @ Qt @ turn.T
            if moments == "reset":
                Qt = np.zeros((rank, rank))
            U = new
        t += 1
        sigma = U.T @ G
        Qt = b3 * Qt + (1 - b3) * sigma @ sigma.T
        Ds = inner.send((sigma, turn))
        rest = G - U @ sigma
        C = np.zeros_like(G)
        if rank < m and compensation != "none":
            if compensation == "optimal":
                p = b1 * p + (1 - b1) * ((G**2).sum(0) - (sigma**2).sum(0))
                Cs = [np.sqrt(m - rank) * rest / np.sqrt(p / (1 - b1**t if corrected else 1))] * 2
            else:
                Cs = [rest * column_norms(D) / column_norms(sigma) for D in Ds]
            if compensation == "fira+":
                Cs = [C * np.linalg.norm(D) / np.linalg.norm(C) for C, D in zip(Cs, Ds, strict=True)]
            C, kept = limited(*Cs, kept, gamma)
        G, _ = yield -lr * alpha * (U @ Ds[0] + alpha_c * C)


@in_short_side
def alice_muon(lr, **options):
    """The polar factor of Alice's update."""
    inner = alice(-1.0, gamma=np.inf, **options)
    next(inner)
    G, W = yield
    while True:
        G, W = yield -0.2 * lr * max(G.shape) ** 0.5 * newton_schulz(inner.send((G, W)), eps=1e-300)


@in_short_side
def galore(lr, rank, interval=5, alpha=0.3, moments="keep", fira=False, plus=False, frames=None):
    """Zhao et al. 2024; with `fira`, the code of Chen et al. 2024, and with `plus` [G]'s Fira+."""
    factor, whole = (alpha, 1.0) if fira and not plus else (1.0, alpha)
    U = None
    kept = None
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
        Ds = inner.send((sigma, turn))
        C = np.zeros_like(G)
        if fira and (rank < len(G) or not plus):
            Cs = [(G - factor * U @ sigma) * column_norms(D) / column_norms(sigma) for D in Ds]
            if plus:
                Cs = [C * np.linalg.norm(D) / np.linalg.norm(C) for C, D in zip(Cs, Ds, strict=True)]
            C, kept = limited(*Cs, kept, 1.01, uncorrected(t))
        G, _ = yield -lr * whole * (factor * U @ Ds[0] + C)


@in_short_side
def frugal(lr, rank, interval=5, frames=None):
    """Zmushko et al. 2024, with the gradient's own singular vectors: Adam, and the sign of the rest."""
    inner, t = adam_like(0.9, 0.999, 1e-8, True), 0
    next(inner)
    G, _ = yield
    while True:
        turn = None
        if t % interval == 0:
            U, turn = gauge(np.linalg.svd(G)[0][:, :rank]), "reset"
        t += 1
        sigma = U.T @ G
        rest = np.sign(G - U @ sigma) if rank < len(G) else 0.0
        G, _ = yield -lr * (U @ inner.send((sigma, turn))[0] + rest)


@in_short_side
def cosmos(lr, rank, interval=5, b1=0.95, b2=0.95, b3=0.95, frames=None):
    """Liu et al. 2025, of the momentum: Adam's second moments in its subspace, and the polar factor of the rest."""
    inner, t, M, U, Qt = adam_like(0.0, b2, 1e-8, True), 0, 0.0, None, np.zeros((rank, rank))
    next(inner)
    G, _ = yield
    while True:
        M, turn = b1 * M + (1 - b1) * G, None
        X = M / (1 - b1 ** (t + 1))
        if t % interval == 0:
            before = np.linalg.svd(X)[0][:, :rank] if U is None else U
            new = iterated(before, Qt, X, b3)
            if U is not None:
                turn = new.T @ U
                Qt = turn @ Qt @ turn.T
            U = new
        t += 1
        sigma = U.T @ X
        Qt = b3 * Qt + (1 - b3) * sigma @ sigma.T
        rest = newton_schulz(X - U @ sigma, eps=0.0) * max(G.shape) ** 0.5 if rank < len(G) else 0.0
        G, _ = yield -0.2 * lr * (U @ inner.send((sigma, turn))[0] + rest)


@in_short_side
def apollo(lr, rank, interval=5, variant="random", frames=None):
    """The code of Zhu et al. 2024: P of the state for the random ones."""
    kept = None
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
        Ds = inner.send((sigma, None))
        mini = variant == "mini"
        norms = np.linalg.norm if mini else column_norms
        U, kept = limited(*(G * norms(D) / norms(sigma) for D in Ds), kept, 1.01, uncorrected(t))
        G, _ = yield -lr * (128**0.5 if mini else 1) * U


def low_rank_soap(
    lr, rank, leading, interval=5, b1=0.9, b2=0.9, b3=0.999, alpha=0.3, alpha_c=0.4, gamma=1.01,
    switch="complement", moments="keep", frames=None,
):  # fmt: skip
    """Both sides, in bases of the complements too, which are built: each block of F~ a mean over the directions tied."""
    U = [None, None]
    tied = kept = None
    t = 0
    inner = adam_like(b1, b2, 1e-8, False)
    next(inner)
    G, _ = yield
    m, n = G.shape
    r = [min(rank, m), min(rank, n)]
    Qt = [np.zeros((k, k)) for k in r]
    while True:
        turn = None
        if t % interval == 0:
            given, old = frames(), U
            before = [np.linalg.svd(X)[0][:, :k] if u is None else u for X, k, u in zip((G, G.T), r, U, strict=True)]
            sides = zip(before, Qt, (G, G.T), given, strict=True)
            U = [switched(iterated(u, Q, X, b3), leading, g, switch) for u, Q, X, g in sides]
            if moments == "reset":
                turn, Qt, tied = "reset", [0 * Q for Q in Qt], tied and [0.0, 0.0, tied[2]]
            if moments == "rotate" and t > 0:
                L, R = turn = tuple(u.T @ o for u, o in zip(U, old, strict=True))
                Qt = [T @ Q @ T.T for T, Q in zip(turn, Qt, strict=True)]
                tied = [L**2 @ tied[0], R**2 @ tied[1], tied[2]]
        t += 1
        full = [np.concatenate([u, np.linalg.svd(u)[0][:, u.shape[1] :]], 1) for u in U]
        Y = seen(full[0].T @ G @ full[1])  # a first gradient's singular vectors leave nothing beside the leading one
        X, rows, columns, tail = Y[: r[0], : r[1]], Y[: r[0], r[1] :], Y[r[0] :, : r[1]], Y[r[0] :, r[1] :]
        Qt = [b3 * Q + (1 - b3) * W @ W.T for Q, W in zip(Qt, (U[0].T @ G, U[1].T @ G.T), strict=True)]
        now = (rows**2).sum(1) / max(n - r[1], 1), (columns**2).sum(0) / max(m - r[0], 1), (tail**2).sum() / max(tail.size, 1)
        tied = [b1 * old + (1 - b1) * new for old, new in zip(tied or [0.0] * 3, now, strict=True)]
        C = np.zeros_like(Y)
        C[: r[0], r[1] :] = rows * root_inverse(tied[0])[:, None]
        C[r[0] :, : r[1]] = columns * root_inverse(tied[1])
        C[r[0] :, r[1] :] = tail * root_inverse(np.array([tied[2]]))
        C, kept = limited(C, C, kept, gamma)
        C *= alpha_c
        C[: r[0], : r[1]] = inner.send((X, turn))[0]
        G, _ = yield -lr * alpha * full[0] @ C @ full[1].T

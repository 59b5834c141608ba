"""The named optimizers: each a structure, and what stands around it in the chain.

A bare name is the full chain, learning rate first, as in Optax; `scale_by_*` is the direction alone. State is counted in
elements for an m x n matrix, r = min(m, n), beside counters, keys and one number a matrix for a limiter. "[G]" is Gong et
al. 2025 (arXiv 2502.07752), "[D]" Nguyen et al. 2025 (arXiv 2502.07488).
"""

from typing import Any

from jax.typing import DTypeLike
from jaxtyping import ArrayLike, Int

from fimlens.optimizers.full_chain import Number, Transform, full_chain
from fimlens.structures import Diagonal, Eigen, GeometricMarginals, PowerStep, Rotated
from fimlens.transforms.structure_transform import scale_by_structure

Whole = Int[ArrayLike, ""]


def scale_by_shampoo(
    *,
    b1: Number | None = None,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    update_interval: Whole = 10,
    bias_correction: bool = True,
    momentum_dtype: DTypeLike | None = None,
    factor_dtype: DTypeLike | None = None,
) -> Transform:
    """Shampoo (Gupta et al., 2018): H = {R^{1/2} (x) L^{1/2}}, a BOUND; L^{-1/4} G R^{-1/4}, L = E[GG^T]/n, R = E[G^T G]/m.

    The minimiser of [G] Theorem 3.1's upper bound, not the nearest Kronecker product. State: m^2 + n^2, the factors; as
    much again for their cached roots (bases, and m + n eigenvalues); m n with momentum (`b1`). With b2 = 1 the factors are
    sums, as published; below, averages. Every `update_interval` steps the bases are found anew; between, the eigenvalues
    go on in them (diag U^T L U), where published codes keep stale roots: at an interval of 1 the two are one. eps is
    added to the root of each eigenvalue of F~, where Gupta et al. start L and R at eps I.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> state = fl.scale_by_shampoo(update_interval=20).init(jnp.ones((3, 4)))
        >>> factors, bases = state.averaged["3 x 4"], state.frame["3 x 4"].bases
        >>> factors.left.shape, factors.right.shape, bases.left.shape, bases.right.shape
        ((1, 3, 3), (1, 4, 4), (1, 3, 3), (1, 4, 4))
    """
    return scale_by_structure(
        Rotated(GeometricMarginals(), "LR"),
        b1=b1,
        b2=b2,
        eps=eps,
        update_interval=update_interval,
        bias_correction=bias_correction,
        momentum_dtype=momentum_dtype,
        second_moment_dtype=factor_dtype,
        factor_dtype=factor_dtype,
    )


def _soap(call: str, sides: str, refresh: str, **options: Any) -> Transform:
    trackers = {"eigh": Eigen(), "qr": PowerStep()}
    if refresh not in trackers:
        raise ValueError(f"{call}: refresh is one of {', '.join(map(repr, trackers))}; got {refresh!r}")
    return scale_by_structure(Rotated(Diagonal(), sides, trackers[refresh]), momentum="rotated", **options)


def scale_by_soap(
    *,
    b1: Number = 0.95,
    b2: Number = 0.95,
    b3: Number | None = None,
    eps: Number = 1e-8,
    update_interval: Whole = 10,
    refresh: str = "qr",
    turn: str = "after",
    momentum_dtype: DTypeLike | None = None,
    second_moment_dtype: DTypeLike | None = None,
    factor_dtype: DTypeLike | None = None,
) -> Transform:
    """SOAP (Vyas et al., 2024, Algorithm 3): H = {(U_R (x) U_L) D (U_R (x) U_L)^T}, ONE_STEP ([G] Theorem 3.3).

    State: 2 m n + 2 m^2 + 2 n^2: momentum, second moments in the basis, covariances, bases. The momentum is kept as
    coordinates and carried along as the basis turns: the publication's, without rotating it at every step. `refresh` is
    "qr", one power step as published, or "eigh"; the first basis is always by eigh. `turn` is "after" the update, as
    published, when the first step only starts the basis and moves nothing; or "before" it, as in [G]. `b3`, of the
    covariances, is b2 by default. Repaired: the gauge of every basis vector is fixed, and coordinates at rounding get no
    update, so that arbitrary null-space vectors move nothing; eps stands beside the bias-corrected root, as in Adam.

    Examples:
        >>> import jax, jax.numpy as jnp, fimlens as fl
        >>> tx = fl.scale_by_soap(refresh="eigh", turn="before")  # as in [G]; neither is the default
        >>> state = tx.init(jnp.ones((3, 4)))
        >>> sum(x.size for x in jax.tree.leaves((state.frame, state.averaged, state.momentum)))  # 2 m n + 2 m^2 + 2 n^2
        74
    """
    return _soap("soap", "LR", **locals())


def scale_by_osoap(
    *,
    b1: Number = 0.9,
    b2: Number = 0.999,
    b3: Number | None = None,
    eps: Number = 1e-8,
    update_interval: Whole = 10,
    refresh: str = "eigh",
    turn: str = "before",
    momentum_dtype: DTypeLike | None = None,
    second_moment_dtype: DTypeLike | None = None,
    factor_dtype: DTypeLike | None = None,
) -> Transform:
    """One-sided SOAP, [G]'s Eigen-Adam: H = {DiagB(U D_j U^T)}, ONE_STEP ([G] Theorem 3.2), U of the shorter side.

    State: 2 m n + 2 r^2. Options as `soap`'s, with [G]'s order: the basis turns before the update.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> state = fl.scale_by_osoap().init([jnp.ones((3, 4)), jnp.ones((4, 3))])
        >>> state.frame["3 x 4"].bases.left.shape, state.frame["4 x 3"].bases.right.shape  # the shorter side's alone
        ((1, 3, 3), (1, 3, 3))
    """
    return _soap("osoap", "short", **locals())


shampoo = full_chain(scale_by_shampoo)


soap = full_chain(scale_by_soap)


osoap = full_chain(scale_by_osoap)

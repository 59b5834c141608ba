"""Shampoo, SOAP and one-sided SOAP: eigenbases of averaged covariances."""

from typing import Any

from jax.typing import DTypeLike

from fimlens.optimizers.full_chain import Number, Transform, Whole, full_chain
from fimlens.structures import Diagonal, Eigen, GeometricMarginals, PowerStep, Rotated
from fimlens.transforms.dtypes import StateDtypes
from fimlens.transforms.structure_transform import scale_by_structure


def scale_by_shampoo(
    *,
    b1: Number | None = None,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    update_interval: Whole = 10,
    max_basis_dim: Whole | None = 10_000,
    bias_correction: bool = True,
    dtypes: StateDtypes | DTypeLike | None = None,
) -> Transform:
    """Shampoo (Gupta et al., 2018): L^{-1/4} G R^{-1/4}. Use it as the reference that SOAP improves on.

    H = {R^{1/2} (x) L^{1/2}}, a BOUND, with L = E[GG^T]/n and R = E[G^T G]/m: it minimises [G] Theorem 3.1's upper bound and is
    not the nearest Kronecker product. State: m^2 + n^2 for the factors, as many for their bases, and m + n eigenvalues; m n
    with momentum. It differs from Gupta et al. in two ways. Between refreshes the eigenvalues follow the factors in the old
    bases (diag U^T L U), where published code keeps old roots. At an interval of 1 the two agree. And eps is added to the root
    of each eigenvalue, where L and R start at eps I.

    Args:
        b1: decay of the momentum. Default: None, no momentum, as in Gupta et al.
        b2: decay of the factors; 1 sums them, as in Gupta et al. Default: 0.999, as in Adam.
        eps: number added to the root of each eigenvalue. Default: 1e-8, as in Adam.
        update_interval: steps between refreshes of the bases, the first at the first step. Default: 10.
        max_basis_dim: a side longer than this is not rotated, such as the vocabulary of a head. Default: 10000, as in
            SOAP's code; None for no limit.
        bias_correction: whether averages are divided by the weight that they have gathered. Default: True, as in Adam.
        dtypes: `fl.StateDtypes` of the stored state, or one dtype for all of it. Default: None, float32 at least.

    Raises:
        TypeError: (at init) a parameter is not of real floating point.
        ValueError: an option is out of its range.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> state = fl.scale_by_shampoo(update_interval=20).init(jnp.ones((3, 4)))
        >>> factors, bases = state.covariances["3 x 4"], state.bases["3 x 4"]
        >>> factors.left.shape, factors.right.shape, bases.left.shape, bases.right.shape
        ((1, 3, 3), (1, 4, 4), (1, 3, 3), (1, 4, 4))
    """
    return scale_by_structure(
        Rotated(GeometricMarginals(), "LR", max_dim=max_basis_dim),
        b1=b1,
        b2=b2,
        eps=eps,
        update_interval=update_interval,
        bias_correction=bias_correction,
        dtypes=dtypes,
    )


def scale_by_soap(
    *,
    b1: Number = 0.95,
    b2: Number = 0.95,
    b3: Number | None = None,
    eps: Number = 1e-8,
    update_interval: Whole = 10,
    max_basis_dim: Whole | None = 10_000,
    refresh: str = "qr",
    turn: str = "after",
    dtypes: StateDtypes | DTypeLike | None = None,
) -> Transform:
    """SOAP (Vyas et al., 2024, Algorithm 3): Adam in the eigenbases of both sides. Use it where state and products are cheap.

    H = {(U_R (x) U_L) D (U_R (x) U_L)^T}, ONE_STEP ([G] Theorem 3.3). State: 2 m n + 2 m^2 + 2 n^2: momentum, second moments
    in the bases, covariances, bases. The momentum is stored as coordinates and changes basis at a refresh: this equals
    Algorithm 3 and saves a rotation at each step. It differs from Algorithm 3 in three ways. The sign of every basis vector is
    fixed. A coordinate that may be rounding alone gets no update, so that the arbitrary vectors of a null space move nothing.
    And eps is added to the bias-corrected root, as in Adam. Second moments change basis at a refresh, by the squared entries of
    the rotation, and keep the row and column means that the covariances state. The first basis comes from an eigendecomposition
    whatever `refresh` is. Unlike Algorithm 4, and as in the authors' code, "qr" takes vectors in the order of their present
    eigenvalues.

    Args:
        b1: decay of the momentum. Default: 0.95, as in Vyas et al.
        b2: decay of the second moments. Default: 0.95, as in Vyas et al.
        b3: decay of the covariances that the bases follow. Default: None, b2.
        eps: number added to the root of each second moment. Default: 1e-8, as in Vyas et al.
        update_interval: steps between refreshes of the bases, the first at the first step. Default: 10, as in Vyas et al.
        max_basis_dim: a side longer than this is not rotated, such as the vocabulary of a head. Default: 10000, as in
            SOAP's code; None for no limit.
        refresh: "qr", one power step from the old basis, or "eigh", an eigendecomposition. Default: "qr", as in Vyas et al.
        turn: when a refresh takes place. "after" the update: no gradient meets a basis that it chose, and the first step
            only starts the bases and moves nothing. "before" it: as in [G]. Default: "after", as in Vyas et al.
        dtypes: `fl.StateDtypes` of the stored state, or one dtype for all of it. Default: None, float32 at least.

    Raises:
        TypeError: (at init) a parameter is not of real floating point.
        ValueError: an option is out of its range.

    Examples:
        >>> import jax, jax.numpy as jnp, fimlens as fl
        >>> tx = fl.scale_by_soap(refresh="eigh", turn="before")  # as in [G]; neither is the default
        >>> state = tx.init(jnp.ones((3, 4)))
        >>> sum(x.size for x in jax.tree.leaves(state[3:]))  # all but count, weight and key: 2 m n + 2 m^2 + 2 n^2
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
    max_basis_dim: Whole | None = 10_000,
    refresh: str = "eigh",
    turn: str = "before",
    dtypes: StateDtypes | DTypeLike | None = None,
) -> Transform:
    """One-sided SOAP, [G]'s Eigen-Adam: Adam in the eigenbasis of the shorter side. Use it for SOAP's loss with less state.

    H = {DiagB(U D_j U^T)}, ONE_STEP ([G] Theorem 3.2), U of the shorter side. State: 2 m n + 2 r^2. Signs, rounding, eps and
    second moments at a refresh are as in `soap`.

    Args:
        b1: decay of the momentum. Default: 0.9, as in Adam.
        b2: decay of the second moments. Default: 0.999, as in Adam.
        b3: decay of the covariance that the basis follows. Default: None, b2.
        eps: number added to the root of each second moment. Default: 1e-8, as in Adam.
        update_interval: steps between refreshes of the basis, the first at the first step. Default: 10, as in SOAP.
        max_basis_dim: a side longer than this is not rotated, such as the vocabulary of a head. Default: 10000, as in
            SOAP's code; None for no limit.
        refresh: "qr", one power step from the old basis, or "eigh", an eigendecomposition. Default: "eigh", as in [G].
        turn: when a refresh takes place: "before" the update, or "after" it; see `soap`. Default: "before", as in [G].
        dtypes: `fl.StateDtypes` of the stored state, or one dtype for all of it. Default: None, float32 at least.

    Raises:
        TypeError: (at init) a parameter is not of real floating point.
        ValueError: an option is out of its range.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> state = fl.scale_by_osoap().init([jnp.ones((3, 4)), jnp.ones((4, 3))])
        >>> state.bases["3 x 4"].left.shape, state.bases["4 x 3"].right.shape  # the shorter side's alone
        ((1, 3, 3), (1, 3, 3))
    """
    return _soap("osoap", "short", **locals())


def _soap(call: str, sides: str, refresh: str, b3: Number | None, max_basis_dim: Whole | None, **options: Any) -> Transform:
    trackers = {"eigh": Eigen, "qr": PowerStep}
    if refresh not in trackers:
        raise ValueError(f"{call}: refresh is one of {', '.join(map(repr, trackers))}; got {refresh!r}")
    structure = Rotated(Diagonal(), sides, trackers[refresh](b3), max_basis_dim)
    return scale_by_structure(structure, momentum="rotated", **options)


shampoo = full_chain(scale_by_shampoo)


soap = full_chain(scale_by_soap)


osoap = full_chain(scale_by_osoap)

"""KL-Shampoo and KL-SOAP: eigenbases of covariances that are each seen through the inverse of the other."""

from collections.abc import Callable
from typing import Any

from jax.typing import DTypeLike

from fimlens._validate import require_number
from fimlens.divergence import LogDet
from fimlens.optimizers.full_chain import Number, Transform, Whole, full_chain
from fimlens.structures import Diagonal, Marginals, PowerStep, Rotated, Spectrum, Through
from fimlens.transforms.dtypes import StateDtypes
from fimlens.transforms.structure_transform import scale_by_structure


def scale_by_kl_shampoo(
    *,
    b1: Number = 0.9,
    b2: Number = 0.98,
    eps: Number = 1e-8,
    update_interval: Whole = 10,
    max_basis_dim: Whole | None = 10_000,
    clamp: Number | None = 4000.0,
    dtypes: StateDtypes | DTypeLike | None = None,
) -> Transform:
    """KL-Shampoo (Lin et al., 2025): the Kronecker product nearest in LogDet. Use it for Shampoo's state without grafting.

    H = {R (x) L}, LIMIT under LogDet: L = E[G R^{-1} G^T]/n and R = E[G^T L^{-1} G]/m at its fixed point. Each gradient is seen
    through the factors before it. State: m n + 2 m^2 + 2 n^2 + m + n: momentum, factors, bases, eigenvalues; no second moments.
    The momentum is stored as coordinates, as in `soap`. Differences from the authors' code. The factor that the other is seen
    through is scaled to the mean 1, so that averages hold the scale of the gradients and are bias corrected. Theirs start all
    eigenvalues at 0.1. The clamp counts from that mean, and holds for what is seen, not for the update. The update has the
    current gradient in its eigenvalues. At a refresh the eigenvalues become those that the factors state in the new bases.
    Vectors enter QR by their present eigenvalues, and signs and rounding are as in `soap`.

    Args:
        b1: decay of the momentum. Default: 0.9, as in Lin et al.
        b2: decay of the factors and of their eigenvalues. Default: 0.98, as in Lin et al.
        eps: number added to the root of each eigenvalue. Default: 1e-8, as in Lin et al.
        update_interval: steps between refreshes of the bases, each one power step; the first is at the first step, which
            moves nothing. Default: 10, as in Lin et al.
        max_basis_dim: a side longer than this is not rotated, such as the vocabulary of a head. Default: 10000, as in
            SOAP's code; None for no limit.
        clamp: bound on 1/sqrt(x) for the entries x of a factor that the other is seen through; at most the factor's length,
            and at least 10. Default: 4000, as in the authors' code; None for no bound.
        dtypes: `fl.StateDtypes` of the stored state, or one dtype for all of it. Default: None, float32 at least.

    Raises:
        TypeError: (at init) a parameter is not of real floating point.
        ValueError: an option is out of its range.

    Examples:
        >>> import jax, jax.numpy as jnp, fimlens as fl
        >>> state = fl.scale_by_kl_shampoo().init(jnp.ones((3, 4)))
        >>> sum(x.size for x in jax.tree.leaves(state[3:]))  # all but count, weight and key: m n + 2 m^2 + 2 n^2 + m + n
        69
    """
    return _kl("kl_shampoo", lambda factors: factors, **locals())


def scale_by_kl_soap(
    *,
    b1: Number = 0.9,
    b2: Number = 0.98,
    eps: Number = 1e-8,
    update_interval: Whole = 10,
    max_basis_dim: Whole | None = 10_000,
    clamp: Number | None = 4000.0,
    dtypes: StateDtypes | DTypeLike | None = None,
) -> Transform:
    """KL-SOAP (Lin et al., 2025): Adam in the bases of KL-Shampoo. Use it where `soap` suits, for bases of less noise.

    H = {(U_R (x) U_L) D (U_R (x) U_L)^T}, ONE_STEP: `soap`'s, in the bases of `kl_shampoo`'s factors, from which it differs
    as stated there. State: 2 m n + 2 m^2 + 2 n^2 + m + n. Second moments turn with the bases, as in `soap`.

    Args:
        b1: decay of the momentum. Default: 0.9, as in Lin et al.
        b2: decay of second moments, factors and their eigenvalues. Default: 0.98, as in Lin et al.
        eps: number added to the root of each second moment. Default: 1e-8, as in Lin et al.
        update_interval: steps between refreshes of the bases, each one power step; the first is at the first step, which
            moves nothing. Default: 10, as in Lin et al.
        max_basis_dim: a side longer than this is not rotated, such as the vocabulary of a head. Default: 10000, as in
            SOAP's code; None for no limit.
        clamp: bound on 1/sqrt(x) for the entries x of a factor that the other is seen through; at most the factor's length,
            and at least 10. Default: 4000, as in the authors' code; None for no bound.
        dtypes: `fl.StateDtypes` of the stored state, or one dtype for all of it. Default: None, float32 at least.

    Raises:
        TypeError: (at init) a parameter is not of real floating point.
        ValueError: an option is out of its range.

    Examples:
        >>> import jax, jax.numpy as jnp, fimlens as fl
        >>> state = fl.scale_by_kl_soap().init(jnp.ones((3, 4)))
        >>> moments, (rows, columns) = state.averaged["3 x 4"]  # Adam's, and the eigenvalues of the factors
        >>> moments.shape, rows.shape, columns.shape
        ((1, 3, 4), (1, 3, 1), (1, 1, 4))
    """
    return _kl("kl_soap", lambda factors: Through(Diagonal(), factors), **locals())


def _kl(
    call: str, inner: Callable[[Spectrum], Spectrum], clamp: Number | None, max_basis_dim: Whole | None, **options: Any
) -> Transform:
    require_number(call, "clamp", clamp, 1)
    structure = Rotated(inner(Marginals(LogDet(), clamp)), "LR", PowerStep(), max_basis_dim)
    return scale_by_structure(structure, turn="after", momentum="rotated", **options)


kl_shampoo = full_chain(scale_by_kl_shampoo)


kl_soap = full_chain(scale_by_kl_soap)

"""Low-rank SOAP: a low-rank eigenbasis on both sides."""

import optax
from jax.typing import DTypeLike

from fimlens.optimizers.alice import Whole, require_leading
from fimlens.optimizers.full_chain import Number, Transform, full_chain
from fimlens.structures import Corner
from fimlens.structures.subspaces import SubspaceIteration
from fimlens.transforms.corner_transform import scale_by_corner


def scale_by_low_rank_soap(
    *,
    rank: Whole,
    leading: Whole,
    update_interval: Whole | None = 200,
    b1: Number = 0.9,
    b2: Number = 0.9,
    b3: Number = 0.999,
    alpha: Number = 0.3,
    alpha_c: Number = 0.4,
    gamma: Number | None = 1.01,
    switch: str = "complement",
    moments: str = "reset",
    bias_correction: bool = False,
    eps: Number = 1e-8,
    momentum_dtype: DTypeLike | None = None,
    second_moment_dtype: DTypeLike | None = None,
    factor_dtype: DTypeLike | None = None,
    seed: Whole = 0,
) -> Transform:
    """Low-rank SOAP, not in either paper: H = Corner(rank), ONE_STEP in U and V; the eigenvalues EXACT given them.

    Alice on both sides: momentum and second moments of the (r1, r2) corner U^T G V, one number for each row of U^T G and
    each column of G V beyond it, and one for the rest (docs/corner.md). State: m r1 + n r2 + 2 r1 r2 + r1^2 + r2^2 + r1 + r2
    + 1, with r1 = min(rank, m), r2 = min(rank, n). Options as `alice`'s; each side is tracked and switched by itself.
    The default of `moments` is Alice's, and was not measured here.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> state, _ = fl.scale_by_low_rank_soap(rank=2, leading=1).init(jnp.ones((3, 4)))
        >>> [side.basis.shape for side in state.subspaces["3 x 4"]], state.inner.momentum["3 x 4"].shape
        ([(1, 3, 2), (1, 4, 2)], (1, 2, 2))
    """
    require_leading("low_rank_soap", rank, leading)
    return optax.chain(
        scale_by_corner(
            Corner(rank),
            SubspaceIteration(leading, b3, switch),
            b1=b1,
            b2=b2,
            alpha_c=alpha_c,
            gamma=gamma,
            eps=eps,
            update_interval=update_interval,
            moments=moments,
            bias_correction=bias_correction,
            momentum_dtype=momentum_dtype,
            second_moment_dtype=second_moment_dtype,
            factor_dtype=factor_dtype,
            seed=seed,
        ),
        optax.scale(alpha),
    )


low_rank_soap = full_chain(scale_by_low_rank_soap, adam_factor=0.3)

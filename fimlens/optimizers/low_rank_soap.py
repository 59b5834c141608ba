"""Low-rank SOAP: a low-rank eigenbasis on both sides."""

import optax
from jax.typing import DTypeLike

from fimlens.optimizers.alice import require_leading
from fimlens.optimizers.full_chain import Number, Transform, Whole, full_chain
from fimlens.structures import Diagonal, LowRank
from fimlens.structures.subspace_iteration import SubspaceIteration
from fimlens.transforms.dtypes import StateDtypes
from fimlens.transforms.low_rank_transform import scale_by_low_rank


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
    dtypes: StateDtypes | DTypeLike | None = None,
    seed: Whole = 0,
) -> Transform:
    """Low-rank SOAP (docs/corner.md): Alice with a subspace on both sides. Use it for less state than Alice's.

    H = LowRank(Diagonal(), rank, sides="LR"), ONE_STEP in U and V; the eigenvalues are EXACT given both. [G] leaves it to
    future work. U^T G V has a momentum and second moments. Each row of U^T G and each column of G V has one number beyond it,
    and the rest of the matrix has one in all. Each side is tracked and switched on its own. State: m r1 + n r2 + 2 r1 r2 + r1^2
    + r2^2 + r1 + r2 + 1, with r1 = min(rank, m) and r2 = min(rank, n).

    Args:
        rank: dimension of each subspace.
        leading: directions of each side that a refresh keeps; it switches the other rank - leading.
        update_interval: steps between refreshes, the first at the first step; None for that one alone. Default: 200, as in
            Alice.
        b1: decay of the momentum and of the squares outside the subspaces. Default: 0.9, as in Alice.
        b2: decay of the second moments of U^T G V. Default: 0.9, as in Alice.
        b3: decay of the tracked averages, one for each side; 0 for no tracking. Default: 0.999, as in Alice.
        alpha: factor of the whole update, so that matrices can share a rate with other leaves. Default: 0.3, as in Alice.
        alpha_c: factor of the compensation, within alpha. Default: 0.4, as in Alice.
        gamma: largest growth of the compensation's norm in one step, by the rule of `fl.limit_norm_growth`; None for no limit.
            Default: 1.01, as in Alice.
        switch: where new directions come from: "complement", "full", "gaussian", "gaussian-mix" or "none"; see
            `fl.SubspaceIteration`. Default: "complement", as in Alice.
        moments: what a refresh does to momentum, second moments and tracked averages. "keep" leaves them as if the bases had
            not moved, "rotate" takes them into the new bases, and "reset" sets them to zero. Default: "reset", as in `alice`;
            not measured here.
        bias_correction: whether averages are divided by the weight that they have gathered. Default: False, as in Alice.
        eps: number added to the root of each second moment of U^T G V. Default: 1e-8, as in Adam.
        dtypes: `fl.StateDtypes` of the stored state, or one dtype for all of it. Default: None, float32 at least.
        seed: seed of the random key that refreshes draw from. Default: 0.

    Raises:
        TypeError: rank or leading is not a whole number, or (at init) a parameter is not of real floating point.
        ValueError: an option is out of its range, or leading is over rank.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> state, _ = fl.scale_by_low_rank_soap(rank=2, leading=1).init(jnp.ones((3, 4)))
        >>> stack = state.stacks["3 x 4"]
        >>> stack.left.basis.shape, stack.right.basis.shape, stack.lead.momentum.shape
        ((1, 3, 2), (1, 4, 2), (1, 2, 2))
    """
    require_leading("low_rank_soap", rank, leading)
    direction = scale_by_low_rank(
        LowRank(Diagonal(), rank, sides="LR", tracker=SubspaceIteration(leading, b3, switch, seed)),
        b1=b1,
        b2=b2,
        alpha_c=alpha_c,
        gamma=gamma,
        eps=eps,
        update_interval=update_interval,
        moments=moments,
        bias_correction=bias_correction,
        dtypes=dtypes,
    )
    return optax.chain(direction, optax.scale(alpha))


low_rank_soap = full_chain(scale_by_low_rank_soap, adam_factor=0.3)

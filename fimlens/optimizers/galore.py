"""GaLore, Fira and Apollo: Adam in a subspace of the current gradient, or of random directions."""

from typing import Any

import optax
from jax.typing import DTypeLike

from fimlens._validate import require_rank
from fimlens.optimizers.full_chain import Number, Transform, Whole, full_chain
from fimlens.structures import Diagonal, Drop, LowRank
from fimlens.structures.trackers import RandomProjection, Singular
from fimlens.transforms import compensation as rules
from fimlens.transforms.dtypes import StateDtypes
from fimlens.transforms.low_rank_transform import scale_by_low_rank


def scale_by_galore(
    *,
    rank: Whole,
    update_interval: Whole | None = 200,
    b1: Number = 0.9,
    b2: Number = 0.999,
    alpha: Number = 0.3,
    moments: str = "keep",
    eps: Number = 1e-8,
    dtypes: StateDtypes | DTypeLike | None = None,
) -> Transform:
    """GaLore (Zhao et al., 2024): Adam in the gradient's leading subspace. Use it as the low-rank baseline.

    H = LowRank(Diagonal(), rank, Drop()), ONE_STEP: nothing outside the subspace moves. State: 2 n r + m r with r = rank. U
    holds the leading left singular vectors of the current gradient. [G]'s learning rate is 0.02, and 0.01 at 1.3B.

    Args:
        rank: dimension r of the subspace. [G] takes 128 at 60M parameters, 256 at 130M and 350M, 512 at 1.3B.
        update_interval: steps between refreshes, the first at the first step; None for that one alone. Default: 200, as in
            Zhao et al.
        b1: decay of the momentum. Default: 0.9, as in Adam.
        b2: decay of the second moments. Default: 0.999, as in Adam.
        alpha: factor of the whole update, so that matrices can share a rate with other leaves. Default: 0.3, as in [G], which
            has 0.25 at 1.3B.
        moments: what a refresh does to momentum and second moments: "keep" them as if the basis had not moved, "rotate" them
            into the new basis, or "reset" them to zero. Default: "keep", as in Zhao et al. and `optax.contrib.galore`.
        eps: number added to the root of each second moment. Default: 1e-8, as in Adam.
        dtypes: `fl.StateDtypes` of the stored state, or one dtype for all of it. Default: None, float32 at least.

    Raises:
        TypeError: rank is not a whole number, or (at init) a parameter is not of real floating point.
        ValueError: an option is out of its range.

    Examples:
        >>> import jax, jax.numpy as jnp, fimlens as fl
        >>> state, _ = fl.scale_by_galore(rank=2).init(jnp.ones((3, 4)))
        >>> stack = state.stacks["3 x 4"]
        >>> stack.lead.momentum.shape, stack.lead.averaged.shape, jax.tree.leaves(stack.complement)
        ((1, 2, 4), (1, 2, 4), [])
    """
    return in_subspace_of_gradient("galore", rules.none, gamma=None, **locals())


def scale_by_fira(
    *,
    rank: Whole,
    update_interval: Whole | None = 200,
    b1: Number = 0.9,
    b2: Number = 0.999,
    alpha: Number = 0.3,
    gamma: Number | None = 1.01,
    plus: bool = False,
    moments: str = "keep",
    eps: Number = 1e-8,
    dtypes: StateDtypes | DTypeLike | None = None,
) -> Transform:
    """Fira (Chen et al., 2024): `galore` that also moves outside the subspace. Use it where GaLore's loss is too high.

    Outside the subspace each column of the gradient is scaled by ||D_j|| / ||sigma_j||, with sigma = U^T G and D what Adam
    makes of it, and the norm's growth is limited. The update in the subspace is that of LowRank(Diagonal(), rank, Drop()),
    ONE_STEP in U; the compensation belongs to no structure. State: 2 n r + m r with r = rank.

    The factor alpha is that of the authors' code. It multiplies the lead U D alone, and what is scaled and limited is G - alpha
    U U^T G, in full strength. The paper and [G] write G - U U^T G; [G] gives alpha = 0.3 and does not say what it multiplies.
    As in that code, the limiter sees norms before bias correction. Unlike there, it sees them without eps, so that a tiny first
    gradient freezes nothing, and a norm may return to where it was after a tiny update (`fl.limit_norm_growth`). We add eps to
    the bias-corrected root, and fix signs of U.

    Args:
        rank: dimension r of the subspace. [G] takes 128 at 60M parameters, 256 at 130M and 350M, 512 at 1.3B.
        update_interval: steps between refreshes, the first at the first step; None for that one alone. Default: 200, as in [G].
        b1: decay of the momentum. Default: 0.9, as in Adam.
        b2: decay of the second moments. Default: 0.999, as in Adam.
        alpha: factor of the lead; with `plus`, of the whole update. Default: 0.3, as in [G], which has 0.25 at 1.3B. The code
            of Chen et al. has 1.
        gamma: largest growth of the compensation's norm in one step; None for no limit. Default: 1.01, as in Chen et al.
        plus: whether to take [G]'s Fira+: G - U U^T G is scaled to the norm of D before it is limited. Default: False, as in
            Chen et al.
        moments: what a refresh does to momentum and second moments: "keep" them as if the basis had not moved, "rotate" them
            into the new basis, or "reset" them to zero. Default: "keep", as in Chen et al.
        eps: number added to the root of each second moment. Default: 1e-8, as in Adam.
        dtypes: `fl.StateDtypes` of the stored state, or one dtype for all of it. Default: None, float32 at least.

    Raises:
        TypeError: rank is not a whole number, or (at init) a parameter is not of real floating point.
        ValueError: an option is out of its range.

    Examples:
        >>> import jax, jax.numpy as jnp, fimlens as fl
        >>> w = jnp.ones((3, 4))
        >>> fira_plus, galore = fl.scale_by_fira(rank=2, plus=True), fl.scale_by_galore(rank=2)
        >>> [sum(x.size for x in jax.tree.leaves(tx.init(w))) for tx in (fira_plus, galore)]  # four more, for the limiter
        [28, 24]
    """
    options = locals()
    if options.pop("plus"):
        return in_subspace_of_gradient("fira", rules.matched_column_ratios, **options)
    return in_subspace_of_gradient("fira", rules.column_ratios, **options | {"alpha": 1.0, "lift": alpha})


def scale_by_apollo(
    *,
    rank: Whole | None = None,
    variant: str = "random",
    update_interval: Whole | None = 200,
    b1: Number = 0.9,
    b2: Number = 0.999,
    alpha: Number | None = None,
    gamma: Number | None = 1.01,
    moments: str = "keep",
    eps: Number = 1e-8,
    dtypes: StateDtypes | DTypeLike | None = None,
    seed: Whole = 0,
) -> Transform:
    """Apollo (Zhu et al., 2024): the gradient with Adam's scale of each column, estimated in a subspace. Use it to save state.

    Column j of the gradient is scaled by ||D_j|| / ||sigma_j||, with sigma = P G and D what Adam makes of it; the growth of
    the update's norm is limited. This update belongs to no structure. State: 2 n r with r = rank (2 n for "mini"), and m r
    more for "svd"; a random P is stored as its key.

    As in the authors' code, the limiter sees norms before alpha and before bias correction. Unlike there, it sees them without
    eps, so that a tiny first gradient freezes nothing, and a norm may return to where it was after a tiny update
    (`fl.limit_norm_growth`). We add eps to the bias-corrected root.

    Args:
        rank: dimension r of the subspace; it has no effect on "mini", whose rank is 1. Default: None, for "mini" alone.
        variant: "random" takes P with entries N(0, 1/r), new at each refresh. "svd" takes as P the leading left singular
            vectors of the current gradient. "mini" is random with rank 1 and one scale for the whole matrix. Default: "random".
        update_interval: steps between refreshes, the first at the first step; None for that one alone. Default: 200, as in
            Zhu et al.
        b1: decay of the momentum of sigma. Default: 0.9, as in Adam.
        b2: decay of the second moments of sigma. Default: 0.999, as in Adam.
        alpha: factor of the whole update. Default: None, 1, and 128^(1/2) for "mini", as in Zhu et al.
        gamma: largest growth of the update's norm in one step; None for no limit. Default: 1.01, as in Fira.
        moments: what a refresh does to momentum and second moments. "keep" leaves them as if the basis had not moved, "rotate"
            takes them into the new basis ("svd" alone), and "reset" sets them to zero. Default: "keep", as in Zhu et al.
        eps: number added to the root of each second moment. Default: 1e-8, as in Adam.
        dtypes: `fl.StateDtypes` of the stored state, or one dtype for all of it. Default: None, float32 at least.
        seed: seed of the random key that refreshes draw from. Default: 0.

    Raises:
        TypeError: rank is not a whole number, or (at init) a parameter is not of real floating point.
        ValueError: an option is out of its range, or rank is missing.

    Examples:
        >>> import jax, jax.numpy as jnp, fimlens as fl
        >>> variants = fl.scale_by_apollo(rank=2), fl.scale_by_apollo(rank=2, variant="svd"), fl.scale_by_apollo(variant="mini")
        >>> stacks = [tx.init(jnp.ones((3, 4)))[0].stacks["3 x 4"] for tx in variants]
        >>> [stack.left.basis.shape for stack in stacks]  # a key, a basis, a key
        [(1, 2), (1, 3, 2), (1, 2)]
        >>> [stack.lead.momentum.shape for stack in stacks]
        [(1, 2, 4), (1, 2, 4), (1, 1, 4)]
    """
    if variant not in ("random", "svd", "mini"):
        raise ValueError(f'apollo: variant is "random", "svd" or "mini"; got {variant!r}')
    mini = variant == "mini"
    if rank is None and not mini:
        raise ValueError(f'apollo: "{variant}" needs a rank, such as rank=128; only "mini" has its own.')
    if not mini:
        require_rank("apollo", rank)
    direction = scale_by_low_rank(
        LowRank(Diagonal(), 1 if mini else rank, Drop(), tracker=Singular() if variant == "svd" else RandomProjection(seed)),
        compensation=rules.matrix_ratio if mini else rules.column_ratios,
        lift=False,
        b1=b1,
        b2=b2,
        gamma=gamma,
        eps=eps,
        update_interval=update_interval,
        moments=moments,
        dtypes=dtypes,
    )
    return optax.chain(direction, optax.scale((128**0.5 if mini else 1.0) if alpha is None else alpha))


def in_subspace_of_gradient(
    call: str, rule: rules.Compensation, *, rank: Whole, alpha: Number = 1.0, **options: Any
) -> Transform:
    """Adam in the leading subspace of the gradient, with a rule for what it leaves out; and `alpha` times all of it."""
    require_rank(call, rank)
    direction = scale_by_low_rank(LowRank(Diagonal(), rank, Drop(), tracker=Singular()), compensation=rule, **options)
    return optax.chain(direction, optax.scale(alpha))


galore = full_chain(scale_by_galore, adam_factor=0.3)


fira = full_chain(scale_by_fira, adam_factor=0.3)


apollo = full_chain(scale_by_apollo)

"""GaLore, Fira and Apollo: low rank, in the subspace of the current gradient."""

from typing import Any

import optax
from jax.typing import DTypeLike

from fimlens.optimizers.alice import Whole
from fimlens.optimizers.full_chain import Number, Transform, full_chain
from fimlens.structures import Diagonal, Drop, LowRank
from fimlens.structures.low_rank import require_rank
from fimlens.structures.subspaces import CurrentGradient, RandomProjection
from fimlens.transforms import compensation as rules
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
    momentum_dtype: DTypeLike | None = None,
    second_moment_dtype: DTypeLike | None = None,
    factor_dtype: DTypeLike | None = None,
) -> Transform:
    """GaLore (Zhao et al., 2024): H = LowRank(Diagonal(), rank, Drop()), ONE_STEP: Adam in the subspace, nothing outside.

    State: 2 n r + m r. U is the leading left singular vectors of the current gradient. [G]'s rate is 0.02 (at 1.3B 0.01, and
    alpha 0.25). The moments are kept at a refresh, as published and as in `optax.contrib.galore`.

    Examples:
        >>> import jax, jax.numpy as jnp, fimlens as fl
        >>> state, _ = fl.scale_by_galore(rank=2).init(jnp.ones((3, 4)))
        >>> state.inner.momentum["3 x 4"].shape, state.inner.averaged["3 x 4"].shape, jax.tree.leaves(state.tail)
        ((1, 2, 4), (1, 2, 4), [])
    """
    return _on_current_gradient("galore", rules.none, gamma=None, **locals())


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
    momentum_dtype: DTypeLike | None = None,
    second_moment_dtype: DTypeLike | None = None,
    factor_dtype: DTypeLike | None = None,
) -> Transform:
    """Fira (Chen et al., 2024): `galore`, and the rest of each column times ||D_j|| / ||sigma_j||, its norm's growth limited.

    The lead is LowRank(Diagonal(), rank, Drop())'s, ONE_STEP in U; the compensation is no structure's. State: 2 n r + m r.
    `plus` is [G]'s Fira+: the compensation is first brought to the norm of the lead's update.

    Examples:
        >>> import jax, jax.numpy as jnp, fimlens as fl
        >>> w = jnp.ones((3, 4))
        >>> fira_plus, galore = fl.scale_by_fira(rank=2, plus=True), fl.scale_by_galore(rank=2)
        >>> [sum(x.size for x in jax.tree.leaves(tx.init(w))) for tx in (fira_plus, galore)]  # one more, of the limiter
        [30, 29]
    """
    rule = rules.matched_column_ratios if plus else rules.column_ratios
    options = locals()
    del options["plus"], options["rule"]
    return _on_current_gradient("fira", rule, **options)


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
    momentum_dtype: DTypeLike | None = None,
    second_moment_dtype: DTypeLike | None = None,
    factor_dtype: DTypeLike | None = None,
    seed: Whole = 0,
) -> Transform:
    """Apollo (Zhu et al., 2024): the gradient, column j times ||D_j|| / ||sigma_j||, D what Adam makes of sigma = P G.

    No structure's update, but an estimate of Adam's scale a column. `variant` is "random", P of entries N(0, 1/r) drawn anew
    at each refresh; "svd", P the leading left singular vectors of the current gradient; or "mini", random with rank 1 and
    one scale for the whole matrix. State: 2 n r (2 n for "mini"), and m r more for "svd"; a random P is kept as its key.
    `alpha` is 1 by default, and 128^(1/2) for "mini", as published; the growth of the whole update's norm is limited.

    Examples:
        >>> import jax, jax.numpy as jnp, fimlens as fl
        >>> variants = fl.scale_by_apollo(rank=2), fl.scale_by_apollo(rank=2, variant="svd"), fl.scale_by_apollo(variant="mini")
        >>> states = [tx.init(jnp.ones((3, 4)))[0] for tx in variants]
        >>> [jax.tree.leaves(state.subspaces)[0].shape for state in states]  # a key, a basis, a key
        [(1, 2), (1, 3, 2), (1, 2)]
        >>> [state.inner.momentum["3 x 4"].shape for state in states]
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
        LowRank(Diagonal(), 1 if mini else rank, Drop()),
        CurrentGradient() if variant == "svd" else RandomProjection(),
        compensation=rules.matrix_ratio if mini else rules.column_ratios,
        lift=False,
        b1=b1,
        b2=b2,
        gamma=gamma,
        eps=eps,
        update_interval=update_interval,
        moments=moments,
        momentum_dtype=momentum_dtype,
        second_moment_dtype=second_moment_dtype,
        factor_dtype=factor_dtype,
        seed=seed,
    )
    return optax.chain(direction, optax.scale((128**0.5 if mini else 1.0) if alpha is None else alpha))


def _on_current_gradient(call: str, rule: rules.Compensation, *, rank: Whole, alpha: Number, **options: Any) -> Transform:
    require_rank(call, rank)
    direction = scale_by_low_rank(LowRank(Diagonal(), rank, Drop()), CurrentGradient(), compensation=rule, **options)
    return optax.chain(direction, optax.scale(alpha))


galore = full_chain(scale_by_galore, adam_factor=0.3)


fira = full_chain(scale_by_fira, adam_factor=0.3)


apollo = full_chain(scale_by_apollo)

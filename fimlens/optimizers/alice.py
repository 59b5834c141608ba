"""Alice and Alice-0 ([G]): Adam in a tracked and switched subspace, and a compensation for the rest of each column.

The update of every low-rank optimizer is one expression: see `fl.scale_by_low_rank`. A matrix with m > n is transposed, and one
whose shorter side is below `rank` is seen whole.
"""

from numbers import Integral
from typing import Any

import optax
from jax.typing import DTypeLike

from fimlens._validate import require_rank
from fimlens.optimizers.docstrings import takes_over
from fimlens.optimizers.full_chain import Number, Transform, Whole, full_chain
from fimlens.structures import Columns, Diagonal, Drop, LowRank
from fimlens.structures.subspace_iteration import SubspaceIteration
from fimlens.transforms import compensation as rules
from fimlens.transforms.dtypes import StateDtypes
from fimlens.transforms.low_rank_transform import scale_by_low_rank

COMPENSATIONS = {
    "optimal": rules.nearest,
    "fira": rules.column_ratios,
    "fira+": rules.matched_column_ratios,
    "none": rules.none,
}


def scale_by_alice(
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
    compensation: str = "optimal",
    moments: str = "reset",
    bias_correction: bool = False,
    eps: Number = 1e-8,
    dtypes: StateDtypes | DTypeLike | None = None,
    seed: Whole = 0,
) -> Transform:
    """Alice ([G]): Adam in a subspace, compensated outside it. Use it for a low loss with little state and a cheap step.

    H = LowRank(Diagonal(), rank, Columns()), ONE_STEP in U; the complement is EXACT given U ([G] Theorem 5.1). State:
    2 n r + m r + n + r^2 with r = rank: momentum and second moments of sigma = U^T G, U, p and Q~. [G]'s learning rate is 0.02.

    Differences from [G]. After the r x r eigenproblem the basis is U V, where Algorithm 10 returns V. The first basis holds
    the leading left singular vectors of the first gradient, because an iteration from zero finds nothing. Eigenvectors have a
    fixed sign. eps is added to the roots of the second moments of sigma. A matrix with m > n is transposed. There is no
    compensation where the subspace leaves nothing: for m = r, and for columns that lie in it to rounding. If the complement
    has fewer than rank - leading directions, all of them are switched in.

    Args:
        rank: dimension r of the subspace. [G] takes 128 at 60M parameters, 256 at 130M and 350M, 512 at 1.3B.
        leading: directions that a refresh keeps; it switches the other rank - leading. [G] takes 40, and 160 at 1.3B.
        update_interval: steps between refreshes, the first at the first step; None for that one alone. Default: 200, as in [G].
        b1: decay of the momentum and of p, the squares outside the subspace. Default: 0.9, as in [G].
        b2: decay of the second moments of sigma. Default: 0.9, as in [G].
        b3: decay of Q~, the average of sigma sigma^T that a refresh tracks; 0 for no tracking. Default: 0.999, as in [G].
        alpha: factor of the whole update, so that matrices can share a rate with other leaves. Default: 0.3, as in [G], which
            has 0.25 at 1.3B.
        alpha_c: factor of the compensation, within alpha. Default: 0.4, as in [G], which has 0.2 at 1.3B.
        gamma: largest growth of the compensation's norm in one step, by the rule of `fl.limit_norm_growth`; None for no limit.
            Default: 1.01, as in [G].
        switch: where new directions come from: "complement", "full", "gaussian", "gaussian-mix" or "none"; see
            `fl.SubspaceIteration`. Default: "complement", as in [G].
        compensation: the scale of each column outside the subspace: "optimal" ([G] Theorem 5.1), "fira", "fira+" or "none".
            Default: "optimal", as in [G].
        moments: what a refresh does to momentum, second moments and Q~. "keep" leaves them as if the basis had not moved, as in
            [G]. "rotate" takes them into the new basis, and "reset" sets them to zero. Default: "reset", on thin ground: over
            three seeds of a small language model the means were 1.718 nats a byte for "reset", 1.721 for "rotate" and 1.733 for
            "keep". Seeds differ by 0.02, one favours "rotate", and the rate was tuned for "keep" (benchmarks/README.md). With
            "reset", tracking reaches back one interval only.
        bias_correction: whether averages are divided by the weight that they have gathered. Default: False, as in [G].
        eps: number added to the root of each second moment of sigma. Default: 1e-8, as in Adam.
        dtypes: `fl.StateDtypes` of the stored state, or one dtype for all of it. Default: None, float32 at least.
        seed: seed of the random key that refreshes draw from. Default: 0.

    Raises:
        TypeError: rank or leading is not a whole number, or (at init) a parameter is not of real floating point.
        ValueError: an option is out of its range, or leading is over rank.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> state, _ = fl.scale_by_alice(rank=2, leading=1).init(jnp.ones((3, 4)))
        >>> stack = state.stacks["3 x 4"]
        >>> stack.left.basis.shape, stack.left.average.shape  # U and Q~
        ((1, 3, 2), (1, 2, 2))
        >>> stack.lead.momentum.shape, stack.complement.columns.shape  # of sigma; p, one number for each column
        ((1, 2, 4), (1, 1, 4))
    """
    require_leading("alice", rank, leading)
    if compensation not in COMPENSATIONS:
        raise ValueError(f"alice: compensation is one of {', '.join(map(repr, COMPENSATIONS))}; got {compensation!r}")
    # The other rules need no average of the squares outside, and Drop() stores none.
    complement = Columns() if compensation == "optimal" else Drop()
    direction = scale_by_low_rank(
        LowRank(Diagonal(), rank, complement, tracker=SubspaceIteration(leading, b3, switch, seed)),
        compensation=COMPENSATIONS[compensation],
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


@takes_over(scale_by_alice, without=("b3",))
def scale_by_alice0(**options: Any) -> Transform:
    """Alice-0 ([G]): `alice` without tracking, b3 = 0. Use it to save Q~.

    H, claim and differences from [G] are Alice's. State: 2 n r + m r + n. A refresh follows the current gradient alone. [G]
    reports about the same perplexity as Alice's at 1.3B parameters.

    Raises:
        TypeError: as `scale_by_alice`.
        ValueError: as `scale_by_alice`.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> state, _ = fl.scale_by_alice0(rank=2, leading=1).init(jnp.ones((3, 4)))
        >>> state.stacks["3 x 4"].left.average is None  # no Q~
        True
    """
    return scale_by_alice(b3=0.0, **options)


def require_leading(call: str, rank: Any, leading: Any) -> None:
    """Refuse a rank and a number of leading directions that do not go together.

    Raises:
        TypeError: one is not a whole number.
        ValueError: rank is not positive, or leading is over it.
    """
    for name, value in (("rank", rank), ("leading", leading)):
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(
                f"{call}: {name} is a whole number, as it makes shapes; got {value!r}. "
                f'Under optax.inject_hyperparams, name it static: static_args=("rank", "leading").'
            )
    require_rank(call, rank)
    if leading > rank:
        raise ValueError(f"{call}: {leading} leading directions are over the rank, {rank}. Take leading <= rank.")


alice = full_chain(scale_by_alice, adam_factor=0.3)


alice0 = full_chain(scale_by_alice0, adam_factor=0.3)

"""The named optimizers of low rank: each a tracker of the subspace, and a compensation for what it leaves out.

Their updates are one expression: see `scale_by_low_rank`. Alice and Alice-0 are of [G], Gong et al. 2025 (arXiv 2502.07752),
GaLore, Fira and Apollo of their authors; `low_rank_soap` is derived in docs/corner.md. State is counted in elements for an
m x n matrix, m <= n (others are transposed), beside counters, keys and one number a matrix for the limiter. A matrix whose
shorter side is below `rank` is seen whole.
"""

import inspect
from numbers import Integral
from typing import Any

import optax
from jax.typing import DTypeLike
from jaxtyping import ArrayLike, Int

from fimlens import compensation as rules
from fimlens.corner_transform import scale_by_corner
from fimlens.full_chain import Number, Transform, full_chain
from fimlens.low_rank_transform import scale_by_low_rank
from fimlens.structures import Columns, Corner, Diagonal, Drop, LowRank
from fimlens.structures.low_rank import require_rank
from fimlens.subspaces import CurrentGradient, RandomProjection, SubspaceIteration

Whole = Int[ArrayLike, ""]
RULES = {"optimal": rules.nearest, "fira": rules.column_ratios, "fira+": rules.matched_column_ratios, "none": rules.none}


def _rule(call: str, compensation: str) -> rules.Compensation:
    if compensation not in RULES:
        raise ValueError(f"{call}: compensation is one of {', '.join(map(repr, RULES))}; got {compensation!r}")
    return RULES[compensation]


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
    momentum_dtype: DTypeLike | None = None,
    second_moment_dtype: DTypeLike | None = None,
    factor_dtype: DTypeLike | None = None,
    seed: Whole = 0,
) -> Transform:
    """Alice ([G]): H = LowRank(Diagonal(), rank, Columns()), ONE_STEP in U; the tail EXACT given U (Theorem 5.1).

    State: 2 n r + m r + n + r^2: momentum and second moments of the lead, U, p, Q~. [G]'s rate is 0.02, with rank / leading
    of 128 / 40 at 60M parameters, 256 / 40 at 130M and 350M, 512 / 160 (alpha 0.25, alpha_c 0.2) at 1.3B.

    `switch` is "complement", "full", "gaussian", "gaussian-mix" or "none" (see `fl.SubspaceIteration`), `compensation`
    "optimal", "fira", "fira+" or "none". `moments` at a refresh are "keep" (as printed), "rotate" or "reset": held-out losses
    of 1.733, 1.721 and 1.718 nats a byte over three seeds of a small language model (benchmarks/README.md). That is thin
    ground for the default: "reset" is below "keep" in each seed, but seeds differ by 0.02 and one favours "rotate", over 240
    steps with refreshes every 20 and a rate tuned for "keep"; and as Q~ is begun anew too, tracking reaches back one interval
    only. As printed there is no bias correction. Repaired: U V and not V is the basis after the r x r eigenproblem; the first
    basis is that of the first gradient's leading left singular vectors, where iteration from zero is void; signs of
    eigenvectors are fixed; eps stands beside the lead's roots; m > n is transposed; no compensation where
    nothing is left (m = r, and columns in the subspace to rounding); where r - leading > m - r, all m - r are switched.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> state, _ = fl.scale_by_alice(rank=2, leading=1).init(jnp.ones((3, 4)))
        >>> subspace = state.subspaces["3 x 4"]
        >>> subspace.basis.shape, subspace.covariance.shape  # U, and Q~
        ((1, 3, 2), (1, 2, 2))
        >>> state.inner.momentum["3 x 4"].shape, state.tail["3 x 4"].shape  # of the lead; p, one number a column
        ((1, 2, 4), (1, 1, 4))
    """
    require_leading("alice", rank, leading)
    complement = Columns() if compensation == "optimal" else Drop()
    return optax.chain(
        scale_by_low_rank(
            LowRank(Diagonal(), rank, complement),
            SubspaceIteration(leading, b3, switch),
            compensation=_rule("alice", compensation),
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


def scale_by_alice0(**options: Any) -> Transform:
    """Alice-0 ([G]): `alice` without tracking, b3 = 0: the subspace follows the current gradient alone.

    State: 2 n r + m r + n. Options as `alice`'s.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> state, _ = fl.scale_by_alice0(rank=2, leading=1).init(jnp.ones((3, 4)))
        >>> state.subspaces["3 x 4"].covariance is None  # no Q~
        True
    """
    return scale_by_alice(b3=0.0, **options)


_of_alice = inspect.signature(scale_by_alice)
scale_by_alice0.__signature__ = _of_alice.replace(parameters=[p for p in _of_alice.parameters.values() if p.name != "b3"])


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


def require_leading(call: str, rank: Any, leading: Any) -> None:
    """Refuse a rank and a number of leading directions that do not go together.

    Raises:
        TypeError: they are not whole numbers.
        ValueError: rank is not positive, or leading over it.
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


alice = full_chain(scale_by_alice, adam_factor=0.3)
alice0 = full_chain(scale_by_alice0, adam_factor=0.3)
galore = full_chain(scale_by_galore, adam_factor=0.3)
fira = full_chain(scale_by_fira, adam_factor=0.3)
apollo = full_chain(scale_by_apollo)
low_rank_soap = full_chain(scale_by_low_rank_soap, adam_factor=0.3)

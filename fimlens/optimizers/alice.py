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

from fimlens.optimizers.full_chain import Number, Transform, full_chain
from fimlens.structures import Columns, Diagonal, Drop, LowRank
from fimlens.structures.low_rank import require_rank
from fimlens.structures.subspaces import SubspaceIteration
from fimlens.transforms import compensation as rules
from fimlens.transforms.low_rank_transform import scale_by_low_rank

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


alice = full_chain(scale_by_alice, adam_factor=0.3)


alice0 = full_chain(scale_by_alice0, adam_factor=0.3)

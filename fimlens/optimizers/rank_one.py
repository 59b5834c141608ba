"""RACS and Adafactor: one factor per row and one per column."""

from typing import Any

import optax
from jax.typing import DTypeLike

from fimlens._validate import require_number
from fimlens.optimizers.eigenbasis import Whole
from fimlens.optimizers.full_chain import Number, Rate, Transform, decayed, full_chain, require_rate
from fimlens.structures import Marginals, RowColumn
from fimlens.transforms.momentum import keep_state_dtypes
from fimlens.transforms.norms import clip_by_rms, limit_norm_growth, scale_by_weight_rms
from fimlens.transforms.structure_transform import scale_by_structure


def adafactor(
    learning_rate: Rate,
    *,
    decay_rate: Number = 0.8,
    clipping_threshold: Number | None = 1.0,
    multiply_by_parameter_scale: bool = True,
    momentum: Number | None = None,
    eps: Number = 0.0,
    weight_decay: Number = 0.0,
    mask: Any = None,
    momentum_dtype: DTypeLike | None = None,
    second_moment_dtype: DTypeLike | None = None,
) -> Transform:
    """Adafactor (Shazeer and Stern, 2018): H = {Diag(s) (x) Diag(q)}, OTHER: r c^T / mean is nearest in generalised KL.

    State: m + n (a vector: its length); m n more with momentum. `optax.adafactor(min_dim_size_to_factor=1)`, but that
    its eps = 1e-30 is added to every g^2 and here eps, 0 by default, to the root of each eigenvalue; it factors a leaf of
    three axes or more along its two largest, and clips and scales it whole; here each matrix is by itself.
    `weight_decay` is not times the rate, in Optax neither: what `adamw` calls w is here w times the rate.

    Examples:
        >>> import jax, jax.numpy as jnp, fimlens as fl
        >>> state = fl.adafactor(1e-2).init(jnp.ones((3, 4)))
        >>> [x.shape for x in jax.tree.leaves(state[0].averaged)]  # row and column means in place of 3 x 4
        [(3, 1), (1, 4)]
    """
    require_rate("adafactor", "learning_rate", learning_rate)
    direction = scale_by_structure(
        Marginals(), b1=None, b2=lambda t: 1 - t**-decay_rate, eps=eps, second_moment_dtype=second_moment_dtype
    )
    steps = [direction]
    if clipping_threshold is not None:
        steps.append(clip_by_rms(clipping_threshold))
    steps.append(optax.scale_by_learning_rate(learning_rate, flip_sign=False))
    if multiply_by_parameter_scale:
        steps.append(scale_by_weight_rms())
    if momentum is not None:
        steps.append(keep_state_dtypes(optax.ema(momentum, debias=False, accumulator_dtype=momentum_dtype)))
    return optax.chain(*steps, *decayed(weight_decay, mask), optax.scale(-1))


def scale_by_racs(
    *,
    beta: Number = 0.9,
    alpha: Number = 0.05,
    gamma: Number = 1.01,
    sweeps: Whole = 5,
    eps: Number = 0.0,
    bias_correction: bool = False,
    second_moment_dtype: DTypeLike | None = None,
) -> Transform:
    """RACS ([G] Algorithm 1): H = {S (x) Q}, both diagonal, LIMIT: the fixed point is E[G^2]'s best rank one (Proposition 3).

    State: m + n and the limiter's one: row and column factors by `sweeps` from q = 1, averaged by beta. [G]'s rate is
    0.02. Matrices with m > n are swept transposed, as [G] has m <= n. `bias_correction` is an option that the print lacks:
    its first update is 1/(1-beta) too large; yet without it a small language model ended 0.004 to 0.024 nats a byte lower, in
    each of six pairs of runs (benchmarks/README.md), so it is off. Repaired: a zero last update does not freeze a matrix; no
    sum of squares within the sweeps leaves float32.

    Examples:
        >>> import jax, jax.numpy as jnp, fimlens as fl
        >>> state, *_ = fl.scale_by_racs().init(jnp.ones((3, 4)))
        >>> [x.shape for x in jax.tree.leaves(state.averaged)], state.momentum  # row and column factors, and no momentum
        ([(3, 1), (1, 4)], None)
    """
    require_number("racs", "beta", beta, 0, below=1)
    require_number("racs", "gamma", gamma, 1)
    require_number("racs", "sweeps", sweeps, 1, whole=True)
    require_number("racs", "eps", eps, 0)
    direction = scale_by_structure(
        RowColumn(sweeps),
        b1=None,
        b2=beta,
        eps=eps,
        average="fits",
        bias_correction=bias_correction,
        second_moment_dtype=second_moment_dtype,
    )
    return optax.chain(direction, limit_norm_growth(gamma), optax.scale(alpha))


racs = full_chain(scale_by_racs, adam_factor=0.5)

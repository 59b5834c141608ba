"""RACS, Adafactor and SinkGD: one factor for each row and one for each column."""

from typing import Any, NamedTuple

import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fimlens._validate import require_number
from fimlens.divergence import FROBENIUS, Divergence, LogDet, require_degree
from fimlens.optimizers.full_chain import Number, Rate, Transform, Whole, full_chain, require_rate
from fimlens.optimizers.links import decay_weights
from fimlens.optimizers.signature import takes_optax_names
from fimlens.structures import Marginals, RowColumn
from fimlens.transforms.as_matrix import as_matrices
from fimlens.transforms.dtypes import StateDtypes, state_dtypes
from fimlens.transforms.momentum import compute_in_float32, keep_state_dtypes
from fimlens.transforms.norms import clip_by_rms, limit_norm_growth, scale_by_weight_rms
from fimlens.transforms.structure_transform import scale_by_structure


@takes_optax_names
def adafactor(
    learning_rate: Rate,
    *,
    decay_rate: Number = 0.8,
    clipping_threshold: Number | None = 1.0,
    multiply_by_parameter_scale: bool = True,
    momentum: Number | None = None,
    eps: Number = 0.0,
    weight_decay: Rate = 0.0,
    mask: Any = None,
    cautious_decay: bool = False,
    axes: Any = None,
    dtypes: StateDtypes | DTypeLike | None = None,
) -> Transform:
    """Adafactor (Shazeer and Stern, 2018): second moments in m + n numbers. Use it for little memory and a cheap step.

    H = {Diag(s) (x) Diag(q)}, EXACT under von Neumann: r c^T / mean, of the row and column means. State: m + n (the length,
    for a vector); m n more with momentum. It is `optax.adafactor(min_dim_size_to_factor=1)` with two differences. Optax adds
    eps = 1e-30 to every g^2, and eps here is added to the root of each eigenvalue. Optax factors a leaf of three axes or more
    along its two largest, and clips and scales it as a whole; here each matrix is on its own.

    Args:
        learning_rate: step size: a number, an array or an Optax schedule.
        decay_rate: the second moments decay by 1 - t^-decay_rate at step t. Default: 0.8, as in Shazeer and Stern.
        clipping_threshold: largest root mean square of an update, before the rate; None for no limit. Default: 1, as in
            Shazeer and Stern.
        multiply_by_parameter_scale: whether updates are scaled by the root mean square of the weights. Default: True, as in
            Shazeer and Stern.
        momentum: decay of the average of updates. Default: None, no momentum.
        eps: number added to the root of each eigenvalue. Default: 0.
        weight_decay: number or schedule times the weights that each step subtracts. As in Optax the rate does not scale it:
            `adamw`'s w is w times the rate here. Default: 0.
        mask: the leaves that decay: a tree of bools, or a function from parameters to one. Default: None, all leaves.
        cautious_decay: whether only weights that the update moves toward zero decay; see `fl.cautious_weight_decay`.
            Default: False.
        axes: which axes of a leaf are a matrix; see `fl.as_matrix`. Default: None, by evidence; a leaf of more than two axes
            without any is a stack of matrices, its last two axes, and `init` warns of it.
        dtypes: `fl.StateDtypes` of the stored state, or one dtype for all of it. Default: None, float32 factors, and the
            momentum in the weights' dtype.

    Raises:
        TypeError: the learning rate is neither a number, an array nor a schedule, or (at init) a parameter is not of real
            floating point.
        ValueError: (at update) the parameters are not given, and multiply_by_parameter_scale is True.

    Examples:
        >>> import jax, jax.numpy as jnp, fimlens as fl
        >>> state = fl.adafactor(1e-2).init(jnp.ones((3, 4)))
        >>> [x.shape for x in jax.tree.leaves(state[0][0].averaged)]  # row and column means in place of 3 x 4
        [(3, 1), (1, 4)]
    """
    require_rate("adafactor", "learning_rate", learning_rate)
    dtypes = state_dtypes(dtypes)
    direction = scale_by_structure(Marginals(), b1=None, b2=_PowerDecay(decay_rate), eps=eps, dtypes=dtypes)
    scales = [direction]
    if clipping_threshold is not None:
        scales.append(clip_by_rms(clipping_threshold))
    scales.append(optax.scale_by_learning_rate(learning_rate, flip_sign=False))
    if multiply_by_parameter_scale:
        scales.append(scale_by_weight_rms())
    links = [as_matrices("adafactor", optax.chain(*scales), axes)]
    if momentum is not None:
        links.append(keep_state_dtypes(optax.ema(momentum, debias=False, accumulator_dtype=dtypes.momentum)))
    # The sign comes last, so that the decay is added to an update that still points up the gradient.
    return compute_in_float32(optax.chain(*links, decay_weights(weight_decay, mask, cautious=cautious_decay), optax.scale(-1)))


class _PowerDecay(NamedTuple):
    """Shazeer and Stern's decay of second moments. Two with one rate are equal, so that they share a compiled step."""

    rate: Number

    def __call__(self, t: Float[Array, ""]) -> Float[Array, ""]:
        return 1 - t**-self.rate


def scale_by_racs(
    *,
    beta: Number = 0.9,
    alpha: Number = 0.05,
    gamma: Number = 1.01,
    sweeps: Whole = 5,
    cap: Number | None = 30.0,
    divergence: Divergence = FROBENIUS,
    eps: Number = 0.0,
    bias_correction: bool = False,
    dtypes: StateDtypes | DTypeLike | None = None,
) -> Transform:
    """RACS ([G] Algorithm 1): one factor for each row and column. Use it for little memory and a cheap step.

    H = {S (x) Q}, both diagonal, LIMIT: its fixed point is the best rank-one approximation of E[G^2] (Proposition 3). State:
    m + n: the factors of rows and columns. [G]'s learning rate is 0.02. Differences from [G]. One tiny update does not freeze
    a matrix, whose norm may return to where it was (`fl.limit_norm_growth`). The sweeps divide by the largest entry, so that
    no square overflows float32. Matrices with m > n are swept transposed, because [G] assumes m <= n. And the factors of a
    gradient are the nearest with which no row and no column has a mean squared update over `cap`. [G]'s sweeps head for the
    leading block and leave eigenvalues near zero elsewhere, so that sparse and heavy-tailed gradients explode. With the cap no
    entry of the update, before the limiter and alpha, exceeds sqrt(cap min(m, n)) / (1 - beta).

    Args:
        beta: decay of the row and column factors. Default: 0.9, as in [G].
        alpha: factor of the whole update, so that matrices can share a rate with other leaves. Default: 0.05, as in [G], which
            has 0.02 at 1.3B parameters.
        gamma: largest growth of the update's norm in one step; see `fl.limit_norm_growth`. Default: 1.01, as in [G].
        sweeps: alternations between row and column factors that fit one gradient. Default: 5, as in [G].
        cap: largest mean squared update of a row or column of one gradient; None for no limit, as in [G]. Default: 30, which
            Gaussian and low-rank gradients do not reach.
        divergence: the sense in which the factors of a gradient are nearest, of degree 0 to 2. Its sweeps start from ones along
            the shorter side, and nothing is normalised before factors are averaged. Default: `fl.Frobenius()`, as in [G].
        eps: number added to the root of each eigenvalue. Default: 0, as in [G].
        bias_correction: whether the averages are divided by the weight that they have gathered. Default: False, as in [G],
            although the first update is then 1/(1-beta) times too large. Without it a small language model ended 0.004 to 0.024
            nats a byte lower in each of six pairs of runs (benchmarks/README.md).
        dtypes: `fl.StateDtypes` of the stored state, or one dtype; here of the factors. Default: None, float32 at least.

    Raises:
        TypeError: (at init) a parameter is not of real floating point.
        ValueError: an option is out of its range.

    Examples:
        >>> import jax, jax.numpy as jnp, fimlens as fl
        >>> state, *_ = fl.scale_by_racs().init(jnp.ones((3, 4)))
        >>> [x.shape for x in jax.tree.leaves(state.averaged)], state.momentum  # row and column factors, and no momentum
        ([(3, 1), (1, 4)], None)
    """
    require_number("racs", "beta", beta, 0, below=1)
    require_number("racs", "gamma", gamma, 1)
    require_number("racs", "sweeps", sweeps, 1, whole=True)
    require_number("racs", "cap", cap, 1)
    require_number("racs", "eps", eps, 0)
    require_degree("racs", divergence)
    structure = RowColumn(sweeps, cap, divergence)
    direction = scale_by_structure(
        structure, b1=None, b2=beta, eps=eps, average="fits", bias_correction=bias_correction, dtypes=dtypes
    )
    return compute_in_float32(optax.chain(direction, limit_norm_growth(gamma), optax.scale(alpha)))


def scale_by_sinkgd(*, sweeps: Whole = 5, eps: Number = 0.0) -> Transform:
    """SinkGD (Scetbon et al., 2025): rows and columns of each gradient normalised in turns. Use it for updates without state.

    H = {S (x) Q}, both diagonal, LIMIT under LogDet: k rounds are k sweeps of `fl.RowColumn(k, divergence=fl.LogDet())` on the
    squares of the current gradient. State: nothing. Where m <= n the root mean square of the update is 1 along each row, and
    nearly 1 along each column; else the other way round. Difference from Scetbon et al.: a round begins with columns where
    m <= n, and else with rows; theirs begins with rows always.

    Args:
        sweeps: number of rounds. Default: 5, as in Scetbon et al.
        eps: number added to the root of each eigenvalue. Default: 0.

    Raises:
        TypeError: (at init) a parameter is not of real floating point.
        ValueError: an option is out of its range.

    Examples:
        >>> import jax, jax.numpy as jnp, fimlens as fl
        >>> tx, G = fl.scale_by_sinkgd(), jnp.array([[1.0, 20.0, 3.0], [400.0, 5.0, 6.0]])
        >>> updates, state = tx.update(G, tx.init(G))
        >>> print(jnp.mean(updates**2, axis=1).round(3), jax.tree.leaves(state.averaged))  # no state
        [1. 1.] []
    """
    require_number("sinkgd", "sweeps", sweeps, 1, whole=True)
    require_number("sinkgd", "eps", eps, 0)
    return scale_by_structure(RowColumn(sweeps, divergence=LogDet()), b1=None, b2=None, eps=eps)


racs = full_chain(scale_by_racs, adam_factor=0.5)


sinkgd = full_chain(scale_by_sinkgd)

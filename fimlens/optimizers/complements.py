"""COSMOS and FRUGAL: Adam in a subspace, and outside it what needs no state of its own."""

import optax
from jax.typing import DTypeLike

from fimlens._validate import require_number, require_rank
from fimlens.optimizers.full_chain import Number, Transform, Whole, full_chain
from fimlens.optimizers.galore import in_subspace_of_gradient
from fimlens.structures import Diagonal, Drop, LowRank
from fimlens.structures.subspace_iteration import SubspaceIteration
from fimlens.transforms import compensation as rules
from fimlens.transforms.dtypes import StateDtypes, state_dtypes
from fimlens.transforms.low_rank_transform import scale_by_low_rank
from fimlens.transforms.momentum import average_updates, compute_in_float32


def scale_by_cosmos(
    *,
    rank: Whole,
    update_interval: Whole = 10,
    b1: Number = 0.95,
    b2: Number = 0.95,
    b3: Number = 0.95,
    alpha_c: Number = 1.0,
    scale: Number = 0.2,
    eps: Number = 1e-8,
    dtypes: StateDtypes | DTypeLike | None = None,
) -> Transform:
    """COSMOS (Liu et al., 2025): Adam in a subspace of the momentum, Muon outside it. Use it for part of SOAP at Muon's memory.

    H = LowRank(Diagonal(), rank, Drop()) for the lead. Outside the subspace the update is the polar factor, which H does not
    describe. State: m n + n r + m r + r^2 with r = rank: momentum, second moments, U and Q~. It differs from Liu et al. in four
    ways. Second moments are those of the momentum, and theirs of the gradient. U follows every `update_interval` steps by
    subspace iteration, and theirs every step. Second moments are carried into the new basis. Both parts have the root mean
    square of a whitened gradient, times `scale`, where theirs has a factor for each.

    Args:
        rank: dimension r of the subspace.
        update_interval: steps between refreshes of the subspace, the first at the first step. Default: 10.
        b1: decay of the momentum. Default: 0.95, as in Muon.
        b2: decay of the second moments. Default: 0.95, as in SOAP.
        b3: decay of Q~, the average that the subspace follows. Default: 0.95, as b2.
        alpha_c: factor of the complement. Default: 1.
        scale: root mean square of an update before the rate, about, so that AdamW's rates fit. Default: 0.2.
        eps: number added to the root of each second moment. Default: 1e-8, as in Adam.
        dtypes: `fl.StateDtypes` of the stored state, or one dtype for all of it. Default: None, float32 at least, and the
            momentum in the weights' dtype.

    Raises:
        TypeError: rank is not a whole number, or (at init) a parameter is not of real floating point.
        ValueError: an option is out of its range.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> momentum, lead, _ = fl.scale_by_cosmos(rank=2).init(jnp.ones((3, 4)))
        >>> stack = lead.stacks["3 x 4"]
        >>> momentum.momentum.shape, stack.left.basis.shape, stack.lead.averaged.shape, stack.lead.momentum
        ((3, 4), (1, 3, 2), (1, 2, 4), None)
    """
    require_rank("cosmos", rank)
    require_number("cosmos", "b1", b1, 0, below=1)
    stored = state_dtypes(dtypes)
    lead = scale_by_low_rank(
        LowRank(Diagonal(), rank, Drop(), tracker=SubspaceIteration(rank, b3, "none")),
        compensation=rules.polar,
        b1=None,
        b2=b2,
        alpha_c=alpha_c,
        gamma=None,
        eps=eps,
        update_interval=update_interval,
        moments="rotate",
        dtypes=stored,
    )
    return compute_in_float32(optax.chain(average_updates(b1, dtype=stored.momentum), lead, optax.scale(scale)))


def scale_by_frugal(
    *,
    rank: Whole,
    update_interval: Whole = 200,
    b1: Number = 0.9,
    b2: Number = 0.999,
    alpha_c: Number = 1.0,
    moments: str = "reset",
    eps: Number = 1e-8,
    dtypes: StateDtypes | DTypeLike | None = None,
) -> Transform:
    """FRUGAL (Zmushko et al., 2024): `galore`, and the sign of what it leaves out. Use it where GaLore's loss is too high.

    H = LowRank(Diagonal(), rank, Drop()), ONE_STEP, for the lead; it does not describe the sign. State: 2 n r + m r with
    r = rank. Theirs splits by columns or blocks too, and has a rate for each part.

    Args:
        rank: dimension r of the subspace.
        update_interval: steps between refreshes, the first at the first step. Default: 200, as in Zmushko et al.
        b1: decay of the momentum. Default: 0.9, as in Adam.
        b2: decay of the second moments. Default: 0.999, as in Adam.
        alpha_c: factor of the sign, the rate of its part relative to the lead's. Default: 1, as in Zmushko et al.
        moments: what a refresh does to momentum and second moments: "keep", "rotate" or "reset". Default: "reset", as in
            Zmushko et al.
        eps: number added to the root of each second moment. Default: 1e-8, as in Adam.
        dtypes: `fl.StateDtypes` of the stored state, or one dtype for all of it. Default: None, float32 at least.

    Raises:
        TypeError: rank is not a whole number, or (at init) a parameter is not of real floating point.
        ValueError: an option is out of its range.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> tx, G = fl.scale_by_frugal(rank=1), jnp.array([[9.0, 0.0], [0.0, -0.1]])
        >>> updates, _ = tx.update(G, tx.init(G))
        >>> print(updates.round(3))  # Adam of the lead, and a sign
        [[ 1.  0.]
         [ 0. -1.]]
    """
    return in_subspace_of_gradient("frugal", rules.sign, gamma=None, **locals())


cosmos = full_chain(scale_by_cosmos)


frugal = full_chain(scale_by_frugal)

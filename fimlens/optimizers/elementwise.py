"""SGD, Adam and AdamW: the same step for each entry of every leaf."""

from typing import Any

import optax
from jax.typing import DTypeLike

from fimlens.optimizers.full_chain import Number, Rate, Transform, require_rate
from fimlens.optimizers.links import decay_weights, scale_by_adam
from fimlens.optimizers.signature import takes_optax_names
from fimlens.transforms.dtypes import StateDtypes, state_dtypes
from fimlens.transforms.momentum import compute_in_float32, keep_state_dtypes


@takes_optax_names
def sgd(
    learning_rate: Rate,
    momentum: Number | None = None,
    nesterov: bool = False,
    *,
    weight_decay: Rate = 0.0,
    mask: Any = None,
    cautious_decay: bool = False,
    dtypes: StateDtypes | DTypeLike | None = None,
) -> Transform:
    """Gradient descent: the baseline without any state, or with a momentum alone. `optax.sgd`, with weight decay.

    H = {c I}, whose c is left to the learning rate. State: nothing; m n with momentum. There is no eps, because nothing is
    divided by.

    Args:
        learning_rate: step size: a number, an array or an Optax schedule.
        momentum: decay of the sum of gradients. Default: None, no momentum.
        nesterov: whether the momentum looks one step ahead. Default: False.
        weight_decay: decoupled weight decay, a number or a schedule: each step subtracts it times the rate times the
            weights. Default: 0.
        mask: the leaves that decay: a tree of bools, or a function from parameters to one. Default: None, all leaves.
        cautious_decay: whether only weights that the update moves toward zero decay; see `fl.cautious_weight_decay`.
            Default: False.
        dtypes: `fl.StateDtypes` of the stored state, or one dtype; here of the momentum. Default: None, the weights' dtype.

    Raises:
        TypeError: the learning rate is neither a number, an array nor a schedule.

    Examples:
        >>> import jax.numpy as jnp, optax, fimlens as fl
        >>> tx, w = fl.sgd(0.5, momentum=0.5), jnp.array([4.0, 8.0])
        >>> state = tx.init(w)
        >>> for _ in range(2):
        ...     updates, state = tx.update(jnp.ones(2), state)
        ...     w = optax.apply_updates(w, updates)
        >>> w.tolist()  # 1 and 1.5 times the rate
        [2.75, 6.75]
    """
    require_rate("sgd", "learning_rate", learning_rate)
    traced = [] if momentum is None else [keep_state_dtypes(optax.trace(momentum, nesterov, state_dtypes(dtypes).momentum))]
    steps = optax.chain(
        *traced, decay_weights(weight_decay, mask, cautious=cautious_decay), optax.scale_by_learning_rate(learning_rate)
    )
    return compute_in_float32(steps)


@takes_optax_names
def adam(
    learning_rate: Rate,
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    eps_root: Number = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = False,
    weight_decay: Rate = 0.0,
    mask: Any = None,
    cautious_decay: bool = False,
    dtypes: StateDtypes | DTypeLike | None = None,
) -> Transform:
    """Adam (Kingma and Ba, 2015): the default for any model, and the baseline of every comparison here. `optax.adam`.

    H = {Diag(v)}, EXACT, v = E[g^2] ([G] Proposition 1). State: 2 m n, momentum and v, in float32 by default whatever the
    dtype of the weights.

    Args:
        learning_rate: step size: a number, an array or an Optax schedule.
        b1: decay of the momentum. Default: 0.9, as in Kingma and Ba.
        b2: decay of the second moments. Default: 0.999, as in Kingma and Ba.
        eps: number added to the root of each second moment. Default: 1e-8, as in Kingma and Ba.
        eps_root: number added to each second moment under the root. Default: 0, as in Optax.
        mu_dtype: dtype of the stored momentum, Optax's name for that of `dtypes`. Default: None, that of `dtypes`.
        nesterov: whether the momentum looks one step ahead, as in Optax. Default: False.
        weight_decay: decoupled weight decay, a number or a schedule: each step subtracts it times the rate times the
            weights. Default: 0.
        mask: the leaves that decay: a tree of bools, or a function from parameters to one. Default: None, all leaves.
        cautious_decay: whether only weights that the update moves toward zero decay; see `fl.cautious_weight_decay`.
            Default: False.
        dtypes: `fl.StateDtypes` of the stored state, or one dtype for all of it. Default: None, float32 at least.

    Raises:
        TypeError: the learning rate is neither a number, an array nor a schedule, or (at init) a parameter is not of real
            floating point.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> tx, w = fl.adam(1e-3), jnp.ones((1, 2))
        >>> updates, state = tx.update(jnp.array([[4.0, -0.1]]), tx.init(w))
        >>> [f"{u:.4f}" for u in updates[0]]  # a first step is the rate, against the gradient's sign
        ['-0.0010', '0.0010']
        >>> state[0].momentum.shape, state[0].averaged.shape
        ((1, 2), (1, 2))
    """
    require_rate("adam", "learning_rate", learning_rate)
    dtypes = state_dtypes(dtypes)
    dtypes = dtypes if mu_dtype is None else dtypes._replace(momentum=mu_dtype)
    direction = scale_by_adam(b1, b2, eps, eps_root, nesterov, dtypes)
    steps = optax.chain(
        direction, decay_weights(weight_decay, mask, cautious=cautious_decay), optax.scale_by_learning_rate(learning_rate)
    )
    return compute_in_float32(steps)


@takes_optax_names
def adamw(
    learning_rate: Rate,
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    eps_root: Number = 0.0,
    mu_dtype: DTypeLike | None = None,
    weight_decay: Rate = 1e-4,
    mask: Any = None,
    *,
    cautious_decay: bool = False,
    nesterov: bool = False,
    dtypes: StateDtypes | DTypeLike | None = None,
) -> Transform:
    """AdamW (Loshchilov and Hutter, 2019): `adam` with decoupled weight decay by default. `optax.adamw`.

    H, claim and state are Adam's.

    Args:
        learning_rate: step size: a number, an array or an Optax schedule.
        b1: decay of the momentum. Default: 0.9, as in Adam.
        b2: decay of the second moments. Default: 0.999, as in Adam.
        eps: number added to the root of each second moment. Default: 1e-8, as in Adam.
        eps_root: number added to each second moment under the root. Default: 0, as in Optax.
        mu_dtype: dtype of the stored momentum, Optax's name for that of `dtypes`. Default: None, that of `dtypes`.
        weight_decay: decoupled weight decay, a number or a schedule: each step subtracts it times the rate times the
            weights. Default: 1e-4, as in Optax.
        mask: the leaves that decay: a tree of bools, or a function from parameters to one. Default: None, all leaves.
        cautious_decay: whether only weights that the update moves toward zero decay; see `fl.cautious_weight_decay`.
            Default: False.
        nesterov: whether the momentum looks one step ahead, as in Optax. Default: False.
        dtypes: `fl.StateDtypes` of the stored state, or one dtype for all of it. Default: None, float32 at least.

    Raises:
        TypeError: as `adam`.

    Examples:
        >>> import jax, jax.numpy as jnp, fimlens as fl
        >>> params = {"kernel": jnp.ones((1, 2)), "bias": jnp.ones(2)}
        >>> tx = fl.adamw(0.5, weight_decay=0.25, mask={"kernel": True, "bias": False})
        >>> updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
        >>> updates["kernel"].tolist(), bool((updates["bias"] == 0).all())  # without a gradient only the decay moves
        ([[-0.125, -0.125]], True)
    """
    require_rate("adamw", "learning_rate", learning_rate)
    return adam(**locals())

"""SGD, Adam and AdamW."""

from typing import Any

import optax
from jax.typing import DTypeLike

from fimlens.optimizers.full_chain import Number, Rate, Transform, decayed, require_rate
from fimlens.structures import Diagonal
from fimlens.transforms.momentum import keep_state_dtypes
from fimlens.transforms.structure_transform import scale_by_structure

# --- of every leaf --------------------------------------------------------------------------------------------


def sgd(
    learning_rate: Rate,
    *,
    momentum: Number | None = None,
    nesterov: bool = False,
    weight_decay: Number = 0.0,
    mask: Any = None,
    momentum_dtype: DTypeLike | None = None,
) -> Transform:
    """Gradient descent: H = {c I}, its c left to the learning rate. `optax.sgd`, with decay.

    State: nothing; m n with momentum. There is no eps: nothing is divided by.

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
    averaged = [] if momentum is None else [keep_state_dtypes(optax.trace(momentum, nesterov, momentum_dtype))]
    return optax.chain(*averaged, *decayed(weight_decay, mask), optax.scale_by_learning_rate(learning_rate))


def adam(
    learning_rate: Rate,
    *,
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    weight_decay: Number = 0.0,
    mask: Any = None,
    momentum_dtype: DTypeLike | None = None,
    second_moment_dtype: DTypeLike | None = None,
) -> Transform:
    """Adam (Kingma and Ba, 2015): H = {Diag(v)}, EXACT, v = E[g^2] ([G] Proposition 1). `optax.adam`.

    State: 2 m n, momentum and v, in float32 by default whatever the weights are.

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
    direction = scale_by_structure(
        Diagonal(), b1=b1, b2=b2, eps=eps, momentum_dtype=momentum_dtype, second_moment_dtype=second_moment_dtype
    )
    return optax.chain(direction, *decayed(weight_decay, mask), optax.scale_by_learning_rate(learning_rate))


def adamw(
    learning_rate: Rate,
    *,
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    weight_decay: Number = 1e-4,
    mask: Any = None,
    momentum_dtype: DTypeLike | None = None,
    second_moment_dtype: DTypeLike | None = None,
) -> Transform:
    """`adam` with decoupled weight decay (Loshchilov and Hutter, 2019). `optax.adamw`.

    Examples:
        >>> import jax, jax.numpy as jnp, fimlens as fl
        >>> params = {"kernel": jnp.ones((1, 2)), "bias": jnp.ones(2)}
        >>> tx = fl.adamw(0.5, weight_decay=0.25, mask={"kernel": True, "bias": False})
        >>> updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
        >>> updates["kernel"].tolist(), bool((updates["bias"] == 0).all())  # with no gradient the decay is left
        ([[-0.125, -0.125]], True)
    """
    require_rate("adamw", "learning_rate", learning_rate)
    return adam(
        learning_rate,
        b1=b1,
        b2=b2,
        eps=eps,
        weight_decay=weight_decay,
        mask=mask,
        momentum_dtype=momentum_dtype,
        second_moment_dtype=second_moment_dtype,
    )

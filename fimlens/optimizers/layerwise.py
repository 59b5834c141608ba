"""LARS and LAMB: one trust ratio per matrix."""

from typing import Any

import optax
from jax.typing import DTypeLike

from fimlens.optimizers.full_chain import Number, Rate, Transform, decayed, require_rate
from fimlens.structures import Diagonal, Scalar
from fimlens.transforms.momentum import keep_state_dtypes
from fimlens.transforms.norms import scale_by_trust_ratio
from fimlens.transforms.structure_transform import scale_by_structure


def lars(
    learning_rate: Rate,
    *,
    momentum: Number = 0.9,
    nesterov: bool = False,
    trust_coefficient: Number = 0.001,
    eps: Number = 0.0,
    weight_decay: Number = 0.0,
    mask: Any = None,
    momentum_dtype: DTypeLike | None = None,
) -> Transform:
    """LARS (You et al., 2017): H = {c I}, EXACT for the current gradient, c = ||G||^2 / (m n); then times ||W||.

    State: m n, the momentum. `optax.lars`, matrix by matrix where that takes leaf by leaf; where ||W|| is zero the update is
    G / sqrt(c), and in Optax G.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> w = jnp.array([[3.0, 4.0]])
        >>> tx = fl.lars(2.0, trust_coefficient=0.001)
        >>> updates, _ = tx.update(jnp.array([[0.0, 100.0]]), tx.init(w), w)
        >>> print(f"{jnp.linalg.norm(updates):.4f}")  # 2 x 0.001 x ||w||, whatever the gradient's norm
        0.0100
    """
    require_rate("lars", "learning_rate", learning_rate)
    return optax.chain(
        *decayed(weight_decay, mask),
        scale_by_structure(Scalar(), b1=None, b2=None, eps=eps),
        scale_by_trust_ratio(trust_coefficient),
        optax.scale_by_learning_rate(learning_rate),
        keep_state_dtypes(optax.trace(momentum, nesterov, momentum_dtype)),
    )


def lamb(
    learning_rate: Rate,
    *,
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-6,
    weight_decay: Number = 0.0,
    mask: Any = None,
    momentum_dtype: DTypeLike | None = None,
    second_moment_dtype: DTypeLike | None = None,
) -> Transform:
    """LAMB (You et al., 2020): Adam's H = {Diag(v)}, EXACT; then a trust ratio for each matrix. `optax.lamb`.

    State: 2 m n. Optax takes the ratio leaf by leaf; for leaves of up to two axes the two are one.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> w = jnp.array([[3.0, 4.0]])
        >>> tx = fl.lamb(0.01)
        >>> updates, _ = tx.update(jnp.array([[1.0, 100.0]]), tx.init(w), w)
        >>> print(f"{jnp.linalg.norm(updates):.4f}")  # the rate times ||w||
        0.0500
    """
    require_rate("lamb", "learning_rate", learning_rate)
    direction = scale_by_structure(
        Diagonal(), b1=b1, b2=b2, eps=eps, momentum_dtype=momentum_dtype, second_moment_dtype=second_moment_dtype
    )
    rate = optax.scale_by_learning_rate(learning_rate)
    return optax.chain(direction, *decayed(weight_decay, mask), scale_by_trust_ratio(), rate)

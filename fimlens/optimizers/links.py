"""Links of an optimizer's chain that several optimizers share: Adam's direction and weight decay."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike
from jaxtyping import ArrayLike, Float, Int, PyTree

from fimlens.structure import Params, Tree
from fimlens.structures import Diagonal
from fimlens.transforms.dtypes import StateDtypes
from fimlens.transforms.momentum import adam_with_guards, compute_in_float32
from fimlens.transforms.structure_transform import scale_by_structure

Number = Float[ArrayLike, ""] | np.generic  # NumPy does not count its bfloat16 among numbers


Whole = Int[ArrayLike, ""]


# What optax.Schedule is at run time. To a type checker that is anything, since Optax has no types.
Rate = Number | Callable[[ArrayLike], ArrayLike]


Transform = optax.GradientTransformation


@runtime_checkable  # because the tests check annotations at run time
class Optimizer(Protocol):
    """What a type checker knows of an optimizer. The call itself checks all other arguments, and knows Optax's names."""

    def __call__(self, learning_rate: Rate, *args: Any, **options: Any) -> Transform: ...


def scale_by_adam(
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    eps_root: Number = 0.0,
    nesterov: bool = False,
    dtypes: StateDtypes | DTypeLike | None = None,
) -> Transform:
    """Adam's direction: `optax.scale_by_adam` as the transform of a structure, or Optax's own where momentum looks ahead."""
    if nesterov:
        return adam_with_guards(b1, b2, eps, eps_root, nesterov=True, dtypes=dtypes)
    structure = Diagonal() if _is_zero(eps_root) else _Damped(eps_root)
    return scale_by_structure(structure, b1=b1, b2=b2, eps=eps, dtypes=dtypes)


@dataclass(frozen=True)
class _Damped(Diagonal):
    """Adam's second moments, to which eps_root is added before the root is taken."""

    eps_root: Number = 0.0

    def precondition(self, params: Params, X: Tree, eps: Number) -> Tree:
        return super().precondition(Params(params.frame, params.coords + self.eps_root), X, eps)


def decay_weights(
    weight_decay: Rate,
    mask: Any,
    others: Rate | None = None,
    is_other: Callable[[Any], bool] = lambda path: False,
    cautious: bool = False,
) -> Transform:
    """Decoupled weight decay, `optax.add_decayed_weights`; leaves whose path `is_other` have a decay of their own.

    A `cautious` decay is that of `cautious_weight_decay`. The state has the same tree for every number, 0 among them, so that a
    checkpoint does not depend on how it was given. A decay that is the Python number 0 needs no parameters at the update.
    """
    decays = weight_decay, weight_decay if others is None else others
    idle = all(map(_is_zero, decays))

    def init(params: PyTree) -> Any:
        del params
        return optax.ScaleByScheduleState(jnp.zeros([], jnp.int32)) if any(map(callable, decays)) else optax.EmptyState()

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        if idle:
            return updates, state
        if params is None:
            raise ValueError("weight decay: needs the parameters. Call tx.update(gradients, state, params).")
        now = [decay(state.count) if callable(decay) else decay for decay in decays]

        def decayed(path: Any, update: Any, weights: Any) -> Any:
            decay = now[is_other(path)]
            if _is_zero(decay):
                return update
            with_decay = update + decay * weights
            if not cautious:
                return with_decay
            # Signs, because a product of small entries may be zero. The sign of a complex entry is x / |x|.
            toward_zero = jnp.real(jnp.sign(update) * jnp.conj(jnp.sign(weights))) >= 0
            return jnp.where(toward_zero, with_decay, update)

        if any(map(callable, decays)):
            state = optax.ScaleByScheduleState(optax.safe_increment(state.count))
        return jax.tree_util.tree_map_with_path(decayed, updates, params), state

    tx = optax.GradientTransformation(init, update)
    return tx if mask is None else optax.masked(tx, mask)


def cautious_weight_decay(weight_decay: Rate, mask: Any = None) -> Transform:
    """Decay only the weights that the update moves toward zero. Use it where decay and loss pull against each other.

    The update becomes u + weight_decay * W where u W >= 0, and stays u elsewhere (arXiv 2510.12402). Of complex numbers
    the real part of u conj(W) decides. u is a direction, which the rate subtracts, so the link stands before
    `optax.scale_by_learning_rate`. `fl.adamw`, `fl.sgd`, `fl.adafactor` and the full chains have it as `cautious_decay=True`.

    Args:
        weight_decay: number or schedule times the weights that is added to the update.
        mask: the leaves that decay: a tree of bools, or a function from parameters to one. Default: None, all leaves.

    Raises:
        ValueError: (at update) the parameters are not given.

    Examples:
        >>> import jax.numpy as jnp, optax, fimlens as fl
        >>> tx = optax.chain(fl.scale_by_racs(), fl.cautious_weight_decay(0.1), optax.scale_by_learning_rate(0.02))
        >>> decay, W, u = fl.cautious_weight_decay(0.5), jnp.array([2.0, 2.0, 2.0]), jnp.array([1.0, -1.0, 0.0])
        >>> decay.update(u, decay.init(W), W)[0].tolist()  # the second weight grows, and does not decay
        [2.0, -1.0, 1.0]
    """
    return compute_in_float32(decay_weights(weight_decay, mask, cautious=True))


def _is_zero(x: Any) -> bool:
    return isinstance(x, float | int) and x == 0

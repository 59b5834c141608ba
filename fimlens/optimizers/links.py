"""Links of an optimizer's chain that several optimizers share: Adam's direction and weight decay."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike
from jaxtyping import ArrayLike, Float, Int, PyTree

from fimlens.structure import Params, Tree
from fimlens.structures import Diagonal
from fimlens.transforms.dtypes import StateDtypes
from fimlens.transforms.momentum import adam_with_guards
from fimlens.transforms.structure_transform import scale_by_structure

Number = Float[ArrayLike, ""] | np.generic  # NumPy does not count its bfloat16 among numbers


Whole = Int[ArrayLike, ""]


Rate = Number | optax.Schedule


Transform = optax.GradientTransformation


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
    weight_decay: Rate, mask: Any, others: Rate | None = None, is_other: Callable[[Any], bool] = lambda path: False
) -> Transform:
    """Decoupled weight decay, `optax.add_decayed_weights`; leaves whose path `is_other` have a decay of their own.

    The state has the same tree for every number, 0 among them, so that a checkpoint does not depend on how it was given.
    A decay that is the Python number 0 needs no parameters at the update.
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
            return update if _is_zero(decay) else update + decay * weights

        if any(map(callable, decays)):
            state = optax.ScaleByScheduleState(optax.safe_increment(state.count))
        return jax.tree_util.tree_map_with_path(decayed, updates, params), state

    tx = optax.GradientTransformation(init, update)
    return tx if mask is None else optax.masked(tx, mask)


def _is_zero(x: Any) -> bool:
    return isinstance(x, float | int) and x == 0

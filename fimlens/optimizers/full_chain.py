"""From a direction for matrices to a full chain: Adam for the other leaves, weight decay, and the two rates."""

import inspect
from collections.abc import Callable
from inspect import Parameter, Signature
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import ArrayLike, Float, PyTree

from fimlens._validate import require_real
from fimlens.structures import Diagonal
from fimlens.transforms.as_matrix import as_matrix
from fimlens.transforms.routing import matrices
from fimlens.transforms.structure_transform import scale_by_structure

Number = Float[ArrayLike, ""]


Rate = Number | optax.Schedule


Transform = optax.GradientTransformation


_AROUND = {
    "weight_decay": 0.0,
    "mask": None,
    "adam_learning_rate": None,
    "route": None,
    "head": False,
    "axes": None,
}


_EXAMPLE = {"rank": 1, "leading": 1}  # in the example, where the direction has them


_AROUND_DOC = """
    The full chain: matrices go to the method, all other leaves to Adam.

    Args:
        learning_rate: a number or a schedule.
        weight_decay, mask: decoupled, times the learning rate; for the leaves where mask (a tree or a function) is True.
        adam_learning_rate: of the other leaves; by default {adam_factor} times the method's.
        route, head: which leaves are the method's; see `fl.matrices`.
        axes: how leaves of more than two axes are seen as matrices; see `fl.as_matrix`.
        The rest: keywords of the direction, above.

    Examples:
        >>> import jax, jax.numpy as jnp, optax, fimlens as fl
        >>> params = {{"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
        >>> tx = fl.{call}  # in place of optax.adamw(1e-3)
        >>> def step(params, state, gradients):
        ...     updates, state = tx.update(gradients, state, params)
        ...     return optax.apply_updates(params, updates), state
        >>> params, state = jax.eval_shape(step, params, tx.init(params), params)  # its shapes; jax.jit(step) to run it
        >>> jax.tree.map(jnp.shape, params), sorted(state[0].inner_states)  # the kernel is the method's, the bias Adam's
        ({{'bias': (3,), 'kernel': (2, 3)}}, ['method', 'others'])
"""


def decayed(weight_decay: Number, mask: Any) -> list[Transform]:
    """Decoupled weight decay as links of a chain: none where it is the number 0."""
    none = isinstance(weight_decay, float | int) and weight_decay == 0
    return [] if none else [optax.add_decayed_weights(weight_decay, mask)]


def require_rate(call: str, name: str, rate: Any) -> None:
    """Refuse what is no rate of learning.

    Raises:
        TypeError: it is neither a number, an array, nor a schedule.
    """
    if not (callable(rate) or isinstance(rate, int | float | np.generic | np.ndarray | jax.Array)):
        raise TypeError(f"{call}: {name} is a number, an array or a schedule, such as 1e-3; got {rate!r}.")


def _times(factor: float, rate: Rate) -> Rate:
    return (lambda step: factor * rate(step)) if callable(rate) else factor * rate


def full_chain(
    direction: Callable[..., Transform], adam_factor: float = 1.0, adam: Transform | None = None
) -> Callable[..., Transform]:
    """The optimizer of a `scale_by_*` for matrices: Adam for all other leaves, weight decay, and the two rates.

    It takes the learning rate, the keywords of `direction`, and those of `_AROUND`. By default Adam's rate is `adam_factor`
    times the method's, schedule or number.
    """

    name = direction.__name__.removeprefix("scale_by_")
    others = scale_by_structure(Diagonal()) if adam is None else adam

    def optimizer(learning_rate: Rate, **options: Any) -> Transform:
        try:
            given = signature.bind(learning_rate, **options)
        except TypeError as error:
            raise TypeError(f"{name}: {error}. Its arguments are {', '.join(signature.parameters)}.") from None
        given.apply_defaults()
        options = dict(given.arguments)
        around = {name: options.pop(name) for name in ("learning_rate", *_AROUND)}
        adam_rate = around["adam_learning_rate"]
        require_rate(name, "learning_rate", learning_rate)
        if adam_rate is None:
            adam_rate = _times(adam_factor, learning_rate)
        require_rate(name, "adam_learning_rate", adam_rate)
        routing = {"route": around["route"], "head": around["head"]}
        rates = (optax.scale_by_learning_rate(rate) for rate in (learning_rate, adam_rate))
        chain = optax.chain(
            matrices(as_matrix(direction(**options), around["axes"]), others, **routing),
            *decayed(around["weight_decay"], around["mask"]),  # over the whole tree, so that any mask fits
            matrices(*rates, **routing),
        )

        def init(params: PyTree) -> Any:
            require_real(name, params)
            return chain.init(params)

        return optax.GradientTransformationExtraArgs(init, chain.update)

    around = [Parameter(name, Parameter.KEYWORD_ONLY, default=default) for name, default in _AROUND.items()]
    own = list(inspect.signature(direction).parameters.values())
    signature = Signature([Parameter("learning_rate", Parameter.POSITIONAL_OR_KEYWORD), *own, *around])
    optimizer.__signature__ = signature
    optimizer.__module__ = direction.__module__
    optimizer.__name__ = optimizer.__qualname__ = name
    says = inspect.getdoc(direction).partition("\n\nExamples:")[0]
    options = "".join(f", {option}={value}" for option, value in _EXAMPLE.items() if option in signature.parameters)
    around_doc = inspect.cleandoc(_AROUND_DOC).format(adam_factor=adam_factor, call=f"{name}(0.02{options})")
    optimizer.__doc__ = f"{says}\n\n{around_doc}"
    return optimizer

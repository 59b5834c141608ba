"""From a direction for matrices to a full optimizer: Adam for the other leaves, weight decay, and two learning rates."""

import inspect
from collections.abc import Callable
from inspect import Parameter, Signature
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import ArrayLike, Float, Int, PyTree

from fimlens._validate import require_real
from fimlens.optimizers.docstrings import argument_lines, sections, with_arguments
from fimlens.structures import Diagonal
from fimlens.transforms.as_matrix import as_matrix
from fimlens.transforms.momentum import compute_in_float32
from fimlens.transforms.routing import METHOD, OTHERS, leaf_labels
from fimlens.transforms.structure_transform import scale_by_structure

Number = Float[ArrayLike, ""]


Whole = Int[ArrayLike, ""]


Rate = Number | optax.Schedule


Transform = optax.GradientTransformation


CHAIN_DEFAULTS = {
    "weight_decay": 0.0,
    "mask": None,
    "adam_learning_rate": None,
    "route": None,
    "head": False,
    "axes": None,
}


_EXAMPLE_SIZES = {"rank": 1, "leading": 1}  # what the example gives for arguments that have no default


_DOC = """
{direction}

This is the full optimizer: matrices go to the method, all other leaves to Adam. `fl.{direction_name}` is the direction alone.

Args:
    learning_rate: step size of the matrices: a number, an array or an Optax schedule.
    weight_decay: decoupled weight decay: each step subtracts it times the leaf's rate times the weights. Default: 0.
    mask: the leaves that decay: a tree of bools, or a function from parameters to one. Default: None, all leaves.
    adam_learning_rate: step size of the other leaves. Default: None, {adam_rate}.
    route: which leaves are matrices; see `fl.matrices`. Default: None, its rule by shapes and names.
    head: whether the output head goes to the method, under that rule. Default: False, it goes to Adam.
    axes: which axes of a leaf of three or more are a matrix; see `fl.as_matrix`. Default: None, its rule by their number.

Raises:
    TypeError: a rate is neither a number, an array nor a schedule, an argument is unknown, or (at init) a parameter is not of
        real floating point.
    ValueError: an option is out of its range, or (at init) `route` or `axes` does not suit the parameters.

Examples:
    >>> import jax, jax.numpy as jnp, optax, fimlens as fl
    >>> params = {{"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
    >>> tx = {call}  # in place of optax.adamw(1e-3)
    >>> def step(params, state, gradients):
    ...     updates, state = tx.update(gradients, state, params)
    ...     return optax.apply_updates(params, updates), state
    >>> params, state = jax.eval_shape(step, params, tx.init(params), params)  # its shapes; jax.jit(step) to run it
    >>> jax.tree.map(jnp.shape, params), sorted(state[0].inner_states)  # the kernel is the method's, the bias Adam's
    ({{'bias': (3,), 'kernel': (2, 3)}}, ['method', 'others'])
"""


def decay_links(weight_decay: Number, mask: Any) -> list[Transform]:
    """Decoupled weight decay as links of a chain; no link if it is the number 0."""
    is_zero = isinstance(weight_decay, float | int) and weight_decay == 0
    return [] if is_zero else [optax.add_decayed_weights(weight_decay, mask)]


def require_rate(call: str, name: str, rate: Any) -> None:
    """Refuse a learning rate of another kind.

    Raises:
        TypeError: it is neither a number, an array nor a schedule.
    """
    if not (callable(rate) or isinstance(rate, int | float | np.generic | np.ndarray | jax.Array)):
        raise TypeError(f"{call}: {name} is a number, an array or a schedule, such as 1e-3; got {rate!r}.")


def full_chain(
    direction: Callable[..., Transform], adam_factor: float = 1.0, adam: Transform | None = None
) -> Callable[..., Transform]:
    """Make the full optimizer of a direction `scale_by_*` for matrices.

    The optimizer takes the learning rate, the keywords of `direction` and those of CHAIN_DEFAULTS. Its docstring lists them
    all, the direction's with the descriptions in the direction's own docstring.

    Args:
        direction: makes the transform of the matrices.
        adam_factor: Adam's default learning rate, relative to the method's.
        adam: the direction of the other leaves. Default: None, Adam.
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
        around = {name: options.pop(name) for name in ("learning_rate", *CHAIN_DEFAULTS)}
        adam_rate = around["adam_learning_rate"]
        require_rate(name, "learning_rate", learning_rate)
        if adam_rate is None:
            adam_rate = _times(adam_factor, learning_rate)
        require_rate(name, "adam_learning_rate", adam_rate)
        directions = {METHOD: as_matrix(direction(**options), around["axes"]), OTHERS: others}
        decay = decay_links(around["weight_decay"], around["mask"])
        rates = {METHOD: optax.scale_by_learning_rate(learning_rate), OTHERS: optax.scale_by_learning_rate(adam_rate)}
        return _routed(name, directions, decay, rates, leaf_labels(around["route"], around["head"]))

    chain_parameters = [Parameter(name, Parameter.KEYWORD_ONLY, default=default) for name, default in CHAIN_DEFAULTS.items()]
    own = list(inspect.signature(direction).parameters.values())
    signature = Signature([Parameter("learning_rate", Parameter.POSITIONAL_OR_KEYWORD), *own, *chain_parameters])
    optimizer.__signature__ = signature
    optimizer.__module__ = direction.__module__
    optimizer.__name__ = optimizer.__qualname__ = name
    optimizer.__doc__ = _documented(direction, name, signature, adam_factor)
    return optimizer


def _routed(
    name: str,
    directions: dict[str, Transform],
    decay: list[Transform],
    rates: dict[str, Transform],
    labels_of: Callable[[PyTree], PyTree],
) -> Transform:
    """The chain of directions, decay and rates; directions and rates have one entry for each label."""

    def chain(tree: PyTree) -> Transform:
        labels = labels_of(tree)  # once for both partitions
        # Labels go in as a function: a tree of them may be a module of Equinox, which partition would call.
        direction, rate = (optax.partition(by_label, lambda _: labels) for by_label in (directions, rates))
        # The decay stands between the two, where it sees the whole tree, so that any mask fits.
        return optax.chain(direction, *decay, rate)

    def init(params: PyTree) -> Any:
        require_real(name, params)
        return chain(params).init(params)

    def update(updates: PyTree, state: Any, params: PyTree = None, **extra: Any) -> tuple[PyTree, Any]:
        return chain(updates).update(updates, state, params, **extra)

    return compute_in_float32(optax.GradientTransformationExtraArgs(init, update))


def _times(factor: float, rate: Rate) -> Rate:
    return (lambda step: factor * rate(step)) if callable(rate) else factor * rate


def _documented(direction: Callable[..., Transform], name: str, signature: Signature, adam_factor: float) -> str:
    """The docstring of a full optimizer: the direction's text, all arguments in the signature's order, and an example."""
    sizes = "".join(f", {option}={value}" for option, value in _EXAMPLE_SIZES.items() if option in signature.parameters)
    package = "fl." if direction.__module__.startswith("fimlens.") else ""  # an optimizer from outside is where it is defined
    doc = inspect.cleandoc(_DOC).format(
        direction=sections(direction.__doc__)[""],
        direction_name=direction.__name__,
        adam_rate="`learning_rate`" if adam_factor == 1 else f"{adam_factor} times `learning_rate`",
        call=f"{package}{name}(0.02{sizes})",
    )
    return with_arguments(doc, {**argument_lines(direction.__doc__), **argument_lines(doc)}, signature.parameters)

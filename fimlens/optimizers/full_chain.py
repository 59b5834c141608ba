"""From a direction for matrices to a full optimizer: Adam for the other leaves, weight decay, and two learning rates."""

import inspect
from collections.abc import Callable
from functools import partial
from inspect import Parameter
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import PyTree

from fimlens._validate import path_name, require_real
from fimlens.optimizers.docstrings import argument_lines, sections, with_arguments
from fimlens.optimizers.links import Number as Number
from fimlens.optimizers.links import Optimizer, decay_weights, scale_by_adam
from fimlens.optimizers.links import Rate as Rate
from fimlens.optimizers.links import Transform as Transform
from fimlens.optimizers.links import Whole as Whole
from fimlens.optimizers.signature import OptimizerSignature, bound_arguments
from fimlens.transforms.as_matrix import per_layout, through_views
from fimlens.transforms.momentum import compute_in_float32
from fimlens.transforms.routing import METHOD, OTHERS, leaf_labels, leaf_views

CHAIN_DEFAULTS = {
    "weight_decay": 0.0,
    "mask": None,
    "cautious_decay": False,
    "adam_learning_rate": None,
    "adam_weight_decay": None,
    "adam_b1": 0.9,
    "adam_b2": 0.999,
    "adam_eps": 1e-8,
    "adam_eps_root": 0.0,
    "route": None,
    "head": False,
    "axes": None,
}


_EXAMPLE_VALUES = {"rank": 1, "leading": 1, "choices": {"kernel": "soap"}}  # of arguments that have no default


_DOC = """
{direction}

This is the full optimizer: matrices go to the method, all other leaves to Adam. `fl.{direction_name}` is the direction alone.

Args:
    learning_rate: step size of the matrices: a number, an array or an Optax schedule.
    weight_decay: decoupled weight decay, a number or a schedule: each step subtracts it times the leaf's rate times the
        weights. Default: 0.
    mask: the leaves that decay: a tree of bools, or a function from parameters to one. Default: None, all leaves.
    cautious_decay: whether only weights that the update moves toward zero decay; see `fl.cautious_weight_decay`. Default:
        False.
    adam_learning_rate: step size of the other leaves. Default: None, {adam_rate}.
    adam_weight_decay: weight decay of the other leaves. Default: None, `weight_decay`.
    adam_b1: decay of Adam's momentum. Default: 0.9, as in Adam.
    adam_b2: decay of Adam's second moments. Default: 0.999, as in Adam.
    adam_eps: number added to the root of each of Adam's second moments. Default: 1e-8, as in Adam.
    adam_eps_root: number added to each of Adam's second moments under the root. Default: 0, as in Adam.
    route: which leaves are matrices; see `fl.matrices`. Default: None, its rule by shapes and names.
    head: whether the output head goes to the method, under that rule. Default: False, it goes to Adam.
    axes: which axes of a leaf are a matrix; see `fl.matrices`. Default: None, by the evidence described there.

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


def require_rate(call: str, name: str, rate: Any) -> None:
    """Refuse a learning rate of another kind.

    Raises:
        TypeError: it is neither a number, an array nor a schedule.
    """
    if not (callable(rate) or isinstance(rate, int | float | np.generic | np.ndarray | jax.Array)):
        raise TypeError(f"{call}: {name} is a number, an array or a schedule, such as 1e-3; got {rate!r}.")


def full_chain(direction: Callable[..., Transform], adam_factor: float = 1.0, adam_nesterov: bool = False) -> Optimizer:
    """Make the full optimizer of a direction `scale_by_*` for matrices.

    The optimizer takes the learning rate, the keywords of `direction` and those of CHAIN_DEFAULTS. Its docstring lists them
    all, the direction's with the descriptions in the direction's own docstring.

    Args:
        direction: makes the transform of the matrices.
        adam_factor: Adam's default learning rate, relative to the method's.
        adam_nesterov: whether Adam's momentum looks one step ahead.
    """

    name = direction.__name__.removeprefix("scale_by_")

    def optimizer(*args: Any, **kwargs: Any) -> Transform:
        options = bound_arguments(name, signature, args, kwargs)
        around = {name: options.pop(name) for name in ("learning_rate", *CHAIN_DEFAULTS)}
        rate, adam_rate = around["learning_rate"], around["adam_learning_rate"]
        require_rate(name, "learning_rate", rate)
        if adam_rate is None:
            adam_rate = _times(adam_factor, rate)
        require_rate(name, "adam_learning_rate", adam_rate)
        adam = {option: around[f"adam_{option}"] for option in ("b1", "b2", "eps", "eps_root")}
        directions = {METHOD: direction(**options), OTHERS: scale_by_adam(**adam, nesterov=adam_nesterov)}
        decays = around["weight_decay"], around["mask"], around["adam_weight_decay"]
        decay = partial(decay_weights, *decays, cautious=around["cautious_decay"])
        rates = {METHOD: optax.scale_by_learning_rate(rate), OTHERS: optax.scale_by_learning_rate(adam_rate)}
        return _routed(name, directions, decay, rates, leaf_views(name, around["route"], around["head"], around["axes"]))

    chain_parameters = [Parameter(name, Parameter.KEYWORD_ONLY, default=default) for name, default in CHAIN_DEFAULTS.items()]
    own = list(inspect.signature(direction).parameters.values())
    signature = OptimizerSignature([Parameter("learning_rate", Parameter.POSITIONAL_OR_KEYWORD), *own, *chain_parameters])
    optimizer.__signature__ = signature
    optimizer.__module__ = direction.__module__
    optimizer.__name__ = optimizer.__qualname__ = name
    optimizer.__doc__ = _documented(direction, name, signature, adam_factor)
    optimizer.adam_factor = adam_factor  # for what reports the rate of Adam's leaves
    return optimizer


def _routed(
    name: str,
    directions: dict[str, Transform],
    decay: Callable[..., Transform],
    rates: dict[str, Transform],
    views_of: Callable[..., Any],
) -> Transform:
    """The chain of directions, decay and rates; directions and rates have one entry for each label."""

    def chain(tree: PyTree) -> Transform:
        views = views_of(tree)
        labels = leaf_labels(tree, views)  # once for both partitions
        seen = directions | {METHOD: through_views(directions[METHOD], views)}
        # Labels go in as a function: a tree of them may be a module of Equinox, which partition would call.
        direction, rate = (optax.partition(by_label, lambda _: labels) for by_label in (seen, rates))
        # The decay stands between the two, where it sees the whole tree, so that any mask fits.
        return optax.chain(direction, decay(is_other=lambda path: not views[path_name(path)]), rate)

    def check(params: PyTree) -> None:
        require_real(name, params)
        views_of(params, warn=True)

    return compute_in_float32(per_layout(chain, check))


def _times(factor: float, rate: Rate) -> Rate:
    return (lambda step: factor * rate(step)) if callable(rate) else factor * rate


def _documented(direction: Callable[..., Transform], name: str, signature: OptimizerSignature, adam_factor: float) -> str:
    """The docstring of a full optimizer: the direction's text, all arguments in the signature's order, and an example."""
    sizes = "".join(f", {option}={value}" for option, value in _EXAMPLE_VALUES.items() if option in signature.parameters)
    package = "fl." if direction.__module__.startswith("fimlens.") else ""  # an optimizer from outside is where it is defined
    doc = inspect.cleandoc(_DOC).format(
        direction=sections(direction.__doc__)[""],
        direction_name=direction.__name__,
        adam_rate="`learning_rate`" if adam_factor == 1 else f"{adam_factor} times `learning_rate`",
        call=f"{package}{name}(0.02{sizes})",
    )
    return with_arguments(doc, {**argument_lines(direction.__doc__), **argument_lines(doc)}, signature.parameters)

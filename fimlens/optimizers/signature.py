"""The signatures of optimizers: Optax's names of arguments, and arguments that `optax.inject_hyperparams` must leave alone."""

import functools
import inspect
from collections.abc import Callable
from inspect import BoundArguments, Signature
from typing import Any, NamedTuple

import optax

from fimlens.optimizers.links import Optimizer
from fimlens.transforms.dtypes import state_dtypes

# Optax's names of arguments, and ours.
OPTAX_NAMES = {
    "weight_decay_mask": "mask",
    "weight_decay_rate": "weight_decay",
    "ns_steps": "steps",
    "ns_coeffs": "coefficients",
    "update_proj_gap": "update_interval",
    "scale": "alpha",
    "muon_weight_dimension_numbers": "axes",
    "weight_dimension_numbers": "axes",
}


# Optax's names for the dtype of a momentum.
MOMENTUM_DTYPES = ("mu_dtype", "accumulator_dtype", "dtype_momentum")


# Arguments that are no numbers of a formula: functions of parameters, and sizes, which make shapes.
STATIC = ("mask", "route", "axes", "rank", "leading", "max_basis_dim")


class Static(NamedTuple):
    """An argument in a box, which keeps Optax from taking a function for a schedule, or a size for a number to be traced."""

    value: Any


class OptimizerSignature(Signature):
    """A signature that knows Optax's names, lists its arguments where it refuses one, and boxes those that are static.

    `optax.inject_hyperparams` binds arguments by it as well.
    """

    __slots__ = ()

    def bind(self, /, *args: Any, **kwargs: Any) -> BoundArguments:
        try:
            bound = super().bind(*args, **self._by_our_names(kwargs))
        except TypeError as error:
            raise TypeError(f"{error}. Its arguments are {', '.join(self.parameters)}.") from None
        for name, parameter in self.parameters.items():
            value = bound.arguments.get(name, parameter.default)
            # A b3 of 0 is a size as well: no covariance is kept.
            untracked = name == "b3" and isinstance(value, float | int) and value == 0
            if (name in STATIC or untracked) and value is not inspect.Parameter.empty and not isinstance(value, Static):
                bound.arguments[name] = Static(value)
        return bound

    def _by_our_names(self, given: dict[str, Any]) -> dict[str, Any]:
        own = {}
        for name, value in given.items():
            ours = OPTAX_NAMES.get(name, name)
            own[name if name in self.parameters or ours not in self.parameters or ours in given else ours] = value
        for name in MOMENTUM_DTYPES:
            if name in own and name not in self.parameters and "dtypes" in self.parameters:
                own["dtypes"] = state_dtypes(own.get("dtypes"))._replace(momentum=own.pop(name))
        return own


def bound_arguments(call: str, signature: Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, with defaults.

    Raises:
        TypeError: an argument is unknown, missing or given twice. The message starts with `call` and lists the arguments.
    """
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{call}: {error}") from None
    bound.apply_defaults()
    return {name: value.value if isinstance(value, Static) else value for name, value in bound.arguments.items()}


def takes_optax_names(function: Callable[..., optax.GradientTransformation]) -> Optimizer:
    """Let an optimizer take Optax's names of its arguments too."""
    signature = OptimizerSignature(list(inspect.signature(function).parameters.values()))

    @functools.wraps(function)
    def optimizer(*args: Any, **kwargs: Any) -> optax.GradientTransformation:
        return function(**bound_arguments(function.__name__, signature, args, kwargs))

    optimizer.__signature__ = signature
    return optimizer

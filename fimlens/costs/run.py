"""What a training run costs with each optimizer: memory, devices, hours and money."""

import math
from collections.abc import Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from fimlens._validate import require_known
from fimlens.costs.flops import step_flops
from fimlens.costs.formulas import devices_needed, hours, memory, money, saving
from fimlens.costs.memory import GIB, NAMED, Optimizer, account, at_rank, grouped, optimizers_of
from fimlens.costs.papers import RANKS
from fimlens.costs.speed_ups import SPEED_UPS, UNMEASURED, SpeedUp
from fimlens.costs.training import PAPERS_BATCH, Batch, activations, model_flops
from fimlens.language_model import llama

USABLE = 0.9  # of a device's memory; gathered layers, temporaries, buffers and fragmentation take the rest


class Terms(NamedTuple):
    """What a run is given.

    `tokens` is the number that Adam is trained on, and `devices` the number of devices, None for as few as fit. `memory` and
    `peak` are the bytes and FLOP/s of one device, `price` the dollars for an hour of it. `utilisation` is the share of the peak
    that training reaches.
    """

    tokens: float
    devices: int | None
    memory: float
    peak: float
    utilisation: float
    price: float

    @property
    def usable(self) -> float:
        """The bytes of a device that the run may take."""
        return USABLE * self.memory


class Demand(NamedTuple):
    """What training with one optimizer takes, whatever the devices.

    `weights` and `state` are bytes, `working` bytes of activations on each device. `flops_per_token` are the model's, which
    are Adam's too, and the optimizer's own.
    """

    weights: int
    state: int
    working: int
    flops_per_token: float
    adams_flops_per_token: float


class Row(NamedTuple):
    """The costs of one optimizer: first the coefficients of its formulas, then the results.

    `held` are bytes of weights, gradients and state, `working` bytes of activations on each device.
    """

    optimizer: str
    speed_up: SpeedUp
    held: int
    working: int
    flops_per_token: float
    adams_flops_per_token: float
    devices_needed: int
    devices: int
    memory: float
    hours: float
    money: float
    saving: float


def costs(
    optimizers: Iterable[str] | Mapping[str, Optimizer],
    *,
    model: str,
    terms: Terms,
    speed_ups: Mapping[str, SpeedUp] = MappingProxyType({}),
    batch: Batch = PAPERS_BATCH,
    dtype: DTypeLike = jnp.bfloat16,
    rank: int | None = None,
) -> list[Row]:
    """Cost a training run with each optimizer, to compare their memory, hours and money before anything is run.

    Args:
        optimizers: names such as "racs", or functions of the learning rate by a name of your own. An optimizer that can leave
            the output head to Adam does so.
        model: a name of llama.CONFIGS.
        terms: tokens, devices and price.
        speed_ups: Adam's steps over the optimizer's, by name, in place of those that we measured.
        batch: the sequences of a step.
        dtype: the dtype of weights, gradients, state and activations.
        rank: the rank of the low-rank methods. Default: the paper's for the model.

    Raises:
        ValueError: a name is unknown, a number is out of its range, or the run does not fit.

    Examples:
        >>> from fimlens.costs.run import Terms, costs
        >>> from fimlens.costs.devices import DEVICES
        >>> h100 = DEVICES["h100"]
        >>> terms = Terms(1.3e9, None, h100.memory, h100.peak, 0.4, h100.price)
        >>> costs(["adam"], model="llama-60m", terms=terms)[0].devices
        1
    """
    require_known("cost", "model", model, llama.CONFIGS)
    chosen = optimizers_of("cost", optimizers)
    for name in speed_ups:
        require_known("cost", "optimizer", name, NAMED | chosen)
    ratios = {f"the speed-up of {name}": speed_up.ratio for name, speed_up in speed_ups.items()}
    for name, value in {**terms._asdict(), **batch._replace(rematerialise=True)._asdict(), **ratios}.items():
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"cost: {name} is a positive, finite number; got {value}")
    if terms.utilisation > 1:
        raise ValueError(f"cost: utilisation is a share of the peak, at most 1; got {terms.utilisation}")
    rank = RANKS[model] if rank is None else rank
    hidden = llama.CONFIGS[model].hidden
    if not 1 <= rank <= hidden:
        raise ValueError(f"cost: rank is from 1 to {hidden}, the shorter side of {model}'s matrices; got {rank}")
    sized = {name: at_rank(make, rank) for name, make in chosen.items()}
    needs = demands(sized, config=llama.CONFIGS[model], batch=batch, dtype=dtype, state_dtype=dtype)
    known = SPEED_UPS | dict(speed_ups)
    return [_row(name, known.get(name, UNMEASURED), need, terms, batch) for name, need in needs.items()]


def demands(
    optimizers: Mapping[str, Optimizer], *, config: llama.Config, batch: Batch, dtype: DTypeLike, state_dtype: DTypeLike
) -> dict[str, Demand]:
    """Count what training a model with each optimizer takes, from shapes alone.

    Args:
        optimizers: functions of the learning rate by name, whose ranks are fixed. One that can leave the output head to Adam
            does so.
        config: the sizes of the model.
        batch: the sequences of a step.
        dtype: the dtype of weights, gradients and activations.
        state_dtype: the dtype of the optimizer's state.
    """
    shapes = jax.eval_shape(partial(llama.init, config), jax.random.key(0))
    groups = grouped(shapes)
    working = activations(config, batch, jnp.dtype(dtype).itemsize)
    adams = model_flops(config, groups, batch)
    found = {}
    for name, make in optimizers.items():
        taken = account(shapes, {name: make}, weight_dtype=dtype, state_dtype=state_dtype)[0]
        weights, state = sum(taken.weights.values()), sum(taken.state.values())
        own = step_flops(make(1.0), groups["matrices"]) / (batch.sequences * batch.length)
        found[name] = Demand(weights, state, working, adams + own, adams)
    return found


def _row(name: str, speed_up: SpeedUp, need: Demand, terms: Terms, batch: Batch) -> Row:
    weights, state, working, flops, adams = need
    held = 2 * weights + state  # gradients take as much as weights
    room = f"{terms.usable / GIB:.1f} GiB usable"
    if working >= terms.usable:
        raise ValueError(
            f"cost: activations of {batch.at_once} sequences at once take {working / GIB:.1f} GiB; a device has {room}. "
            "Take a smaller micro-batch, or rematerialise."
        )
    needed = int(devices_needed(held, working, terms.usable))
    devices = terms.devices or needed
    if devices < needed:
        raise ValueError(f"cost: the run does not fit: with {name} it needs {needed} devices of {room}; got {devices}")
    if devices > batch.sequences:
        raise ValueError(
            f"cost: {devices} devices are more than the {batch.sequences} sequences of a step; each needs at least one."
        )
    took = hours(terms.tokens, speed_up.ratio, flops, devices, terms.peak, terms.utilisation)
    return Row(
        optimizer=name,
        speed_up=speed_up,
        held=held,
        working=working,
        flops_per_token=flops,
        adams_flops_per_token=adams,
        devices_needed=needed,
        devices=devices,
        memory=memory(held, working, devices),
        hours=took,
        money=money(took, devices, terms.price),
        saving=saving(flops, speed_up.ratio, adams),
    )

"""What a training run costs: memory, devices, hours and money, in closed form.

The five formulas take numbers, and symbols too: the interactive page is given them as they stand here (`cost_page`).
"""

import math
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import sympy
from jax.typing import DTypeLike
from jaxtyping import PyTree

from fimlens.costs.flops import step_flops
from fimlens.costs.memory import FORMULAS, GIB, RANKS, account, grouped
from fimlens.language_model import llama

Quantity = int | float | sympy.Expr


USABLE = 0.9  # of a device's memory; the rest is for gathered layers, temporaries, buffers and fragments


def devices_needed(held: Quantity, working: Quantity, usable: Quantity) -> Quantity:
    """The smallest number of devices of `usable` bytes: `held` bytes shared evenly among them, `working` bytes on each."""
    return -(-held // (usable - working))


def memory(held: Quantity, working: Quantity, devices: Quantity) -> Quantity:
    """Bytes on each device."""
    return held / devices + working


def hours(
    tokens: Quantity, speed_up: Quantity, flops_per_token: Quantity, devices: Quantity, peak: Quantity, utilisation: Quantity
) -> Quantity:
    """Hours of training; `tokens` are Adam's, `peak` is FLOP/s of a device."""
    return tokens / speed_up * flops_per_token / (devices * peak * utilisation) / 3600


def money(hours: Quantity, devices: Quantity, price: Quantity) -> Quantity:
    """In the currency of `price`, which is for a device and an hour."""
    return hours * devices * price


def saving(flops_per_token: Quantity, speed_up: Quantity, adams_flops_per_token: Quantity) -> Quantity:
    """The share of Adam's money that is saved; tokens, devices, their speed and price cancel."""
    return 1 - flops_per_token / speed_up / adams_flops_per_token


class SpeedUp(NamedTuple):
    """Adam's steps over the optimizer's, to the same loss; and who says so."""

    ratio: float
    source: str


# [G], LLaMA of 60M to 1.3B parameters on C4.
SPEED_UPS = {
    "adam": SpeedUp(1.0, "what the others are compared with"),
    "racs": SpeedUp(1.5, "lower end of the 1.5 to 2.4 that [G] reports in wall clock, here taken for steps"),
    "alice": SpeedUp(2.0, "lower end of the 2.0 to 2.8 times fewer steps that [G] reports"),
}


UNREPORTED = SpeedUp(1.0, "assumed: as many steps as Adam, where no figure is at hand")


class Batch(NamedTuple):
    """Sequences in a step, tokens in each, sequences on a device at once; and whether activations are computed anew."""

    sequences: int = 512
    length: int = 256
    at_once: int = 8
    rematerialise: bool = False


PAPERS_BATCH = Batch()  # [G]'s sequences and length


class Terms(NamedTuple):
    """Tokens for Adam; devices (None: as few as fit), their bytes and peak FLOP/s; share of the peak; price of one an hour."""

    tokens: float
    devices: int | None
    memory: float
    peak: float
    utilisation: float
    price: float

    @property
    def usable(self) -> float:
        """Bytes of a device that the run may take."""
        return USABLE * self.memory


class Row(NamedTuple):
    """One optimizer: the coefficients of its formulas, and what they come to. Bytes, FLOPs, hours, the price's currency."""

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
    names: Sequence[str],
    *,
    model: str,
    terms: Terms,
    speed_ups: Mapping[str, SpeedUp] = MappingProxyType({}),
    batch: Batch = PAPERS_BATCH,
    dtype: DTypeLike = jnp.bfloat16,
    rank: int | None = None,
) -> list[Row]:
    """A row for each optimizer on a model of llama.CONFIGS; weights, gradients, state and activations are in `dtype`.

    Args:
        names: of optimizers, such as "racs"; the output head is Adam's where an optimizer has the choice.
        speed_ups: in place of SPEED_UPS.
        rank: of the low-rank methods; by default the paper's for the model.

    Raises:
        ValueError: a name is unknown, a number out of its range, or the run does not fit.

    Examples:
        >>> from fimlens.costs.run import Terms, costs
        >>> from fimlens.costs.devices import DEVICES
        >>> h100 = DEVICES["h100"]
        >>> terms = Terms(1.3e9, None, h100.memory, h100.peak, 0.4, h100.price)
        >>> costs(["adam"], model="llama-60m", terms=terms)[0].devices
        1
    """
    require_known("model", model, llama.CONFIGS)
    for name in [*names, *speed_ups]:
        require_known("optimizer", name, FORMULAS)
    ratios = {f"the speed-up of {name}": speed_up.ratio for name, speed_up in speed_ups.items()}
    for name, value in {**terms._asdict(), **batch._replace(rematerialise=True)._asdict(), **ratios}.items():
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} is a positive, finite number; got {value}")
    if terms.utilisation > 1:
        raise ValueError(f"utilisation is a share of the peak, at most 1; got {terms.utilisation}")
    config = llama.CONFIGS[model]
    rank = RANKS[model] if rank is None else rank
    if not 1 <= rank <= config.hidden:
        raise ValueError(f"rank: {rank} is not from 1 to {config.hidden}, the shorter side of {model}'s matrices")
    shapes = jax.eval_shape(partial(llama.init, config), jax.random.key(0))
    groups = grouped(shapes)
    working = activations(config, batch, jnp.dtype(dtype).itemsize)
    adams = model_flops(config, groups, batch)
    rows = []
    for name in names:
        taken = account(shapes, [name], weight_dtype=dtype, state_dtype=dtype, rank=rank)[0]
        held = 2 * sum(taken.weights.values()) + sum(taken.state.values())
        own = step_flops(name, groups["matrices"], rank) / (batch.sequences * batch.length)
        speed_up = speed_ups.get(name) or SPEED_UPS.get(name, UNREPORTED)
        rows.append(_row(name, speed_up, held, working, adams + own, adams, terms, batch))
    return rows


def activations(config: llama.Config, batch: Batch, width: int) -> int:
    """Bytes on a device, `width` each: 8 d + 4 mlp numbers of a token and layer, or d if rematerialised; and the logits.

    Kept of a layer are its input, the residual between its halves, the norms of both, queries, keys, values, the attention's
    output, and four of the width of the MLP; no attention scores, as with a fused kernel. Rematerialised, the inputs
    of all layers and one layer in full. Logits and their gradient are in float32.
    """
    layer = 8 * config.hidden + 4 * config.mlp
    kept = config.layers * config.hidden + layer if batch.rematerialise else config.layers * layer
    return min(batch.at_once, batch.sequences) * batch.length * (width * kept + 2 * 4 * config.vocabulary)


def model_flops(config: llama.Config, groups: Mapping[str, PyTree], batch: Batch) -> float:
    """FLOPs of a token, forward and backward: 6 a weight that multiplies (Kaplan et al., 2020), 12 T d a layer for attention.

    The latter as in Chowdhery et al. (2022), appendix B: a causal mask saves nothing. Rematerialisation is a second forward.
    """
    weights = sum(leaf.size for group in ("matrices", "head") for leaf in jax.tree.leaves(groups[group]))
    once = 6 * weights + 12 * config.layers * config.hidden * batch.length
    return once * (4 / 3 if batch.rematerialise else 1.0)


def require_known(what: str, name: str, known: Collection[str]) -> None:
    """Refuse a name that is not known, and say which is nearest.

    Raises:
        ValueError: it is not.
    """
    if name not in known:
        nearest = "".join(f" Is it {near!r}?" for near in get_close_matches(name, known, 1))
        raise ValueError(f"there is no {what} {name!r}.{nearest} There are {', '.join(known)}.")


def _row(name: str, speed_up: SpeedUp, held: int, working: int, flops: float, adams: float, terms: Terms, batch: Batch) -> Row:
    room = f"{terms.usable / GIB:.1f} GiB usable"
    if working >= terms.usable:
        raise ValueError(
            f"activations of {batch.at_once} sequences at once take {working / GIB:.1f} GiB; a device has {room}. "
            "Take a smaller micro-batch, or rematerialise."
        )
    needed = int(devices_needed(held, working, terms.usable))
    devices = terms.devices or needed
    if devices < needed:
        raise ValueError(f"the run does not fit: with {name} it needs {needed} devices of {room}; got {devices}")
    if devices > batch.sequences:
        raise ValueError(f"{devices} devices are more than the {batch.sequences} sequences of a step; one has at least one.")
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

"""What a comparison would take on machines that are not at hand: memory, FLOPs and hours of its runs, without any training."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from fimlens import optimizers
from fimlens.costs.devices import MEASURED_UTILISATION, Device
from fimlens.costs.formulas import devices_needed, hours
from fimlens.costs.memory import GIB
from fimlens.costs.run import USABLE, Demand, demands
from fimlens.costs.training import Batch
from fimlens.experiments.comparison import Entry
from fimlens.pretrain.model import CONFIGS
from fimlens.pretrain.plan import Plan

MEMORY_HEADINGS = ("optimizer", "weights", "gradients", "state", "activations", "GiB", "fits")


TIME_HEADINGS = ("optimizer", "steps", "tokens", "FLOPs", "own share, %", "hours")


class Machine(NamedTuple):
    """The devices of a dry run: their name, their figures, their number, and the share of the peak that training reaches."""

    name: str
    device: Device
    count: int = 1
    utilisation: float = MEASURED_UTILISATION


class Need(NamedTuple):
    """What all runs of one optimizer take.

    Attributes:
        name: the optimizer's name in the comparison.
        demand: what a training takes, whatever its length.
        gradients: bytes of the gradients, and with accumulation of their sums in float32.
        runs: number of runs, at most: a bracketed rate needs fewer.
        steps: steps of all runs.
        tokens: tokens of all runs.
        bytes: on each device, which has a copy of weights, gradients and state of its own.
        devices: the smallest number of devices that hold a run if they share these evenly, as in `fimlens pretrain --mesh`; 0
            if activations alone do not fit on one.
        hours: of all runs, one after the other.
    """

    name: str
    demand: Demand
    gradients: int
    runs: int
    steps: int
    tokens: int
    bytes: int
    devices: int
    hours: float

    @property
    def flops(self) -> float:
        """FLOPs of all runs."""
        return self.tokens * self.demand.flops_per_token

    @property
    def share(self) -> float:
        """The optimizer's own share of these."""
        return 1 - self.demand.adams_flops_per_token / self.demand.flops_per_token


def dry_run(entries: list[Entry], base: Plan, runs: Mapping[int, int], machine: Machine) -> list[Need]:
    """Count what a comparison takes, to decide where to run it.

    Args:
        entries: the optimizers.
        base: the plan of every run, apart from model, optimizer, rate and seed.
        runs: the number of runs of each optimizer, by their steps.
        machine: the devices.

    Raises:
        ValueError: the utilisation is not between 0 and 1.
    """
    if not 0 < machine.utilisation <= 1:
        raise ValueError(f"--utilisation: a share of the peak, from 0 to 1; got {machine.utilisation}.")
    batch = Batch(base.batch, base.length, math.ceil(base.batch / base.accumulate / machine.count), base.remat)
    dtypes = {"dtype": jnp.dtype(base.dtype), "state_dtype": jnp.dtype(base.state_dtype)}
    steps = sum(length * count for length, count in runs.items())
    tokens, usable = steps * base.batch * base.length, USABLE * machine.device.memory
    needs = []
    for each in entries:
        demand = demands({each.name: _maker(each)}, config=CONFIGS[each.model], batch=batch, **dtypes)[each.name]
        gradients = demand.weights * (1 + (base.accumulate > 1) * 4 // dtypes["dtype"].itemsize)
        held = demand.weights + gradients + demand.state
        devices = int(devices_needed(held, demand.working, usable)) if demand.working < usable else 0
        took = hours(tokens, 1, demand.flops_per_token, machine.count, machine.device.peak, machine.utilisation)
        needs.append(
            Need(each.name, demand, gradients, sum(runs.values()), steps, tokens, held + demand.working, devices, took)
        )
    return needs


def _maker(entry: Entry) -> Callable[..., optax.GradientTransformation]:
    """The optimizer as a function of the rate alone, since a function with an open rank is counted at a rank of its own."""
    return lambda rate: getattr(optimizers, entry.optimizer)(rate, **entry.options)


def memory_cells(needs: list[Need]) -> list[tuple[str, ...]]:
    """Return the cells below MEMORY_HEADINGS, in GiB on each device."""
    cells = []
    for need in needs:
        weights, state, working, *_ = need.demand
        sizes = (f"{each / GIB:.2f}" for each in (weights, need.gradients, state, working, need.bytes))
        cells.append((need.name, *sizes, "yes" if need.devices == 1 else "no"))
    return cells


def time_cells(needs: list[Need]) -> list[tuple[str, ...]]:
    """Return the cells below TIME_HEADINGS."""
    return [
        (
            need.name,
            f"{need.steps:,}",
            f"{need.tokens:.2g}",
            f"{need.flops:.2g}",
            f"{100 * need.share:.2g}",
            f"{need.hours:,.1f}",
        )
        for need in needs
    ]


def conclude(needs: list[Need], base: Plan, machine: Machine) -> str:
    """Say in words how long everything takes, what does not fit, and what the figures rest on."""
    device, count, total = machine.device, machine.count, sum(need.hours for need in needs)
    room = f"the {USABLE * device.memory / GIB:.1f} GiB that a device can use"
    words = [
        f"{sum(need.runs for need in needs)} runs at most take {total:,.1f} hours on {count} {machine.name}, one by one:",
        f"{total * count:,.1f} device-hours.",
    ]
    large = [need for need in needs if need.devices > 1]
    if large:
        most, names = max(need.devices for need in large), ", ".join(need.name for need in large)
        words.append(f"Over {room}: {names}. {most} devices hold each of them by fimlens pretrain --mesh fsdp={most}.")
    if not all(need.devices for need in needs):
        words.append(f"Activations alone exceed {room}: raise --accumulate, now {base.accumulate}.")
    if all(need.devices == 1 for need in needs):
        words.append(f"Each fits in {room}.")
    source = "our own LLaMA-60M step on an H100" if machine.utilisation == MEASURED_UTILISATION else "given"
    words += [
        f"A device has {device.peak:.3g} FLOP/s in bfloat16 and {device.memory / 1e9:.0f} GB ({device.source}).",
        f"Training reaches {machine.utilisation:.1%} of that ({source}); hours fall in proportion to a larger --utilisation.",
        "Activations assume fused attention. The optimizer's own share counts its products and decompositions, refreshes",
        "included, and not its passes over single elements. Evaluations and compilation are left out.",
    ]
    return " ".join(words)


def as_json(needs: list[Need], base: Plan, machine: Machine) -> dict[str, Any]:
    """Return everything as plain data."""
    rows = [need._asdict() | {"demand": need.demand._asdict(), "flops": need.flops, "share": need.share} for need in needs]
    devices = machine._asdict() | {"device": machine.device._asdict()}
    return {"machine": devices, "conclusion": conclude(needs, base, machine), "optimizers": rows}

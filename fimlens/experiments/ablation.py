"""[G]'s ablation of Alice, on a small language model: what tracking, switching and compensation are worth.

Each arm is `fl.alice` with some of its options changed; each run one arm at one rate and seed. Runs are kept in a file, one a
line, as they end, so that an interrupted ablation goes on where it was.
"""

import inspect
import json
import math
import os
import statistics
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import optax

from fimlens.language_model.trial import held_out_loss
from fimlens.optimizers.alice import alice
from fimlens.plotting import BASIS, SPECTRUM, legend_below, panels

ADAM_RATE = 0.01  # of the other leaves' Adam, the same for every arm


# 128, 40 and 200 of [G], scaled to a width of 64 and 240 steps; moments as printed.
WHOLE = {"rank": 16, "leading": 5, "update_interval": 20, "moments": "keep", "adam_learning_rate": ADAM_RATE}


BARE = {"b3": 0.0, "switch": "none", "compensation": "none"}


FULL = "+ compensation"


MAIN = {
    "low rank": BARE,
    "+ tracking": {"switch": "none", "compensation": "none"},
    "+ switching": {"compensation": "none"},
    FULL: {},
}


PAPER = {"low rank": 26.96, "+ tracking": 27.35, "+ switching": 25.11, FULL: 21.95}  # perplexity at 130M


GROUPS: dict[str, dict[str, dict[str, Any]]] = {
    "main": MAIN,
    "switching": {name: {"switch": name} for name in ("complement", "full", "gaussian-mix", "gaussian", "none")},
    "compensation": {name: {"compensation": name} for name in ("optimal", "fira+", "fira", "none")},
    "rank": {str(rank): {"rank": rank} for rank in (8, 16, 32)},
    "interval": {str(K): {"update_interval": K} for K in (10, 20, 60)},
    "moments": {name: {"moments": name} for name in ("keep", "rotate", "reset")},
}


@dataclass(frozen=True)
class Run:
    """One training: all options of alice, in order of their names, its rate, the seed and the steps."""

    options: tuple[tuple[str, Any], ...]
    rate: float
    seed: int
    steps: int


class Arm(NamedTuple):
    """What came of an arm at its rate: the losses of its seeds."""

    group: str
    name: str
    rate: float
    losses: list[float]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.mean(self.losses)


def options_of(changed: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """An arm's options in full, alice's defaults too: a run is not taken for one that was made with others."""
    defaults = {name: x.default for name, x in inspect.signature(alice).parameters.items() if x.default is not x.empty}
    return tuple(sorted((defaults | WHOLE | changed).items()))


def train(run: Run) -> float:
    """The held-out loss; infinite where the training diverged."""
    options = dict(run.options)
    beside = options.pop("adam_learning_rate") / run.rate

    def make(schedule: optax.Schedule) -> optax.GradientTransformation:
        return alice(schedule, adam_learning_rate=lambda t: schedule(t) * beside, **options)

    loss = held_out_loss(make, run.rate, steps=run.steps, seed=run.seed)
    return loss if math.isfinite(loss) else math.inf


class Results:
    """The losses of runs, kept in a file of one JSON object a line."""

    def __init__(self, path: Path) -> None:
        """Read what is there; `broken` counts lines that are no run, such as one that was cut short, and are left out."""
        self.path, self.losses, self.broken = path, {}, 0
        for line in path.read_bytes().splitlines() if path.exists() else []:
            try:
                kept = json.loads(line)
                run = Run(tuple(sorted(kept["options"].items())), kept["rate"], kept["seed"], kept["steps"])
                loss = math.inf if kept["loss"] is None else float(kept["loss"])
                if math.isnan(loss):
                    raise ValueError("a loss is a number, or null where the training diverged")
                self.losses[run] = loss
            except (ValueError, KeyError, TypeError, AttributeError):
                self.broken += 1

    def add(self, run: Run, loss: float) -> None:
        self.losses[run] = loss
        kept = asdict(run) | {"options": dict(run.options), "loss": loss if math.isfinite(loss) else None}
        start = "\n" if self.path.exists() and not self.path.read_bytes().endswith(b"\n") else ""
        with self.path.open("a") as file:
            file.write(f"{start}{json.dumps(kept)}\n")


def runs_of(groups: Iterable[str], rates: Iterable[float], seeds: int, steps: int) -> list[Run]:
    """Every run of some groups at some rates, each once."""
    options = [options_of(changed) for group in groups for changed in GROUPS[group].values()]
    return list(dict.fromkeys(Run(o, rate, seed, steps) for rate in rates for seed in range(seeds) for o in options))


def carry_out(runs: Iterable[Run], results: Results, workers: int) -> Iterator[Run]:
    """Train what has no result yet, `workers` at a time, each on a core of its own; each run as it ends."""
    left = [run for run in runs if run not in results.losses]
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_on_one_core) as pool:
        futures = {pool.submit(train, run): run for run in left}
        try:
            for future in as_completed(futures):
                results.add(futures[future], future.result())
                yield futures[future]
        finally:
            pool.shutdown(cancel_futures=True)


def _on_one_core() -> None:
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"


def tuned(
    results: Results, changed: dict[str, Any], rates: Iterable[float], seeds: int, steps: int
) -> tuple[float, list[float]]:
    """The rate of an arm's lowest mean loss, and the losses of its seeds there."""
    tried = [(rate, [results.losses[Run(options_of(changed), rate, s, steps)] for s in range(seeds)]) for rate in rates]
    return min(tried, key=lambda pair: statistics.mean(pair[1]))


def arms(results: Results, rates: list[float], seeds: int, steps: int, groups: Iterable[str] = GROUPS) -> list[Arm]:
    """The main arms each at its own tuned rate, and the others at that of Alice in full."""
    rate, _ = tuned(results, MAIN[FULL], rates, seeds, steps)
    found = []
    for group in groups:
        for name, changed in GROUPS[group].items():
            found.append(Arm(group, name, *tuned(results, changed, rates if group == "main" else [rate], seeds, steps)))
    return found


def in_order(found: list[Arm], of: dict[str, float]) -> bool:
    """Whether the main arms, from best to worst, come as in another table."""
    main = {arm.name: arm.mean for arm in found if arm.group == "main"}
    return sorted(main, key=main.__getitem__) == sorted(of, key=of.__getitem__)


def picture(found: list[Arm], path: Path) -> None:
    """One panel a group: the loss of each seed, and their mean."""
    groups = {arm.group: [other for other in found if other.group == arm.group] for arm in found}
    figure = panels(len(groups), height=2.0)
    for axes, (group, here) in zip(figure.axes, groups.items(), strict=True):
        for place, arm in enumerate(here):
            axes.plot(arm.mean, place, "|", color=BASIS, markersize=16, markeredgewidth=2.5, label="mean of the seeds")
            axes.plot(arm.losses, [place] * len(arm.losses), "o", color=SPECTRUM, markersize=4, label="a seed")
        axes.set_yticks(range(len(here)), [arm.name for arm in here])
        axes.set_ylim(len(here) - 0.4, -0.6)
        axes.set_title(group, fontsize=9)
        axes.set_xlabel("held-out loss, nats per byte")
    legend_below(figure)
    figure.savefig(path, dpi=150)

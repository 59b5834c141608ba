"""The ablation of Alice in [G], repeated on a small language model: what tracking, switching and compensation contribute.

An arm is `fl.alice` with some options changed; a run is one arm at one learning rate and seed. The result of each run is
appended to a file when the run ends, so that an interrupted ablation continues where it was.
"""

import inspect
import math
import os
import statistics
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from fimlens._records import add_records, read_records
from fimlens.experiments.trial import ADAM_RATE, train_beside_adam
from fimlens.optimizers import alice
from fimlens.plotting import BASIS, SPECTRUM, legend_below, panels

# [G] has rank 128, 40 leading directions and an interval of 200; here they are scaled to a width of 64 and 240 steps. Moments
# stay as they are at a refresh, as in [G].
DEFAULTS = {"rank": 16, "leading": 5, "update_interval": 20, "moments": "keep", "adam_learning_rate": ADAM_RATE}


FULL = "+ compensation"


MAIN = {  # each arm has one part more than the arm before it
    "low rank": {"b3": 0.0, "switch": "none", "compensation": "none"},
    "+ tracking": {"switch": "none", "compensation": "none"},
    "+ switching": {"compensation": "none"},
    FULL: {},
}


PAPER = {"low rank": 26.96, "+ tracking": 27.35, "+ switching": 25.11, FULL: 21.95}  # perplexities in [G], 130M parameters


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
    """One training, hashable so that its result can be looked up.

    Args:
        options: all options of `alice`, sorted by name.
        rate: peak learning rate.
        seed: determines initial weights and data.
        steps: number of steps.
    """

    options: tuple[tuple[str, Any], ...]
    rate: float
    seed: int
    steps: int


class Arm(NamedTuple):
    """The result of an arm: the held-out losses of its seeds at one learning rate."""

    group: str
    name: str
    rate: float
    losses: list[float]

    @property
    def mean(self) -> float:
        """The mean loss over the seeds."""
        return statistics.mean(self.losses)


def all_options(changed: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Return all options of an arm, given those that it changes."""
    # With Alice's own defaults: if one of them changes later, old results must not be taken for results of the new default.
    defaults = {name: x.default for name, x in inspect.signature(alice).parameters.items() if x.default is not x.empty}
    return tuple(sorted((defaults | DEFAULTS | changed).items()))


def train(run: Run) -> float:
    """Train one run and return its held-out loss; infinite if the training diverged."""
    options = dict(run.options)
    adam_rate = options.pop("adam_learning_rate")
    return train_beside_adam(partial(alice, **options), run.rate, adam_rate, steps=run.steps, seed=run.seed)


class Results:
    """The losses of all runs, stored in a file with one JSON object per line.

    Attributes:
        losses: the loss of each run.
        broken: how many lines of the file could not be read, such as a line that an interruption cut short.
    """

    def __init__(self, path: Path) -> None:
        """Read the results that are already in the file."""
        self.path, self.losses, self.broken = path, {}, 0
        for record in read_records(path):
            try:
                run = Run(tuple(sorted(record["options"].items())), record["rate"], record["seed"], record["steps"])
                loss = math.inf if record["loss"] is None else float(record["loss"])
                if math.isnan(loss):
                    raise ValueError("a loss is a number, or null if the training diverged")
                self.losses[run] = loss
            except (ValueError, KeyError, TypeError, AttributeError):
                self.broken += 1

    def add(self, run: Run, loss: float) -> None:
        """Store the loss of a run."""
        self.losses[run] = loss
        record = asdict(run) | {"options": dict(run.options), "loss": loss if math.isfinite(loss) else None}
        add_records(self.path, record)


def list_runs(groups: Iterable[str], rates: Iterable[float], seeds: int, steps: int) -> list[Run]:
    """List the runs of some groups at some rates. Arms that occur in several groups are listed once."""
    options = [all_options(changed) for group in groups for changed in GROUPS[group].values()]
    return list(dict.fromkeys(Run(o, rate, seed, steps) for rate in rates for seed in range(seeds) for o in options))


def train_missing(runs: Iterable[Run], results: Results, workers: int) -> Iterator[Run]:
    """Train the runs without a result, `workers` at a time, each on its own core. Yield each run when it ends."""
    missing = [run for run in runs if run not in results.losses]
    # Processes are spawned, not forked: JAX has threads, and a forked process may wait for a lock that one of them holds.
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_use_one_core) as pool:
        futures = {pool.submit(train, run): run for run in missing}
        try:
            for future in as_completed(futures):
                results.add(futures[future], future.result())
                yield futures[future]
        finally:
            pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C, do not start the runs that wait


def _use_one_core() -> None:
    """Keep XLA from using all cores in each worker."""
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"


def best_rate(
    results: Results, changed: dict[str, Any], rates: Iterable[float], seeds: int, steps: int
) -> tuple[float, list[float]]:
    """Return the rate at which an arm has its lowest mean loss, and the losses of its seeds at this rate."""
    tried = [(rate, [results.losses[Run(all_options(changed), rate, s, steps)] for s in range(seeds)]) for rate in rates]
    return min(tried, key=lambda pair: statistics.mean(pair[1]))


def arms(results: Results, rates: list[float], seeds: int, steps: int, groups: Iterable[str] = GROUPS) -> list[Arm]:
    """Return the result of every arm: main arms at their own best rate, the others at the best rate of full Alice."""
    rate, _ = best_rate(results, MAIN[FULL], rates, seeds, steps)
    found = []
    for group in groups:
        for name, changed in GROUPS[group].items():
            found.append(Arm(group, name, *best_rate(results, changed, rates if group == "main" else [rate], seeds, steps)))
    return found


def same_order(found: list[Arm], table: dict[str, float]) -> bool:
    """Whether the main arms, from best to worst, have the same order as in another table."""
    main = {arm.name: arm.mean for arm in found if arm.group == "main"}
    return sorted(main, key=main.__getitem__) == sorted(table, key=table.__getitem__)


def plot(found: list[Arm], path: Path) -> None:
    """Draw one panel for each group: the loss of each seed, and their mean."""
    groups = {arm.group: [other for other in found if other.group == arm.group] for arm in found}
    figure = panels(len(groups), height=2.0)
    for axes, (group, here) in zip(figure.axes, groups.items(), strict=True):
        for place, arm in enumerate(here):
            axes.plot(arm.mean, place, "|", color=BASIS, markersize=16, markeredgewidth=2.5, label="mean over seeds")
            axes.plot(arm.losses, [place] * len(arm.losses), "o", color=SPECTRUM, markersize=4, label="one seed")
        axes.set_yticks(range(len(here)), [arm.name for arm in here])
        axes.set_ylim(len(here) - 0.4, -0.6)
        axes.set_title(group, fontsize=9)
        axes.set_xlabel("held-out loss, nats per byte")
    legend_below(figure)
    figure.savefig(path, dpi=150)

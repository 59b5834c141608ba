"""Speed-ups from whole schedules: every optimizer trains at several lengths, and each run has its schedule to itself.

A crossing of two curves compares a finished schedule with an unfinished one, and rankings flip while rates decay. Here the
speed-up of a method is the reference's length over the length at which the method ends at the same loss.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from fimlens.experiments.comparison import Entry, Results, at_best_rate, best_of, run_all, steps_to_reach
from fimlens.pretrain.recipe import Data, Recipe
from fimlens.pretrain.run_directory import Metrics


class Curve(NamedTuple):
    """What one optimizer reaches at each length.

    Attributes:
        entry: the optimizer, as it was tuned.
        losses: by length, the held-out loss of each seed at the end, infinite where the training diverged.
        rates: by length, the learning rate.
        runs: by length, all runs.
    """

    entry: Entry
    losses: dict[int, list[float]]
    rates: dict[int, float]
    runs: dict[int, Results]


def read_lengths(text: str | None, tuned_at: int) -> list[int]:
    """Return the numbers of steps that a text lists, such as "150,300,600"; without a text, the length of tuning alone.

    Raises:
        ValueError: it lists something else, or not the length at which rates are tuned.
    """
    if text is None:
        return [tuned_at]
    words = [word.strip() for word in text.split(",")]
    found = sorted({int(word) if word.isdecimal() else 0 for word in words})
    if found[0] == 0 or len(found) < 2:
        raise ValueError(f"--lengths: several whole numbers of steps, as in 150,300,600; got {text!r}.")
    if tuned_at not in found:
        raise ValueError(
            f"--lengths: rates are tuned at --steps {tuned_at}, which is not among {found}. Name it, or set --steps."
        )
    return found


def run_lengths(
    make: Callable[[Recipe], list[Entry]],
    base: Recipe,
    lengths: Sequence[int],
    data: Data,
    out: Path,
    *,
    tries: int,
    seeds: int,
    on_start: Callable[[Entry, int, int], None] = lambda entry, power, seed: None,
    callback: Callable[[Metrics], None] = lambda metrics: None,
) -> list[Curve]:
    """Train every optimizer at every length. Runs that are already finished in `out` are read instead.

    Each is tuned at `base.steps`, one of the lengths. At the longest, a factor of two either way is tried again; at the others
    the tuned rate is taken. Options that depend on the length, such as the refresh interval, do so at each.

    Args:
        make: makes the entries of a plan, whose length some options depend on: `make_entries` of a few names.
        base: the plan of every run, apart from length, optimizer, rate and seed.
        lengths: the numbers of steps.
        data: the text, or the examples of a task.
        out: the directory of all runs.
        tries: learning rates to try at most for each optimizer.
        seeds: seeds to train at the best rate.
        on_start: called with entry, power of the rate and seed before each run is trained or read.
        callback: called with each line of metrics of the runs that are trained.
    """
    plans = {length: replace(base, steps=length) for length in lengths}
    curves = []
    for entries in zip(*map(make, plans.values()), strict=True):
        own, losses, rates, runs = dict(zip(plans, entries, strict=True)), {}, {}, {}
        for length, few in tries_at(base.steps, lengths, tries).items():
            entry = replace(own[length], usual=rates.get(base.steps, own[length].usual))
            where = out if length == base.steps else out / f"{length} steps"
            options = {"tries": few, "seeds": seeds, "on_start": on_start, "callback": callback}
            runs[length] = run_all([entry], plans[length], data, where, **options)[entry.name]
            losses[length], rates[length] = _losses(runs[length], seeds), entry.rate(best_of(runs[length]))
        curves.append(Curve(own[base.steps], dict(sorted(losses.items())), dict(sorted(rates.items())), runs))
    return curves


def tries_at(tuned_at: int, lengths: Sequence[int], tries: int) -> dict[int, int]:
    """Return how many rates are tried at most at each length, in the order in which they are trained.

    Args:
        tuned_at: the length at which rates are tuned, one of the lengths.
        lengths: the numbers of steps.
        tries: rates to try at most where they are tuned.
    """
    others = {length: min(tries, 3) if length == max(lengths) else 1 for length in sorted(lengths) if length != tuned_at}
    return {tuned_at: tries} | others


def _losses(results: Results, seeds: int) -> list[float]:
    """The loss of each seed at the best rate; infinite where all rates diverged, so that no further seed was trained."""
    found = [result.loss for result in at_best_rate(results).values()]
    return found + [math.inf] * (seeds - len(found))


def length_to_reach(loss: float, ends: dict[int, float]) -> float:
    """Return the length at which a run ends at this loss: between measured lengths, linear in their logarithms.

    Nothing is extrapolated: 0 if the shortest run ends lower already, infinite if none ends as low.

    Args:
        loss: the loss, positive.
        ends: the loss at the end of a run, by its length.

    Examples:
        >>> from fimlens.experiments.lengths import length_to_reach
        >>> ends = {100: 4.0, 400: 1.0}
        >>> [round(length_to_reach(loss, ends), 3) for loss in (5.0, 4.0, 2.0, 0.5)]
        [0.0, 100.0, 200.0, inf]
    """
    before = None
    for length, end in sorted(ends.items()):
        if end <= loss:
            if before is None:
                return 0.0 if end < loss else float(length)
            short, high = before
            share = math.log(high / loss) / math.log(high / end) if math.isfinite(high) else 1.0
            return short * (length / short) ** share
        before = length, end
    return math.inf


def speed_ups(reference: Curve, curve: Curve) -> dict[int, list[float]]:
    """Return, for each length of the reference and each seed, its length over the one at which the method ends as low.

    Infinite where the method's shortest run ends lower already, and 0 where none of its runs ends as low: the speed-up then
    lies outside what was measured. A seed with which the reference diverged has none, as there is no loss to reach.

    Args:
        reference: the optimizer that the other is compared with.
        curve: the other.
    """
    found = {}
    for length, ends in reference.losses.items():
        own = [{at: losses[seed] for at, losses in curve.losses.items()} for seed in range(len(ends))]
        reached = [length_to_reach(loss, each) for loss, each in zip(ends, own, strict=True) if math.isfinite(loss)]
        found[length] = [length / x if x else math.inf for x in reached]
    return found


def crossings(reference: Curve, curve: Curve) -> dict[int, list[float]]:
    """Return, for each length and seed, the length over the step at which the method's curve crosses the reference's last loss.

    [G] counts speed-ups so. The method's schedule is then unfinished. 0 where its curve never gets there. A seed with which the
    reference diverged has none.

    Args:
        reference: the optimizer that the other is compared with.
        curve: the other.
    """
    found = {}
    for length, ends in reference.losses.items():
        metrics = [result.metrics for result in at_best_rate(curve.runs[length]).values()]
        reached = [steps_to_reach(loss, lines) for loss, lines in zip(ends, metrics, strict=False) if math.isfinite(loss)]
        found[length] = [0.0 if x is None else length / x for x in reached]
    return found

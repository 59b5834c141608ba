"""A comparison of optimizers as in [G]: one model, one text or task, each optimizer at its own best rate, over several seeds.

With one seed, all optimizers begin at the same weights and see the same batches. What remains to be trained follows from the
runs in the directory, so that an interrupted comparison continues where it was, and each run from its last checkpoint.
"""

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import jax

from fimlens._validate import require_known
from fimlens.experiments.tuning import best_power, tuned
from fimlens.language_model.pretrained import CHECKPOINTS
from fimlens.optimizers import OPTIMIZERS
from fimlens.pretrain.loop import NonFinite, train
from fimlens.pretrain.recipe import Data, Recipe, known_options
from fimlens.pretrain.run_directory import Metrics, read_finished

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "apollo-svd": ("apollo", {"variant": "svd"}),
    "apollo-mini": ("apollo", {"variant": "mini"}),
    "fira+": ("fira", {"plus": True}),
}
NAMES = (*OPTIMIZERS, *VARIANTS)


def _read_clip(value: Any) -> float | None:
    """Return a bound on the norm of the gradient that an optimizer has to itself; None stands for no bound."""
    if value is None or isinstance(value, float | int):
        return None if value is None else float(value)
    raise ValueError(f"compare: clip is a positive number, or none; got {value!r}.")


OF_THE_PLAN = {"model": str, "clip": _read_clip}  # fields of the plan that an optimizer may have to itself

# Of a pre-training: the rate in the middle of the first three tries; 0.01 for the optimizers that are not listed.
USUAL_RATES = {
    "sgd": 1.0, "adafactor": 0.1, "lars": 10.0, "racs": 0.08, "alice": 0.04, "alice0": 0.04,
    "alice_muon": 0.02, "muon": 0.02, "soap_muon": 0.04, "galore": 0.04, "fira": 0.04, "fira+": 0.04, "low_rank_soap": 0.04,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One optimizer of a comparison.

    Args:
        name: its name in the comparison, such as "apollo-svd".
        optimizer: the name of its function in `fimlens.optimizers`.
        model: the model that it trains.
        clip: bound on the global norm of its gradients, or None.
        options: keyword arguments of that function.
        usual: the learning rate around which tuning begins.
    """

    name: str
    optimizer: str
    model: str
    clip: float | None
    options: dict[str, Any]
    usual: float

    def rate(self, power: int) -> float:
        """Return the learning rate of a try: the usual one times a power of two."""
        return self.usual * 2.0**power


class Result(NamedTuple):
    """The result of one run: its metrics, or an empty list if it diverged."""

    metrics: list[Metrics]

    @property
    def loss(self) -> float:
        """The held-out loss at the end; infinite if the training diverged."""
        last = self.metrics[-1].held_out if self.metrics else math.inf
        return last if last is not None and math.isfinite(last) else math.inf

    @property
    def scores(self) -> Mapping[str, float]:
        """The scores of a task at the end; empty for a text, or if the training diverged."""
        return self.metrics[-1].scores if math.isfinite(self.loss) else {}

    @property
    def error(self) -> float:
        """What tuning minimises: the loss or, for a task, how far its first score is from 1."""
        return 1 - next(iter(self.scores.values())) if self.scores else self.loss


Results = dict[tuple[int, int], Result]  # the runs of one entry; keys: (power of two of the rate, seed)


def best_of(runs: Results) -> int:
    """Return the power of two of an entry's best rate."""
    return best_power({key: result.error for key, result in runs.items()})


def at_best_rate(runs: Results) -> dict[int, Result]:
    """Return the runs at an entry's best rate, by seed."""
    best = best_of(runs)
    return {seed: result for (power, seed), result in sorted(runs.items()) if power == best}


def make_entry(name: str, base: Recipe, given: dict[str, Any], own: dict[str, Any] | None = None) -> Entry:
    """Make an entry, with sizes that fit the model.

    Ranks are the usual ones of the base. A default refresh interval of 200 steps becomes a twentieth of the run. In [G] it is a
    fiftieth, which would be a handful of steps in our short runs.

    Args:
        name: an optimizer of fimlens or one of VARIANTS, and, after a colon, what tells it from others of that name.
        base: the plan whose model and steps determine the sizes.
        given: options that override these sizes. Those that the optimizer does not have are ignored.
        own: options of this optimizer alone. "model" and "clip" stand for these fields of the plan.

    Raises:
        ValueError: there is no such optimizer or model, or the optimizer has no such option of its own.
    """
    kind = name.partition(":")[0]
    require_known("compare", "optimizer", kind, NAMES)
    optimizer, options = VARIANTS.get(kind, (kind, {}))
    known = known_options(optimizer)
    own = dict(own or {})
    base = replace(base, **{field: read(own.pop(field)) for field, read in OF_THE_PLAN.items() if field in own})
    scaled = {"rank": base.usual_rank, "leading": max(5 * base.usual_rank // 16, 1)}
    if known.get("update_interval") == 200:
        scaled["update_interval"] = max(base.steps // 20, 1)
    unknown = [key for key in own if key not in known]
    if unknown:
        raise ValueError(f"compare: {kind} has no option {unknown[0]!r}. It has {', '.join([*known, *OF_THE_PLAN])}.")
    options = {key: value for key, value in (scaled | given).items() if key in known} | options | own
    if options.get("variant") == "mini":
        del options["rank"]  # Apollo-mini has a rank of its own
    return Entry(name, optimizer, base.model, base.clip, options, base.rate_scale * USUAL_RATES.get(kind, 0.01))


def make_entries(
    names: list[str], base: Recipe, given: dict[str, Any], own: dict[str, dict[str, Any]] | None = None
) -> list[Entry]:
    """Make the entries of a comparison, each name once. The arguments are as in `make_entry`; `own` has them by name.

    Raises:
        ValueError: there is no such optimizer, an optimizer refuses an option, or no optimizer has an option that is given.
    """
    made = [make_entry(name, base, given, (own or {}).get(name)) for name in dict.fromkeys(names)]
    for each in made:  # a wrong option is reported now, and not after hours of training the other optimizers
        plan = plan_for(each, base, 0, 0)
        weights = jax.eval_shape(plan.initial_weights, plan.pretrained())
        jax.eval_shape(plan.transform().init, weights)
    for option in given:
        if not any(option in each.options for each in made):
            raise ValueError(f"compare: none of {', '.join(names)} has an option {option!r}.")
    return made


def directory_for(out: Path, entry: Entry, power: int, seed: int) -> Path:
    """Return the directory of one run."""
    return out / "runs" / quote(entry.name, safe="+:=,") / f"{entry.rate(power):g}-{seed}"


def plan_for(entry: Entry, base: Recipe, power: int, seed: int) -> Recipe:
    """Return the plan of one run."""
    own = {"model": entry.model, "clip": entry.clip, "optimizer": entry.optimizer, "options": entry.options}
    return replace(base, **own, rate=entry.rate(power), seed=seed)


def run_all(
    entries: list[Entry],
    base: Recipe,
    data: Data,
    out: Path,
    *,
    tries: int,
    seeds: int,
    on_start: Callable[[Entry, int, int], None] = lambda entry, power, seed: None,
    callback: Callable[[Metrics], None] = lambda metrics: None,
) -> dict[str, Results]:
    """Tune and train every entry. Runs that are already finished in `out` are read instead.

    Args:
        entries: the optimizers.
        base: the plan of every run, apart from model, optimizer, rate and seed.
        data: the text, or the examples of a task.
        out: the directory of all runs.
        tries: learning rates to try at most for each entry.
        seeds: seeds to train at the best rate.
        on_start: called with entry, power of the rate and seed before each run is trained or read.
        callback: called with each line of metrics of the runs that are trained.

    Returns:
        The results of each entry, by its name.
    """
    results: dict[str, Results] = {each.name: {} for each in entries}
    for each in entries:

        def loss(power: int, seed: int, each: Entry = each) -> float:
            on_start(each, power, seed)
            plan, directory = plan_for(each, base, power, seed), directory_for(out, each, power, seed)
            results[each.name][power, seed] = result = run_or_read(plan, data, directory, callback)
            return result.error

        tuned(loss, tries, seeds)
    return results


def run_or_read(
    plan: Recipe, data: Data, directory: Path, callback: Callable[[Metrics], None] = lambda metrics: None
) -> Result:
    """Train one run, or read it if it is finished. The arguments are as in `fimlens.pretrain.loop.train`.

    Raises:
        ValueError: the directory belongs to another plan or other data.
    """
    metrics = read_finished(plan, data, directory)
    diverged = directory / "diverged.txt"  # marks a run that ended early, so that it is not trained again
    if metrics is None and not diverged.exists():
        evaluate_every = max(plan.steps // plan.evaluations, 1)
        try:
            metrics = train(plan, data, directory, evaluate_every=evaluate_every, keep=1, callback=callback)
        except NonFinite as error:
            diverged.write_text(f"{error}\n")
    # Only an interrupted run needs its checkpoints; those of all finished runs would fill the disk. A kill may have left some.
    shutil.rmtree(directory / CHECKPOINTS, ignore_errors=True)
    return Result(metrics or [])


def steps_to_reach(loss: float, metrics: list[Metrics]) -> float | None:
    """Return the number of steps after which the held-out loss is first at or below `loss`; None if it never is.

    Between two measurements the loss is interpolated linearly, so that the answer does not jump with their interval.
    """
    before = None
    for line in (line for line in metrics if line.held_out is not None):
        if line.held_out <= loss:
            if before is None or before.held_out <= line.held_out:
                return float(line.step)
            return before.step + (line.step - before.step) * (before.held_out - loss) / (before.held_out - line.held_out)
        before = line
    return None

"""The comparison of [G]: optimizers on one model and one text, each at its own best rate, over some seeds.

All of a seed begin at the same weights and see the same batches. What is still to be trained follows from what was: an
interrupted comparison goes on where it was, and each run from its last checkpoint.
"""

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import jax

import fimlens
from fimlens.experiments.tuning import tuned
from fimlens.pretrain.data import Corpus
from fimlens.pretrain.loop import NonFinite, train
from fimlens.pretrain.model import first_weights
from fimlens.pretrain.plan import OPTIMIZERS, Plan
from fimlens.pretrain.run_directory import Line, finished

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "apollo-svd": ("apollo", {"variant": "svd"}),
    "apollo-mini": ("apollo", {"variant": "mini"}),
    "fira+": ("fira", {"plus": True}),
}


NAMES = (*OPTIMIZERS, *VARIANTS)


USUAL = {  # the middle of the first three rates; of those not named 0.01
    "sgd": 1.0, "adafactor": 0.1, "lars": 10.0, "racs": 0.08, "alice": 0.04, "alice0": 0.04, "galore": 0.04, "fira": 0.04,
    "fira+": 0.04, "low_rank_soap": 0.04,
}  # fmt: skip


EVALUATIONS = 20  # of the loss held out, in a run


@dataclass(frozen=True)
class Entry:
    """An optimizer of the comparison, with its options and the rate that its tries begin around."""

    name: str
    optimizer: str
    options: dict[str, Any]
    usual: float

    def rate(self, power: int) -> float:
        """Of a try."""
        return self.usual * 2.0**power


class Result(NamedTuple):
    """What came of one run; `lines` is empty where it diverged."""

    lines: list[Line]

    @property
    def loss(self) -> float:
        """Held out, at the end; infinite where the training diverged."""
        last = self.lines[-1].held_out if self.lines else math.inf
        return last if last is not None and math.isfinite(last) else math.inf


Results = dict[tuple[int, int], Result]  # of one entry, by the power of two of the rate, and the seed


def entry(name: str, base: Plan, given: dict[str, Any]) -> Entry:
    """An entry by its name, with those of the given options that it has.

    Ranks are [G]'s for its 60M model, scaled to the model's width. Intervals of 200 steps become a twentieth of all: [G]'s
    fiftieth would be a handful of so few.

    Raises:
        ValueError: there is no such optimizer.
    """
    if name not in NAMES:
        raise ValueError(f"compare: there is no optimizer {name!r}. There are {', '.join(NAMES)}.")
    optimizer, options = VARIANTS.get(name, (name, {}))
    known = signature(getattr(fimlens, optimizer)).parameters
    d = base.config.hidden
    scaled = {"rank": max(d // 4, 1), "leading": max(5 * d // 64, 1)}
    if "update_interval" in known and known["update_interval"].default == 200:
        scaled["update_interval"] = max(base.steps // 20, 1)
    options = {key: value for key, value in (scaled | given).items() if key in known} | options
    if options.get("variant") == "mini":
        del options["rank"]
    return Entry(name, optimizer, options, USUAL.get(name, 0.01))


def entries(names: list[str], base: Plan, given: dict[str, Any]) -> list[Entry]:
    """The entries by their names, each once.

    Raises:
        ValueError: there is no such optimizer, or none of them has a given option.
    """
    made = [entry(name, base, given) for name in dict.fromkeys(names)]
    shapes = jax.eval_shape(lambda: first_weights(base.config, jax.random.key(0)))
    for each in made:  # what an optimizer refuses is told before hours of others' training
        jax.eval_shape(plan_of(each, base, 0, 0).transform().init, shapes)
    for option in given:
        if not any(option in each.options for each in made):
            raise ValueError(f"compare: none of {', '.join(names)} has an option {option!r}.")
    return made


def directory_of(out: Path, entry: Entry, power: int, seed: int) -> Path:
    """Of a run."""
    return out / "runs" / entry.name / f"{entry.rate(power):g}-{seed}"


def carried_out(
    contestants: list[Entry],
    base: Plan,
    corpus: Corpus,
    out: Path,
    *,
    tries: int,
    seeds: int,
    begun: Callable[[Entry, int, int], None] = lambda entry, power, seed: None,
    told: Callable[[Line], None] = lambda line: None,
) -> dict[str, Results]:
    """Train whatever is lacking and return all results, by the names of entries.

    `begun` hears of each run before it is made or read, `told` every line of those that are made.
    """
    results: dict[str, Results] = {each.name: {} for each in contestants}
    for each in contestants:

        def loss(power: int, seed: int, each: Entry = each) -> float:
            begun(each, power, seed)
            directory = directory_of(out, each, power, seed)
            result = trained(plan_of(each, base, power, seed), corpus, directory, told)
            results[each.name][power, seed] = result
            return result.loss

        tuned(loss, tries, seeds)
    return results


def trained(plan: Plan, corpus: Corpus, directory: Path, told: Callable[[Line], None] = lambda line: None) -> Result:
    """One run, unless it was made before; its checkpoints go when it has ended, well or in what is not finite.

    Raises:
        ValueError: the directory is of another plan or text.
    """
    lines = finished(plan, corpus, directory)
    diverged = directory / "diverged.txt"
    if lines is None and not diverged.exists():
        try:
            lines = train(plan, corpus, directory, evaluate_every=max(plan.steps // EVALUATIONS, 1), keep=1, told=told)
        except NonFinite as error:
            diverged.write_text(f"{error}\n")
        shutil.rmtree(directory / "checkpoints")
    return Result(lines or [])


def plan_of(entry: Entry, base: Plan, power: int, seed: int) -> Plan:
    """Of one run."""
    return replace(base, optimizer=entry.optimizer, options=entry.options, rate=entry.rate(power), seed=seed)


def steps_to(loss: float, lines: list[Line]) -> float | None:
    """The steps after which a run's held-out loss was first at or below a loss, on straight lines between measurements."""
    before = None
    for line in (line for line in lines if line.held_out is not None):
        if line.held_out <= loss:
            if before is None or before.held_out <= line.held_out:
                return float(line.step)
            return before.step + (line.step - before.step) * (before.held_out - loss) / (before.held_out - line.held_out)
        before = line
    return None

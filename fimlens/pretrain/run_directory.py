"""The directory of a run: its plan, its metrics and its last checkpoints, from which an interrupted run continues."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import jax
import orbax.checkpoint as ocp

from fimlens._records import add_records, known_records, rewrite_records
from fimlens._validate import differences, finite, write_atomically
from fimlens.language_model.pretrained import CHECKPOINTS, PLAN_FILE
from fimlens.pretrain.recipe import Data, Recipe
from fimlens.pretrain.step import TrainState

METRICS_FILE, READINGS_FILE = "metrics.jsonl", "readings.jsonl"


class Metrics(NamedTuple):
    """One line of metrics.jsonl: what is measured every few steps. The fields are the keys of the line.

    "Since the last line" is over the steps between the previous line and this one. Seconds do not include evaluation,
    checkpoints and compilation.

    Attributes:
        step: steps made.
        loss: mean training loss since the last line, in nats per token or as a task says; None if every step was skipped.
        held_out: held-out loss, alike; None at steps without evaluation.
        perplexity: exponential of the held-out loss, or else of the training loss; None if neither is of a token.
        tokens: tokens trained on, from the first step, with any padding.
        seconds: seconds of training, from the first step.
        tokens_per_second: since the last line.
        optimizer_share: the optimizer's time, measured alone, divided by the time of a step since the last line; None if it
            was not measured.
        skipped: numbers of the batches since the last line that were skipped because something was not finite.
        scores: of a task, such as its accuracy, on the held-out examples; empty at steps without evaluation.
    """

    step: int
    loss: float | None
    held_out: float | None
    perplexity: float | None
    tokens: int
    seconds: float
    tokens_per_second: float
    optimizer_share: float | None
    skipped: Sequence[int] = ()
    scores: Mapping[str, float] = MappingProxyType({})


class RunDirectory:
    """Writes and restores the plan, metrics and checkpoints of a run. A context manager.

    Args:
        plan: the plan of the run.
        data: the data of the run.
        directory: created if it does not exist. With None nothing is stored, and the metrics are only in memory.
        checkpoint_every: steps between checkpoints.
        keep: checkpoints to keep.

    Raises:
        ValueError: the directory belongs to a run of another plan or other data.
    """

    def __init__(self, plan: Recipe, data: Data, directory: Path | None, checkpoint_every: int, keep: int) -> None:
        self.plan = plan
        self.metrics: list[Metrics] = []
        self.manager = None
        if directory is None:
            return
        directory = directory.absolute()  # Orbax refuses relative paths
        directory.mkdir(parents=True, exist_ok=True)
        _require_same_plan(directory / PLAN_FILE, plan, data)
        self.metrics_file, self.readings_file = directory / METRICS_FILE, directory / READINGS_FILE
        # Orbax writes in the background and renames a checkpoint when it is complete, so that a kill never leaves half of one.
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self.manager = ocp.CheckpointManager(directory / CHECKPOINTS, options=options)
        self.checkpoint_every = checkpoint_every

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, *_: object) -> None:
        if self.manager is not None:
            self.manager.close()  # waits for the checkpoint that is still being written

    @property
    def last_checkpoint(self) -> int | None:
        """The step of the last complete checkpoint, or None."""
        return None if self.manager is None else self.manager.latest_step()

    def is_checkpoint_due(self, step: int) -> bool:
        """Whether to make a checkpoint after this step."""
        return self.manager is not None and step % self.checkpoint_every == 0

    def restore(self, shapes: TrainState, shardings: TrainState) -> TrainState | None:
        """Read the last complete checkpoint and the metrics up to it. Return None if there is no checkpoint.

        Args:
            shapes: shapes and dtypes of the state.
            shardings: where each part goes; it may differ from where the checkpoint was made.

        Raises:
            ValueError: the checkpoint cannot be read.
        """
        if self.manager is None:
            return None
        last = self.last_checkpoint
        # The run repeats the steps after its last checkpoint: their metrics would otherwise be in the file twice.
        self.metrics = [] if last is None else [line for line in _read_metrics(self.metrics_file) if line.step <= last]
        if jax.process_index() == 0:
            rewrite_records(self.metrics_file, (line._asdict() for line in self.metrics))
            if self.plan.monitor is not None:
                known = known_records(self.readings_file)
                rewrite_records(self.readings_file, (line for line in known if line["step"] <= (last or 0)))
        if last is None:
            return None
        abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
        try:
            return self.manager.restore(last, args=ocp.args.StandardRestore(abstract))
        except (ValueError, KeyError, OSError) as error:
            raise ValueError(
                f"{self.plan.command}: checkpoint {last} of {self.manager.directory} cannot be read "
                f"({str(error).splitlines()[0]}). Remove it to continue from the one before, or remove the directory to "
                "start again."
            ) from error

    def metrics_of_finished_run(self) -> list[Metrics]:
        """Return the metrics of a run whose last checkpoint is its last step.

        Raises:
            ValueError: there are none, because somebody removed the file.
        """
        if not self.metrics:
            raise ValueError(
                f"{self.plan.command}: {self.metrics_file} has no metrics, and the run is finished. Take another directory."
            )
        return self.metrics

    def record(
        self,
        step: int,
        loss: float | None,
        held_out: float | None,
        scores: dict[str, float],
        skipped: list[int],
        steps: int,
        seconds: float,
        optimizer_seconds: float | None,
    ) -> Metrics:
        """Make a line of metrics, store it and return it.

        Args:
            step: steps made so far.
            loss, held_out, scores, skipped: as in `Metrics`.
            steps: steps since the last line.
            seconds: seconds that these steps took.
            optimizer_seconds: the optimizer's seconds in one step, measured alone.
        """
        before = self.metrics[-1].seconds if self.metrics else 0.0
        size, last_loss = self.plan.batch * self.plan.length, loss if held_out is None else held_out
        share = None if optimizer_seconds is None else optimizer_seconds * steps / seconds
        perplexity = None if last_loss is None else self.plan.perplexity(last_loss)
        rate = size * steps / seconds
        line = Metrics(step, loss, held_out, perplexity, size * step, before + seconds, rate, share, skipped, scores)
        self.metrics.append(line)
        if self.manager is not None and jax.process_index() == 0:
            add_records(self.metrics_file, line._asdict())
        return line

    def record_readings(self, step: int, readings: dict[str, float]) -> None:
        """Store the readings of the monitor after this many steps as a line of readings.jsonl; null for what is not finite."""
        if self.manager is not None and jax.process_index() == 0:
            add_records(self.readings_file, {"step": step} | {name: finite(value) for name, value in readings.items()})

    def save(self, step: int, state: TrainState) -> None:
        """Make a checkpoint, unless there is one of this step."""
        if self.manager is not None and self.manager.latest_step() != step:
            self.manager.save(step, args=ocp.args.StandardSave(state))


def read_finished(plan: Recipe, data: Data, directory: Path) -> list[Metrics] | None:
    """Return the metrics of a finished run, or None if it is not finished. For this the checkpoints are not needed.

    Raises:
        ValueError: the directory belongs to a run of another plan or other data.
    """
    if not directory.exists():
        return None
    _require_same_plan(directory / PLAN_FILE, plan, data)
    metrics = list(_read_metrics(directory / METRICS_FILE))
    return metrics if metrics and metrics[-1].step == plan.steps else None


def _require_same_plan(path: Path, plan: Recipe, data: Data) -> None:
    """Store the plan and the data's fingerprint, or refuse a directory that has others."""
    # Compared as JSON has them: a tuple in the plan comes back as a list.
    mine = json.loads(json.dumps(asdict(plan) | {"text": data.fingerprint}))
    try:
        theirs = json.loads(path.read_text()) if path.exists() else mine
    except ValueError as error:
        raise ValueError(f"{plan.command}: {path} is not a plan ({error}). Take another directory.") from error
    if differing := differences(theirs, mine):
        raise ValueError(f"{plan.command}: {path.parent} is a run of another plan: {differing}. Take another directory.")
    if jax.process_index() == 0 and not path.exists():
        write_atomically(path, json.dumps(mine, indent=2) + "\n")


def _read_metrics(path: Path) -> Iterator[Metrics]:
    for line in known_records(path):
        try:
            yield Metrics(**line)
        except TypeError:  # a line of something else
            continue

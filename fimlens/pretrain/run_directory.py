"""What a run leaves in its directory, and goes on from: its plan, lines of metrics, its last checkpoints."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import jax
import orbax.checkpoint as ocp

from fimlens.pretrain.data import Corpus
from fimlens.pretrain.plan import Plan
from fimlens.pretrain.step import Training

METRICS = "metrics.jsonl"


class Line(NamedTuple):
    """What is told of a step.

    Losses are in nats per token, of training over the steps since the last line, and held out where measured; `perplexity` is
    the exponential of the loss held out, or else of training. Tokens and seconds are of all steps, without what goes to
    evaluation, checkpoints and compilation; tokens a second, the optimizer's time alone as a part of a step's, and the batches
    that were skipped as not finite, are of the steps since the last line. Where all were, there is no loss.
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


class Keeper:
    """The directory of a run: its plan, its lines, its checkpoints. Nothing where there is none."""

    def __init__(self, plan: Plan, corpus: Corpus, directory: Path | None, every: int, keep: int) -> None:
        self.plan = plan
        self.lines: list[Line] = []
        self.manager = None
        if directory is None:
            return
        directory = directory.absolute()
        directory.mkdir(parents=True, exist_ok=True)
        _require_same(directory / "plan.json", plan, corpus)
        self.metrics = directory / METRICS
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self.manager = ocp.CheckpointManager(directory / "checkpoints", options=options)
        self.every = every

    def __enter__(self) -> "Keeper":
        return self

    def __exit__(self, *_: object) -> None:
        if self.manager is not None:
            self.manager.close()

    @property
    def last(self) -> int | None:
        """The step of the last checkpoint that is whole."""
        return None if self.manager is None else self.manager.latest_step()

    def due(self, done: int) -> bool:
        """Whether a checkpoint is to be made."""
        return self.manager is not None and done % self.every == 0

    def restored(self, shardings: Training, shapes: Training) -> Training | None:
        """The last checkpoint that is whole, with the lines up to it."""
        if self.manager is None:
            return None
        last = self.last
        self.lines = [] if last is None else [line for line in _read(self.metrics) if line.step <= last]
        if jax.process_index() == 0:
            _write(self.metrics, "".join(map(_written, self.lines)))
        if last is None:
            return None
        abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
        try:
            training = self.manager.restore(last, args=ocp.args.StandardRestore(abstract))
        except (ValueError, KeyError, OSError) as error:
            raise ValueError(
                f"pretrain: checkpoint {last} of {self.manager.directory} cannot be read ({str(error).splitlines()[0]}). "
                "Remove it to go on from the one before, or the directory to begin anew."
            ) from error
        return training

    def lines_of_a_whole_run(self) -> list[Line]:
        """The lines, of which there are some.

        Raises:
            ValueError: there are none: its metrics were removed.
        """
        if not self.lines:
            raise ValueError(
                f"pretrain: {self.metrics} has no lines of a run that was made to its end. Take another directory."
            )
        return self.lines

    def note(
        self,
        done: int,
        loss: float | None,
        held_out: float | None,
        skipped: list[int],
        steps: int,
        seconds: float,
        optimizer: float | None,
    ) -> Line:
        """The line of the last `steps` steps, which took some seconds; `optimizer` is of one, when timed alone."""
        before = self.lines[-1].seconds if self.lines else 0.0
        size, seen = self.plan.batch * self.plan.length, loss if held_out is None else held_out
        share = None if optimizer is None else optimizer * steps / seconds
        line = Line(done, loss, held_out, _exp(seen), size * done, before + seconds, size * steps / seconds, share, skipped)
        self.lines.append(line)
        if self.manager is not None and jax.process_index() == 0:
            with self.metrics.open("a") as file:
                file.write(_written(line))
        return line

    def save(self, done: int, training: Training) -> None:
        if self.manager is not None and self.manager.latest_step() != done:
            self.manager.save(done, args=ocp.args.StandardSave(training))


def finished(plan: Plan, corpus: Corpus, directory: Path) -> list[Line] | None:
    """The lines of a run that was made to its end; None of one that was not.

    Raises:
        ValueError: the directory is of another plan.
    """
    if not directory.exists():
        return None
    _require_same(directory / "plan.json", plan, corpus)
    lines = list(_read(directory / METRICS))
    return lines if lines and lines[-1].step == plan.steps else None


def _require_same(path: Path, plan: Plan, corpus: Corpus) -> None:
    """Write the plan and the text's fingerprint, or refuse others than are there."""
    mine = json.loads(json.dumps(asdict(plan) | {"text": corpus.fingerprint}))
    try:
        theirs = json.loads(path.read_text()) if path.exists() else mine
    except ValueError as error:
        raise ValueError(f"pretrain: {path} is no plan ({error}). Take another directory.") from error
    differing = [name for name in mine if theirs.get(name) != mine[name]]
    if differing:
        what = ", ".join(f"{name} {theirs.get(name)!r} there and {mine[name]!r} here" for name in differing)
        raise ValueError(f"pretrain: {path.parent} is a run of another plan: {what}. Take another directory.")
    if jax.process_index() == 0 and not path.exists():
        _write(path, json.dumps(mine, indent=2) + "\n")


def _exp(loss: float | None) -> float | None:
    return None if loss is None else math.exp(min(loss, 700.0))


def _written(line: Line) -> str:
    return json.dumps(line._asdict()) + "\n"


def _read(path: Path) -> Iterator[Line]:
    """The lines that are whole: a kill may have left half a one."""
    for text in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            yield Line(**json.loads(text))
        except (ValueError, TypeError):
            continue


def _write(path: Path, text: str) -> None:
    """All of it or nothing."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(text)
    beside.replace(path)

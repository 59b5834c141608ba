"""What a run leaves in its directory, and goes on from: its plan, lines of metrics, its last checkpoints."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import jax
import orbax.checkpoint as ocp
from jaxtyping import Array, Int, PyTree

from fimlens.pretrain.plan import Plan


class Training(NamedTuple):
    """All that a step changes: how many were made, weights, the optimizer's state."""

    step: Int[Array, ""]
    weights: PyTree
    optimizer: PyTree


class Line(NamedTuple):
    """What is told of a step: losses in nats per token (held out where measured), tokens and seconds since the start."""

    step: int
    loss: float
    held_out: float | None
    tokens: int
    seconds: float


class Keeper:
    """The directory of a run: its plan, its lines, its checkpoints. Nothing where there is none."""

    def __init__(self, plan: Plan, directory: Path | None, every: int, keep: int) -> None:
        self.lines: list[Line] = []
        self.manager = None
        if directory is None:
            return
        directory = directory.absolute()
        directory.mkdir(parents=True, exist_ok=True)
        _require_same(directory / "plan.json", plan)
        self.metrics = directory / "metrics.jsonl"
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self.manager = ocp.CheckpointManager(directory / "checkpoints", options=options)
        self.every = every

    def __enter__(self) -> "Keeper":
        return self

    def __exit__(self, *_: object) -> None:
        if self.manager is not None:
            self.manager.close()

    def due(self, done: int) -> bool:
        """Whether a checkpoint is to be made."""
        return self.manager is not None and done % self.every == 0

    def restored(self, shardings: Training, shapes: Training) -> Training | None:
        """The last checkpoint that is whole, with the lines up to it."""
        last = None if self.manager is None else self.manager.latest_step()
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
        self.lines = [line for line in _read(self.metrics) if line.step <= last]
        if jax.process_index() == 0:
            _write(self.metrics, self.lines)
        return training

    def note(self, line: Line) -> None:
        self.lines.append(line)
        if self.manager is not None and jax.process_index() == 0:
            with self.metrics.open("a") as file:
                file.write(json.dumps(line._asdict()) + "\n")

    def save(self, done: int, training: Training) -> None:
        if self.manager is not None and self.manager.latest_step() != done:
            self.manager.save(done, args=ocp.args.StandardSave(training))


def _require_same(path: Path, plan: Plan) -> None:
    """Write the plan, or refuse another one than is there."""
    mine = json.loads(json.dumps(asdict(plan)))
    try:
        theirs = json.loads(path.read_text()) if path.exists() else mine
    except ValueError as error:
        raise ValueError(f"pretrain: {path} is no plan ({error}). Take another directory.") from error
    differing = [name for name in mine if theirs.get(name) != mine[name]]
    if differing:
        what = ", ".join(f"{name} {theirs.get(name)!r} there and {mine[name]!r} here" for name in differing)
        raise ValueError(f"pretrain: {path.parent} is a run of another plan: {what}. Take another directory.")
    if jax.process_index() == 0:
        path.write_text(json.dumps(mine, indent=2) + "\n")


def _read(path: Path) -> Iterator[Line]:
    """The lines that are whole: a kill may have left half a one."""
    for text in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            yield Line(**json.loads(text))
        except (ValueError, TypeError):
            continue


def _write(path: Path, lines: list[Line]) -> None:
    beside = path.with_suffix(".part")
    beside.write_text("".join(json.dumps(line._asdict()) + "\n" for line in lines))
    beside.replace(path)

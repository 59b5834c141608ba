"""A training behind a bar, for the commands that run one: what it will take is said first."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree
from rich.filesize import decimal
from rich.progress import Progress

from fimlens.cli.arguments import console, long_progress
from fimlens.pretrain import loop
from fimlens.pretrain.mesh import make_mesh
from fimlens.pretrain.readings import write_figure
from fimlens.pretrain.recipe import Data, Recipe
from fimlens.pretrain.run_directory import Metrics
from fimlens.pretrain.step import TrainState


def bar() -> Progress:
    """Return a bar for a training, which host 0 shows."""
    return long_progress(disable=jax.process_index() > 0)


def train(title: str, plan: Recipe, data: Data, out: Path, *, mesh: str | None, **options: Any) -> list[Metrics]:
    """Say what a training will take, train behind a bar, draw the monitor's readings, and return the metrics.

    What the plan, the mesh or the data refuse is refused before the bar is shown.

    Args:
        title: what is trained.
        plan: the plan.
        data: the data.
        out: the directory of the run.
        mesh: the sizes of the mesh, such as data=2,fsdp=4.
        options: further arguments of `fimlens.pretrain.loop.train`.
    """
    shown = bar()
    show = _show_metrics(shown, title, plan.steps)

    def start(shapes: TrainState) -> None:
        if jax.process_index() == 0:
            console.print(f"{title}: {describe(plan, shapes)}")
        shown.start()

    try:
        metrics = loop.train(plan, data, out, mesh=make_mesh(_sizes_of(mesh)), on_start=start, callback=show, **options)
    finally:
        shown.stop()
    if plan.monitor is not None and jax.process_index() == 0:
        write_figure(out)
    return metrics


def describe(plan: Recipe, shapes: TrainState) -> str:
    """Return the size of a training in words: parameters, tokens and the memory of what it keeps."""
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes.weights))
    tokens = plan.steps * plan.batch * plan.length
    return (
        f"{count:,} parameters; {plan.steps:,} steps of {plan.batch} sequences of at most {plan.length} tokens, {tokens:,} in "
        f"all. Weights take {_size(shapes.weights)}, the optimizer's state {_size(shapes.optimizer)}. The first step waits for "
        "the compiler; then the bar shows the time that is left, from the steps so far."
    )


def _size(tree: PyTree) -> str:
    return decimal(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)))


def _show_metrics(shown: Progress, title: str, steps: int) -> Callable[[Metrics], None]:
    """Return a function that shows each line of metrics in a bar."""
    task = shown.add_task(title, total=steps)

    def show(line: Metrics) -> None:
        for k in line.skipped:
            shown.print(f"batch {k} was skipped: its loss, gradient or update is not finite")
        words = [f"{line.tokens_per_second:,.0f} tokens/s"]
        if line.perplexity is not None:
            words.insert(0, f"perplexity {line.perplexity:.2f}")
        if line.loss is not None:
            words.insert(0, f"loss {line.loss:.3f}")
        words += [f"{name} {value:.3f}" for name, value in line.scores.items()]
        if line.optimizer_share is not None:
            words.append(f"optimizer {line.optimizer_share:.0%}")
        shown.update(task, completed=line.step, description=f"{title}: {', '.join(words)}")

    return show


def _sizes_of(mesh: str | None) -> dict[str, int] | None:
    """Read the sizes of a mesh, such as data=2,fsdp=4."""
    if mesh is None:
        return None
    pairs = [part.partition("=") for part in mesh.split(",")]
    if not all(size.strip().isdigit() for _, _, size in pairs):
        raise ValueError(f"--mesh: expected sizes such as data=2,fsdp=4; got {mesh!r}.")
    sizes = {name.strip(): int(size) for name, _, size in pairs}
    if len(sizes) < len(pairs):
        raise ValueError(f"--mesh: expected one size for each axis; got {mesh!r}.")
    return sizes

"""A training behind a bar, for the commands that run one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fimlens.cli.arguments import errors
from fimlens.pretrain import loop
from fimlens.pretrain.mesh import make_mesh
from fimlens.pretrain.readings import write_figure
from fimlens.pretrain.recipe import Data, Recipe
from fimlens.pretrain.run_directory import Metrics


def bar() -> Progress:
    """Return a bar for a training, which host 0 shows."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    return Progress(*columns, console=errors, disable=jax.process_index() > 0)


def train(
    shown: Progress, title: str, plan: Recipe, data: Data, out: Path, *, mesh: str | None, **options: Any
) -> list[Metrics]:
    """Train behind a bar, draw the monitor's readings, and return the metrics.

    Args:
        shown: the bar.
        title: what is trained.
        plan: the plan.
        data: the data.
        out: the directory of the run.
        mesh: the sizes of the mesh, such as data=2,fsdp=4.
        options: further arguments of `fimlens.pretrain.loop.train`.
    """
    callback = _show_metrics(shown, title, plan.steps)
    metrics = loop.train(plan, data, out, mesh=make_mesh(_sizes_of(mesh)), callback=callback, **options)
    if plan.monitor is not None and jax.process_index() == 0:
        write_figure(out)
    return metrics


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
    return {name.strip(): int(size) for name, _, size in pairs}

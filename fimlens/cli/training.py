"""What the commands that train share: their options, and how these are read."""

from collections.abc import Container
from pathlib import Path
from typing import Annotated, Any

import jax
import typer

from fimlens.cli.arguments import refuse_unread
from fimlens.optimizers.mixture import read_texts

Optimizer = Annotated[
    str, typer.Option(help="Name of an optimizer of fimlens, or recommended:FILE, which `fimlens recommend` wrote.")
]
Rate = Annotated[float, typer.Option(help="Peak of the learning rate.")]
Option = Annotated[list[str] | None, typer.Option(help="Option of the optimizer, such as rank=32. Repeatable.")]
Batch = Annotated[int, typer.Option(help="Sequences per step, over all devices.")]
Length = Annotated[int, typer.Option(help="Tokens per sequence.")]
Accumulate = Annotated[int, typer.Option(help="Compute the gradient of a batch in this many parts.")]
Clip = Annotated[float | None, typer.Option(help="Bound on the global norm of the gradient.")]
Dtype = Annotated[str, typer.Option(help="Data type of weights and activations: float32 or bfloat16.")]
StateDtype = Annotated[str, typer.Option(help="Data type of the optimizer's state: float32 or bfloat16.")]
Scan = Annotated[bool, typer.Option("--scan", help="Scan over the layers, which compiles one instead of all.")]
Remat = Annotated[bool, typer.Option("--remat", help="Recompute layers in the backward pass, to save memory.")]
OnNonfinite = Annotated[str, typer.Option(help="What to do after a loss that is not finite: stop or skip.")]
Mesh = Annotated[str | None, typer.Option(help="Sizes of the mesh, such as data=2,fsdp=4,tensor=1.")]
Distributed = Annotated[bool, typer.Option("--distributed", help="One of several hosts that the cluster knows.")]
Coordinator = Annotated[str | None, typer.Option(help="Without a cluster: address:port of host 0.")]
Hosts = Annotated[int | None, typer.Option(min=1, help="With --coordinator: number of hosts.")]
Host = Annotated[int | None, typer.Option(min=0, help="With --coordinator: number of this host, from 0.")]
EvaluateEvery = Annotated[int | None, typer.Option(min=1, help="Steps between evaluations; by default one at the end.")]
CheckpointEvery = Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")]
Keep = Annotated[int, typer.Option(min=1, help="Checkpoints to keep.")]
Share = Annotated[bool, typer.Option("--share", help="Time the optimizer alone, and report its share of a step.")]
Monitor = Annotated[
    int | None, typer.Option(min=1, help="Steps between readings of each matrix, for readings.jsonl and readings.png.")
]
TextPath = Annotated[
    list[Path] | None, typer.Option("--text", help="Text files or directories; by default Python's standard library.")
]
Shards = Annotated[Path | None, typer.Option(help="Directory of token shards, instead of text.")]
HeldOut = Annotated[Path | None, typer.Option(help="With a file: one to hold out; by default every tenth row.")]
Texts = Annotated[str, typer.Option(help="With a file: the column of the text, or two for a pair, such as premise,hypothesis.")]
Label = Annotated[str, typer.Option(help="With a file: the column of the label.")]
TaskDataset = Annotated[str | None, typer.Option(help="GLUE by another name on the hub, or as a directory.", metavar="NAME")]
HeadOnly = Annotated[bool, typer.Option("--head-only", help="Train the head alone, on states that are computed once.")]
Epochs = Annotated[float, typer.Option(help="Passes over the examples.")]
Warmup = Annotated[float, typer.Option(help="Share of the steps in which the rate rises.")]
Out = Annotated[Path, typer.Option(file_okay=False, help="Directory of plan, metrics and checkpoints; a run in it continues.")]

OF_GLUE, OF_FILES = "a task of GLUE", "a file"
READ_WITH = {"dataset": (OF_GLUE,), **dict.fromkeys(["held_out", "texts", "label"], (OF_FILES,))}


def join_hosts(distributed: bool, coordinator: str | None, hosts: int | None, host: int | None) -> None:
    """Join the other hosts of a training, before anything asks JAX for its devices."""
    if not distributed and 0 < sum(given is not None for given in (coordinator, hosts, host)) < 3:
        raise ValueError("give --coordinator, --hosts and --host together, or --distributed on a cluster that knows them.")
    if distributed or coordinator is not None:
        jax.distributed.initialize(coordinator, hosts, host)


def reading(
    context: typer.Context, task: str, known: Container[str], source: str, held_out: Path | None, texts: str, label: str
) -> dict[str, Any]:
    """Return how a task is read, as arguments of `fimlens.finetune.examples.read_task`; `known` are the names of tasks."""
    refuse_unread(context, OF_GLUE if task in known else OF_FILES, READ_WITH)
    return {"source": source, "held_out": held_out, "texts": [column.strip() for column in texts.split(",")], "label": label}


def optimizer_of(optimizer: str, option: list[str] | None) -> tuple[str, dict[str, Any]]:
    """Return the name of an optimizer and its options, with the choices of recommended:FILE among them."""
    name, _, choices = optimizer.partition(":")
    if choices and name != "recommended":
        raise ValueError(f"--optimizer: {name} takes no file. Leave out {choices}, or give it as --option name=value.")
    if choices and not Path(choices).is_file():
        raise ValueError(f"--optimizer: {choices} is no file. Let `fimlens recommend` write it.")
    if name == "recommended" and not choices:
        raise ValueError("--optimizer: give the choices too, as recommended:FILE, which `fimlens recommend` writes.")
    options = options_of("--option", option)
    if choices and "choices" in options:
        raise ValueError(f"--option: the choices are those of {choices}. Leave out choices.")
    return name, options | ({"choices": read_texts(Path(choices))} if choices else {})


def options_of(where: str, given: list[str] | None) -> dict[str, Any]:
    """Read options of the form name=value, where a value is a number, true, false, none or a word.

    Args:
        where: what they stand in or follow, for the error.
        given: the options.
    """
    options = {}
    for each in given or []:
        name, equals, value = each.partition("=")
        if not equals:
            raise ValueError(f"{where}: expected name=value, such as rank=32; got {each!r}.")
        name = name.strip().replace("-", "_")
        if name in options:
            raise ValueError(f"{where}: {name} is given twice. Give one.")
        options[name] = _value(value.strip())
    return options


def _value(word: str) -> Any:
    """Read a value as an int, a float, a bool or None; leave any other word as it is."""
    known = {"true": True, "false": False, "none": None}
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return known.get(word.lower(), word)

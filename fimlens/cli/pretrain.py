"""The command `fimlens pretrain`: train a language model with any optimizer, on one device or many hosts."""

import math
from pathlib import Path
from typing import Annotated, Any

import jax
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fimlens.cli.arguments import console, errors, refusal
from fimlens.optimizers.mixture import read_texts


def pretrain(
    model: Annotated[
        str, typer.Option(help="One of cpu-1m, cpu-5m, llama-60m, llama-130m, llama-350m, llama-1b and llama-7b.")
    ] = "cpu-1m",
    optimizer: Annotated[
        str, typer.Option(help="Name of an optimizer of fimlens, or recommended:FILE, which `fimlens recommend` wrote.")
    ] = "adam",
    rate: Annotated[float, typer.Option(help="Peak of the learning rate.")] = 1e-2,
    option: Annotated[list[str] | None, typer.Option(help="Option of the optimizer, such as rank=32. Repeatable.")] = None,
    steps: Annotated[int, typer.Option(help="Number of steps.")] = 400,
    batch: Annotated[int, typer.Option(help="Sequences per step, over all devices.")] = 16,
    length: Annotated[int, typer.Option(help="Tokens per sequence.")] = 128,
    accumulate: Annotated[int, typer.Option(help="Compute the gradient of a batch in this many parts.")] = 1,
    clip: Annotated[float | None, typer.Option(help="Bound on the global norm of the gradient.")] = None,
    text_path: Annotated[
        list[Path] | None, typer.Option("--text", help="Text files or directories; by default Python's standard library.")
    ] = None,
    shards: Annotated[Path | None, typer.Option(help="Directory of token shards, instead of text.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Hugging Face dataset, by name or local path, instead of text.")] = None,
    dataset_config: Annotated[str | None, typer.Option(help="Configuration of the dataset, such as en of allenai/c4.")] = None,
    split: Annotated[str, typer.Option(help="Split of the dataset.")] = "train",
    column: Annotated[str, typer.Option(help="Column of the dataset that has the text.")] = "text",
    tokenizer: Annotated[str | None, typer.Option(help="Tokenizer: a name on the hub, or a tokenizer.json.")] = None,
    end_token: Annotated[str | None, typer.Option(help="Token after each document, if the tokenizer has no usual one.")] = None,
    held_out: Annotated[int, typer.Option(min=1, help="Tokens to hold out, at the start of the dataset.")] = 2**20,
    tokens: Annotated[
        Path | None, typer.Option(help="Directory for the dataset's tokens, which several runs can share; by default in --out.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Data type of weights and activations: float32 or bfloat16.")] = "float32",
    state_dtype: Annotated[str, typer.Option(help="Data type of the optimizer's state: float32 or bfloat16.")] = "float32",
    tied: Annotated[bool, typer.Option("--tied", help="Use the embedding as the output head.")] = False,
    scan: Annotated[bool, typer.Option("--scan", help="Scan over the layers, which compiles one instead of all.")] = False,
    remat: Annotated[bool, typer.Option("--remat", help="Recompute layers in the backward pass, to save memory.")] = False,
    on_nonfinite: Annotated[str, typer.Option(help="What to do after a loss that is not finite: stop or skip.")] = "stop",
    mesh: Annotated[str | None, typer.Option(help="Sizes of the mesh, such as data=2,fsdp=4,tensor=1.")] = None,
    distributed: Annotated[bool, typer.Option("--distributed", help="One of several hosts that the cluster knows.")] = False,
    coordinator: Annotated[str | None, typer.Option(help="Without a cluster: address:port of host 0.")] = None,
    hosts: Annotated[int | None, typer.Option(min=1, help="With --coordinator: number of hosts.")] = None,
    host: Annotated[int | None, typer.Option(min=0, help="With --coordinator: number of this host, from 0.")] = None,
    evaluate_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between evaluations; by default one at the end.")
    ] = None,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 100,
    keep: Annotated[int, typer.Option(min=1, help="Checkpoints to keep.")] = 2,
    share: Annotated[bool, typer.Option("--share", help="Time the optimizer alone, and report its share of a step.")] = False,
    monitor: Annotated[
        int | None,
        typer.Option(min=1, help="Steps between readings of each matrix, for readings.jsonl and readings.png."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the initial weights and the data order.")] = 0,
    out: Annotated[Path, typer.Option(help="Directory of plan, metrics and checkpoints; a run in it continues.")] = Path(
        "pretrain-out"
    ),
) -> None:
    """Train a language model. After an interruption, the same command continues from the last checkpoint."""
    try:  # imported here, because Flax, Grain and Orbax are optional: the other commands work without them
        from fimlens.pretrain import data, loop
        from fimlens.pretrain.mesh import make_mesh
        from fimlens.pretrain.plan import Plan
        from fimlens.pretrain.readings import write_figure

        if dataset is not None:
            from fimlens.pretrain import hub
            from fimlens.pretrain.tokens import stream_shards
    except ModuleNotFoundError as error:
        extras = "train" if dataset is None else "train,hub"
        errors.print(f"fimlens pretrain: {error}. It needs pip install 'fimlens[{extras}]'.", style="red", markup=False)
        raise typer.Exit(2) from error
    try:
        if not distributed and (coordinator is None) != (hosts is None or host is None):
            raise ValueError("give --coordinator, --hosts and --host together, or --distributed on a cluster that knows them.")
        if distributed or coordinator is not None:  # before anything asks JAX for its devices
            jax.distributed.initialize(coordinator, hosts, host)
        optimizer, _, choices = optimizer.partition(":")
        options = options_of(option) | ({"choices": read_texts(Path(choices))} if choices else {})
        plan = Plan(
            model, optimizer, rate, steps, batch, length, options, accumulate, clip, seed, dtype, state_dtype, tied,
            scan, remat, on_nonfinite, monitor,
        )  # fmt: skip
        if sum(given is not None for given in (text_path, shards, dataset)) > 1:
            raise ValueError("give only one of --text, --shards and --dataset.")
        if (dataset is None) != (tokenizer is None):
            raise ValueError("give --dataset and --tokenizer, such as t5-base, together.")
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=errors, disable=jax.process_index() > 0) as bar:
            if dataset is not None:
                source = hub.Source(dataset, tokenizer, dataset_config, split, column, end_token, held_out)
                stream = bar.add_task("tokens streamed", total=None, visible=False)

                def show_stream(tokens_read: int, wanted: int) -> None:
                    bar.update(stream, completed=min(tokens_read, wanted), total=wanted, visible=True)

                corpus = stream_shards(plan, source, tokens or out / "tokens", show_stream)
            else:
                corpus = data.read_files(text_path) if shards is None else data.read_shards(shards)
            task = bar.add_task(f"{model}, {optimizer}", total=steps)

            def show_metrics(line: loop.Metrics) -> None:
                for k in line.skipped:
                    bar.print(f"batch {k} was skipped: its loss, gradient or update is not finite")
                words = [f"{line.tokens_per_second:,.0f} tokens/s"]
                if line.loss is not None:
                    words = [f"loss {line.loss:.3f}", f"perplexity {line.perplexity:.2f}", *words]
                if line.optimizer_share is not None:
                    words.append(f"optimizer {line.optimizer_share:.0%}")
                bar.update(task, completed=line.step, description=f"{model}, {optimizer}: {', '.join(words)}")

            metrics = loop.train(
                plan, corpus, out, mesh=make_mesh(_sizes(mesh)), evaluate_every=evaluate_every,
                checkpoint_every=checkpoint_every, keep=keep, share=share, callback=show_metrics,
            )  # fmt: skip
            if monitor is not None and jax.process_index() == 0:
                write_figure(out)
    except loop.NonFinite as error:
        errors.print(f"fimlens pretrain: {error}", style="red", markup=False)
        raise typer.Exit(1) from error
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        errors.print(refusal("pretrain", error), style="red", markup=False)
        raise typer.Exit(2) from error
    last = metrics[-1]
    if jax.process_index() == 0:
        console.print(
            f"Held-out loss after {last.step} steps: {last.held_out:.4f} nats per token, perplexity "
            f"{math.exp(last.held_out):.2f}. Metrics and checkpoints: {out}",
            markup=False,
        )


def options_of(given: list[str] | None) -> dict[str, Any]:
    """Read options of the form name=value, where a value is a number, true, false, none or a word."""
    options = {}
    for each in given or []:
        name, equals, value = each.partition("=")
        if not equals:
            raise ValueError(f"--option: expected name=value, such as rank=32; got {each!r}.")
        options[name.strip().replace("-", "_")] = _value(value.strip())
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


def _sizes(mesh: str | None) -> dict[str, int] | None:
    """Read the sizes of a mesh, such as data=2,fsdp=4."""
    if mesh is None:
        return None
    pairs = [part.partition("=") for part in mesh.split(",")]
    if not all(size.strip().isdigit() for _, _, size in pairs):
        raise ValueError(f"--mesh: expected sizes such as data=2,fsdp=4; got {mesh!r}.")
    return {name.strip(): int(size) for name, _, size in pairs}

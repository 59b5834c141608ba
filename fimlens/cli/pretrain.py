"""fimlens pretrain: train a language model with any optimizer, on one device or many hosts."""

import math
from pathlib import Path
from typing import Annotated, Any

import jax
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fimlens.cli.arguments import console, errors, refusal


def pretrain(
    model: Annotated[
        str, typer.Option(help="cpu-1m, cpu-5m, llama-60m, llama-130m, llama-350m, llama-1b or llama-7b.")
    ] = "cpu-1m",
    optimizer: Annotated[str, typer.Option(help="Any optimizer of fimlens, by its name.")] = "adam",
    rate: Annotated[float, typer.Option(help="The peak learning rate.")] = 1e-2,
    option: Annotated[list[str] | None, typer.Option(help="Of the optimizer, such as rank=32; as often as needed.")] = None,
    steps: int = 400,
    batch: Annotated[int, typer.Option(help="Sequences a step, over all devices.")] = 16,
    length: Annotated[int, typer.Option(help="Tokens a sequence.")] = 128,
    accumulate: Annotated[int, typer.Option(help="Parts that each batch is taken in.")] = 1,
    clip: Annotated[float | None, typer.Option(help="The largest norm of the gradient.")] = None,
    text_path: Annotated[
        list[Path] | None, typer.Option("--text", help="Files or directories; Python's standard library by default.")
    ] = None,
    shards: Annotated[Path | None, typer.Option(help="A directory of token shards, in place of text.")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="In place of text: of Hugging Face, by its name there, or a file or directory like it.")
    ] = None,
    dataset_config: Annotated[str | None, typer.Option(help="Where the dataset has several, such as en of allenai/c4.")] = None,
    split: str = "train",
    column: Annotated[str, typer.Option(help="Of the dataset: the one with text.")] = "text",
    tokenizer: Annotated[str | None, typer.Option(help="Of the dataset: a name, or the path of a tokenizer.json.")] = None,
    end_token: Annotated[str | None, typer.Option(help="What ends a document, where the tokenizer has no usual one.")] = None,
    held_out: Annotated[int, typer.Option(min=1, help="Tokens at the dataset's start that are not trained on.")] = 2**20,
    tokens: Annotated[
        Path | None, typer.Option(help="Where the dataset's tokens go, to be shared by runs; in --out by default.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of weights and activations: float32 or bfloat16.")] = "float32",
    state_dtype: Annotated[str, typer.Option(help="Of the optimizer's state between steps: float32 or bfloat16.")] = "float32",
    tied: Annotated[bool, typer.Option("--tied", help="The embedding is the head.")] = False,
    scan: Annotated[bool, typer.Option("--scan", help="Scan over layers.")] = False,
    remat: Annotated[bool, typer.Option("--remat", help="Compute layers again for their gradients.")] = False,
    on_nonfinite: Annotated[str, typer.Option(help="Of a loss that is not finite: stop or skip.")] = "stop",
    mesh: Annotated[str | None, typer.Option(help="Sizes of its axes, such as data=2,fsdp=4,tensor=1.")] = None,
    distributed: Annotated[bool, typer.Option("--distributed", help="One of several hosts, as the cluster tells JAX.")] = False,
    coordinator: Annotated[str | None, typer.Option(help="Where no cluster tells: address:port of host 0.")] = None,
    hosts: Annotated[int | None, typer.Option(min=1, help="With --coordinator: how many hosts there are,")] = None,
    host: Annotated[int | None, typer.Option(min=0, help="and which of them this is.")] = None,
    evaluate_every: Annotated[int | None, typer.Option(min=1, help="Steps; at the end alone by default.")] = None,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps.")] = 100,
    keep: Annotated[int, typer.Option(min=1, help="Checkpoints.")] = 2,
    share: Annotated[
        bool, typer.Option("--share", help="Time what follows the gradient too, alone, and tell its share.")
    ] = False,
    seed: int = 0,
    out: Annotated[Path, typer.Option(help="Directory of plan, metrics and checkpoints; a run that is there goes on.")] = Path(
        "pretrain-out"
    ),
) -> None:
    """Train a language model; interrupted, the same command goes on from the last checkpoint."""
    try:
        from fimlens.pretrain import data, loop
        from fimlens.pretrain.mesh import mesh_of
        from fimlens.pretrain.plan import Plan

        if dataset is not None:
            from fimlens.pretrain import hub
            from fimlens.pretrain.tokens import of_source
    except ModuleNotFoundError as error:
        extras = "train" if dataset is None else "train,hub"
        errors.print(f"fimlens pretrain: {error}. It needs pip install 'fimlens[{extras}]'.", style="red", markup=False)
        raise typer.Exit(2) from error
    try:
        if not distributed and (coordinator is None) != (hosts is None or host is None):
            raise ValueError("--coordinator, --hosts and --host go together; or --distributed, where a cluster tells them.")
        if distributed or coordinator is not None:
            jax.distributed.initialize(coordinator, hosts, host)
        plan = Plan(
            model, optimizer, rate, steps, batch, length, options_of(option), accumulate, clip, seed, dtype, state_dtype, tied,
            scan, remat, on_nonfinite,
        )  # fmt: skip
        if sum(given is not None for given in (text_path, shards, dataset)) > 1:
            raise ValueError("take one of --text, --shards and --dataset.")
        if (dataset is None) != (tokenizer is None):
            raise ValueError("--dataset and --tokenizer, such as t5-base, go together.")
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

                def streaming(seen: int, wanted: int) -> None:
                    bar.update(stream, completed=min(seen, wanted), total=wanted, visible=True)

                corpus = of_source(plan, source, tokens or out / "tokens", streaming)
            else:
                corpus = data.of_files(text_path) if shards is None else data.of_shards(shards)
            task = bar.add_task(f"{model}, {optimizer}", total=steps)

            def told(line: loop.Line) -> None:
                for k in line.skipped:
                    bar.print(f"batch {k} made a loss or a gradient that is not finite, and was skipped")
                said = [f"{line.tokens_per_second:,.0f} tokens/s"]
                if line.loss is not None:
                    said = [f"loss {line.loss:.3f}", f"perplexity {line.perplexity:.2f}", *said]
                if line.optimizer_share is not None:
                    said.append(f"optimizer {line.optimizer_share:.0%}")
                bar.update(task, completed=line.step, description=f"{model}, {optimizer}: {', '.join(said)}")

            lines = loop.train(
                plan, corpus, out, mesh=mesh_of(_sizes(mesh)), evaluate_every=evaluate_every, checkpoint_every=checkpoint_every,
                keep=keep, share=share, told=told,
            )  # fmt: skip
    except loop.NonFinite as error:
        errors.print(f"fimlens pretrain: {error}", style="red", markup=False)
        raise typer.Exit(1) from error
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        errors.print(refusal("pretrain", error), style="red", markup=False)
        raise typer.Exit(2) from error
    last = lines[-1]
    if jax.process_index() == 0:
        console.print(
            f"Held-out loss after {last.step} steps: {last.held_out:.4f} nats a token, perplexity "
            f"{math.exp(last.held_out):.2f}. Metrics and checkpoints: {out}",
            markup=False,
        )


def options_of(given: list[str] | None) -> dict[str, Any]:
    """name=value as numbers, booleans, None or words."""
    options = {}
    for each in given or []:
        name, equals, value = each.partition("=")
        if not equals:
            raise ValueError(f"--option: expected name=value, such as rank=32; got {each!r}.")
        options[name.strip().replace("-", "_")] = _value(value.strip())
    return options


def _value(word: str) -> Any:
    known = {"true": True, "false": False, "none": None}
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return known.get(word.lower(), word)


def _sizes(mesh: str | None) -> dict[str, int] | None:
    if mesh is None:
        return None
    pairs = [part.partition("=") for part in mesh.split(",")]
    if not all(size.strip().isdigit() for _, _, size in pairs):
        raise ValueError(f"--mesh: expected sizes such as data=2,fsdp=4; got {mesh!r}.")
    return {name.strip(): int(size) for name, _, size in pairs}

"""The command `fimlens pretrain`: train a language model with any optimizer, on one device or many hosts."""

from pathlib import Path
from typing import Annotated

import jax
import typer

from fimlens.cli import training
from fimlens.cli.arguments import console, importing, refuse_unread, refusing
from fimlens.language_model import llama

OF_A_DATASET = dict.fromkeys(["dataset_config", "split", "column", "end_token", "held_out", "tokens"], ("--dataset",))


def pretrain(
    context: typer.Context,
    model: Annotated[str, typer.Option(help=f"One of {', '.join(llama.CPU_CONFIGS | llama.CONFIGS)}.")] = "cpu-1m",
    optimizer: training.Optimizer = "adam",
    rate: training.Rate = 1e-2,
    option: training.Option = None,
    steps: Annotated[int, typer.Option(help="Number of steps.")] = 400,
    batch: training.Batch = 16,
    length: training.Length = 128,
    accumulate: training.Accumulate = 1,
    clip: training.Clip = None,
    text_path: training.TextPath = None,
    shards: training.Shards = None,
    dataset: Annotated[str | None, typer.Option(help="Hugging Face dataset, by name or local path, instead of text.")] = None,
    dataset_config: Annotated[str | None, typer.Option(help="Configuration of the dataset, such as en of allenai/c4.")] = None,
    split: Annotated[str, typer.Option(help="Split of the dataset.")] = "train",
    column: Annotated[str, typer.Option(help="Column of the dataset that has the text.")] = "text",
    tokenizer: Annotated[str | None, typer.Option(help="Tokenizer: a name on the hub, or a tokenizer.json.")] = None,
    end_token: Annotated[str | None, typer.Option(help="Token after each document, if the tokenizer has no usual one.")] = None,
    held_out: Annotated[int, typer.Option(min=1, help="Tokens to hold out, at the start of the dataset.")] = 2**20,
    tokens: Annotated[
        Path | None,
        typer.Option(
            file_okay=False, help="Directory for the dataset's tokens, which several runs can share; by default in --out."
        ),
    ] = None,
    dtype: training.Dtype = "float32",
    state_dtype: training.StateDtype = "float32",
    tied: Annotated[bool, typer.Option("--tied", help="Use the embedding as the output head.")] = False,
    scan: training.Scan = False,
    remat: training.Remat = False,
    on_nonfinite: training.OnNonfinite = "stop",
    mesh: training.Mesh = None,
    distributed: training.Distributed = False,
    coordinator: training.Coordinator = None,
    hosts: training.Hosts = None,
    host: training.Host = None,
    evaluate_every: training.EvaluateEvery = None,
    checkpoint_every: training.CheckpointEvery = 100,
    keep: training.Keep = 2,
    share: training.Share = False,
    monitor: training.Monitor = None,
    seed: Annotated[int, typer.Option(help="Seed of the initial weights and the data order.")] = 0,
    out: training.Out = Path("pretrain-out"),
) -> None:
    """Train a language model. After an interruption, the same command continues from the last checkpoint.

    It first says how many parameters, tokens and bytes the training takes. The defaults take about two minutes on two cores.
    """
    with importing("pretrain", "train" if dataset is None else "train,hub"):
        from fimlens.cli import running
        from fimlens.pretrain import data
        from fimlens.pretrain.plan import Plan

        if dataset is not None:
            from fimlens.pretrain import hub
            from fimlens.pretrain.tokens import stream_shards
    with refusing("pretrain", FloatingPointError, RuntimeError):
        training.join_hosts(distributed, coordinator, hosts, host)
        optimizer, options = training.optimizer_of(optimizer, option)
        plan = Plan(
            model, optimizer, rate, steps, batch, length, options, accumulate, clip, seed, dtype, state_dtype,
            scan, remat, on_nonfinite, monitor, tied,
        )  # fmt: skip
        if sum(given is not None for given in (text_path, shards, dataset)) > 1:
            raise ValueError("give only one of --text, --shards and --dataset.")
        if dataset is None:
            refuse_unread(context, "text" if shards is None else "--shards", OF_A_DATASET)
        if (dataset is None) != (tokenizer is None):
            raise ValueError("give --dataset and --tokenizer, such as t5-base, together.")
        if dataset is not None:
            source = hub.Source(dataset, tokenizer, dataset_config, split, column, end_token, held_out)
            with running.bar() as bar:
                stream = bar.add_task("tokens streamed", total=None, visible=False)

                def show_stream(tokens_read: int, wanted: int) -> None:
                    bar.update(stream, completed=min(tokens_read, wanted), total=wanted, visible=True)

                corpus = stream_shards(plan, source, tokens or out / "tokens", show_stream)
        else:
            corpus = data.read_files(text_path) if shards is None else data.read_shards(shards)
        metrics = running.train(
            f"{model}, {optimizer}", plan, corpus, out, mesh=mesh, evaluate_every=evaluate_every,
            checkpoint_every=checkpoint_every, keep=keep, share=share,
        )  # fmt: skip
    last = metrics[-1]
    if jax.process_index() == 0:
        console.print(
            f"Held-out loss after {last.step} steps: {last.held_out:.4f} nats per token, perplexity "
            f"{last.perplexity:.2f}. Metrics and checkpoints: {out}"
        )

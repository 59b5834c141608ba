"""The command `fimlens finetune`: train an encoder or a decoder of others for a task."""

from pathlib import Path
from typing import Annotated

import jax
import typer

from fimlens.cli import training
from fimlens.cli.arguments import console, importing, refuse_unread, refusing

WHOLE = "a whole model"


def finetune(
    context: typer.Context,
    model: Annotated[
        str, typer.Option(help="A directory with BERT, RoBERTa or a LLaMA-family model, as Hugging Face keeps it.")
    ],
    task: Annotated[str, typer.Option(help="A task of GLUE, such as sst2, or a CSV, JSON-lines or parquet file.")],
    held_out: training.HeldOut = None,
    texts: training.Texts = "text",
    label: training.Label = "label",
    dataset: training.TaskDataset = None,
    tokenizer: Annotated[str | None, typer.Option(help="A tokenizer.json, instead of the model's own.")] = None,
    head_only: training.HeadOnly = False,
    optimizer: training.Optimizer = "adam",
    rate: training.Rate = 1e-4,
    option: training.Option = None,
    epochs: training.Epochs = 3.0,
    warmup: training.Warmup = 0.1,
    batch: training.Batch = 16,
    length: training.Length = 128,
    accumulate: training.Accumulate = 1,
    clip: training.Clip = None,
    dtype: training.Dtype = "float32",
    state_dtype: training.StateDtype = "float32",
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
    seed: Annotated[int, typer.Option(help="Seed of the new weights and the data order.")] = 0,
    out: training.Out = Path("finetune-out"),
) -> None:
    """Fine-tune a model for a task, and score it on what is held out.

    The tasks of GLUE come from the hub. A file has a column of text, or two, and a column of labels: classes, or numbers with a
    fraction for a regression. After an interruption, the same command continues from the last checkpoint.
    """
    with importing("finetune", "finetune"):
        from fimlens.cli import running
        from fimlens.finetune.examples import HUB
        from fimlens.finetune.plan import prepare
        from fimlens.finetune.task import GLUE
    with refusing("finetune", FloatingPointError, RuntimeError):
        training.join_hosts(distributed, coordinator, hosts, host)
        refuse_unread(context, "--head-only" if head_only else WHOLE, {"remat": (WHOLE,)})
        optimizer, options = training.optimizer_of(optimizer, option)
        reading = training.reading(context, task, GLUE, dataset or HUB, held_out, texts, label)
        plan, examples = prepare(
            model, task, epochs=epochs, reading=reading,
            optimizer=optimizer, rate=rate, batch=batch, length=length, options=options, accumulate=accumulate, clip=clip,
            seed=seed, dtype=dtype, state_dtype=state_dtype, scan=scan, remat=remat, on_nonfinite=on_nonfinite,
            monitor=monitor, head_only=head_only, warmup=warmup, tokenizer=tokenizer,
        )  # fmt: skip
        metrics = running.train(
            f"{task}, {optimizer}", plan, examples, out, mesh=mesh, evaluate_every=evaluate_every,
            checkpoint_every=checkpoint_every, keep=keep, share=share,
        )  # fmt: skip
    if jax.process_index() == 0:
        last = metrics[-1]
        scores = ", ".join(f"{name} {value:.4f}" for name, value in last.scores.items())
        console.print(
            f"On {len(examples.held_out.labels)} held-out rows after {last.step} steps: {scores}, loss {last.held_out:.4f}. "
            f"Metrics and checkpoints: {out}"
        )

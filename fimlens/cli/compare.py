"""The command `fimlens compare`: optimizers on one model and one text, each at its own best rate, over several seeds."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from fimlens._validate import require_known
from fimlens.cli import training
from fimlens.cli.arguments import importing, refuse_unread, refusing
from fimlens.costs.devices import DEVICES, MEASURED_UTILISATION

TASK, PRETRAINING, DRY, TRAINING, TUNE = "--task", "a pre-training", "--dry-run", "a training", "--tune"
READ_WITH = {
    **dict.fromkeys(["held_out", "texts", "label", "dataset", "head_only", "epochs", "warmup"], (TASK,)),
    **dict.fromkeys(["steps", "lengths", "dry", "text_path", "shards"], (PRETRAINING,)),
}
WITH_OR_WITHOUT_TRAINING = {
    **dict.fromkeys(["hardware", "devices", "utilisation"], (DRY,)),
    **dict.fromkeys(["text_path", "shards"], (TRAINING,)),
}


def compare(
    context: typer.Context,
    more: Annotated[list[str] | None, typer.Argument(metavar="[OPTIMIZERS]...", help="More names.", show_default=False)] = None,
    optimizers: Annotated[
        list[str] | None,
        typer.Option(metavar="NAMES...", help="Names such as adam, alice or adamw:b2=0.95. The first is the reference."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds at each optimizer's best rate.")] = 3,
    tune: Annotated[bool, typer.Option("--tune/--no-tune", help="Try several learning rates, with the first seed.")] = True,
    tries: Annotated[int, typer.Option(min=3, help="Learning rates to try at most, for each optimizer.")] = 5,
    model: Annotated[str, typer.Option(help="A model of fimlens pretrain; with --task, a directory.")] = "cpu-1m",
    option: Annotated[
        list[str] | None, typer.Option(help="Option such as rank=32, for every optimizer that has it. Repeatable.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each run; with --lengths, of those that tune the rate.")] = 300,
    lengths: Annotated[
        str | None, typer.Option(help="Numbers of steps, as in 150,300,600: a whole schedule for each, --steps among them.")
    ] = None,
    batch: training.Batch = 16,
    length: training.Length = 128,
    accumulate: training.Accumulate = 1,
    clip: Annotated[float | None, typer.Option(help="Bound on the global norm of the gradient, for every optimizer.")] = None,
    dtype: training.Dtype = "float32",
    state_dtype: training.StateDtype = "float32",
    text_path: training.TextPath = None,
    shards: training.Shards = None,
    task: Annotated[
        str | None, typer.Option(help="Fine-tune --model for this task instead: a name of GLUE, or a file as in finetune.")
    ] = None,
    held_out: training.HeldOut = None,
    texts: training.Texts = "text",
    label: training.Label = "label",
    dataset: training.TaskDataset = None,
    head_only: training.HeadOnly = False,
    epochs: training.Epochs = 3.0,
    warmup: training.Warmup = 0.1,
    out: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            help="Directory of runs, table and figure; a comparison in it continues. With --dry-run, of dry-run.json.",
            show_default="compare-out",
        ),
    ] = None,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Train nothing, but print what all runs take on --hardware: memory, FLOPs, hours.")
    ] = False,
    hardware: Annotated[str, typer.Option(help=f"With --dry-run: {', '.join(DEVICES)}.")] = "h100",
    devices: Annotated[int, typer.Option(min=1, help="With --dry-run: number of devices.")] = 1,
    utilisation: Annotated[
        float, typer.Option(help="With --dry-run: share of the peak that training reaches; default: our measured one.")
    ] = MEASURED_UTILISATION,
) -> None:
    """Train each optimizer at its own best learning rate, and compare losses, speed and memory with the first one.

    With a task they fine-tune a model, and scores are compared. --epochs then gives the steps, and the first score the rates.

    All optimizers begin at the same weights and see the same batches. The same command with the same --out continues after an
    interruption. It writes table.md, compare.json and compare.png, and with --lengths the final losses against the length too,
    in lengths.png. An optimizer may have its own options, model and clipping: galore:model=llama-7b,rank=1024,clip=1.
    """
    with importing("compare", "train" if task is None else "finetune"):
        from fimlens.cli import comparing
        from fimlens.experiments import comparison
        from fimlens.experiments.dry_run import Machine
        from fimlens.experiments.lengths import read_lengths, tries_at
        from fimlens.pretrain import data
        from fimlens.pretrain.plan import Plan

        if task is not None:
            from fimlens.finetune.examples import HUB
            from fimlens.finetune.plan import prepare
            from fimlens.finetune.task import GLUE
    with refusing("compare", FloatingPointError, RuntimeError):
        if text_path is not None and shards is not None:
            raise ValueError("give only one of --text and --shards.")
        refuse_unread(context, PRETRAINING if task is None else TASK, READ_WITH)
        refuse_unread(context, DRY if dry else TRAINING, WITH_OR_WITHOUT_TRAINING)
        refuse_unread(context, TUNE if tune else "--no-tune", {"tries": (TUNE,)})
        sizes = {"batch": batch, "length": length, "accumulate": accumulate}
        sizes |= {"clip": clip, "dtype": dtype, "state_dtype": state_dtype}
        if task is None:
            base, examples = Plan(model, steps=steps, **sizes), None
        else:
            reading = training.reading(context, task, GLUE, dataset or HUB, held_out, texts, label)
            further = {"head_only": head_only, "warmup": warmup, "scan": True}
            base, examples = prepare(model, task, epochs=epochs, reading=reading, **sizes, **further)
        names = [*(optimizers or []), *(more or [])] or ["adam", "racs", "alice"]
        given, chosen, tries = training.options_of("--option", option), read_lengths(lengths, base.steps), tries if tune else 1
        own = {name: training.options_of(name, name.partition(":")[2].split(",")) for name in names if ":" in name}
        if task is not None and any("model" in each for each in own.values()):
            raise ValueError("with --task all optimizers train one model, whose tokenizer encodes the texts. Leave out model=.")
        make = partial(comparison.make_entries, names, given=given, own=own)
        entries = make(base)  # a wrong name is refused before the text is read
        runs = {at: few + seeds - 1 for at, few in tries_at(base.steps, chosen, tries).items()}
        if dry:
            require_known("--hardware", "hardware", hardware, DEVICES)
            comparing.show_needs(entries, base, runs, Machine(hardware, DEVICES[hardware], devices, utilisation), out)
            return
        out = out or Path("compare-out")
        found = examples or (data.read_files(text_path) if shards is None else data.read_shards(shards))
        curves = comparing.train_all(make, len(entries), base, found, runs, out, tries=tries, seeds=seeds)
        comparing.show_results(curves, base, found, out)

"""fimlens lens: compare every structure, and its optimizer, on real gradients."""

import json
import math
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import jax
import jaxlib
import typer

from fimlens import __version__
from fimlens.cli.arguments import (
    console,
    errors,
    long_progress,
    named_dtype,
    parse_structures,
    refuse_unread,
    refusing,
    require_writable,
)
from fimlens.cli.lens_estimates import estimate_gradients
from fimlens.cli.lens_fishers import FISHERS, builtin_fishers, user_fishers
from fimlens.cli.lens_tables import LEGEND, print_tables
from fimlens.cli.model_gradients import write_model_gradients
from fimlens.fisher.fisher import Fisher
from fimlens.lens.compare import SOLVE_UP_TO, Comparison, compare
from fimlens.lens.conclusions import conclude_in_sample
from fimlens.lens.figure import error_against_memory, error_in_each_divergence
from fimlens.models.gradient_files import read_gradients
from fimlens.structure import Structure
from fimlens.structures.named import named_structures

DEFAULT_MATRICES = ["layers/0/attention/query", "layers/1/attention/value", "layers/1/mlp/down"]


# Up to this many entries, compilation takes far longer than all else: the code is then compiled without optimisation.
TINY = 64
BUILT_IN, LOW_RANK = "the built-in model", "low-rank structures"
READ_WITH = {
    "steps": (BUILT_IN,),
    "text_path": (BUILT_IN, "--model"),
    "samples": (BUILT_IN, "--loss", "--model"),
    **dict.fromkeys(["fisher", "solve_up_to", "dtype"], (BUILT_IN, "--loss")),
    **dict.fromkeys(["params", "batches"], ("--loss",)),
    "length": ("--model",),
    **dict.fromkeys(["folds", "skip_nonfinite"], ("--model", "--gradients")),
}
AT_ONCE = 3  # matrices: more gain nothing, as Python traces one at a time, and each holds its arrays


def lens(
    context: typer.Context,
    structures: Annotated[
        str | None, typer.Option(help="Names such as adam,soap; module:attribute for your own. Default: all named ones.")
    ] = None,
    matrices: Annotated[
        str | None,
        typer.Option(help="Paths or patterns such as 'layers/*/attention/query', by commas. Of --model: 'layers/*'."),
    ] = None,
    fisher: Annotated[str, typer.Option(help=" | ".join(FISHERS))] = "empirical",
    samples: Annotated[int, typer.Option(min=1, help="Number of examples; for minibatch, of minibatches of 16.")] = 64,
    text_path: Annotated[
        list[Path] | None, typer.Option("--text", help="File or directory to train on. Default: Python's standard library.")
    ] = None,
    steps: Annotated[int, typer.Option(min=0, help="Training steps of the built-in model.")] = 400,
    loss: Annotated[
        str | None,
        typer.Option(
            help="module:function: your own loss(params, batch) instead of the built-in model; your logits, for a model Fisher."
        ),
    ] = None,
    params: Annotated[str | None, typer.Option(help="module:attribute. Default: `params` beside --loss.")] = None,
    batches: Annotated[str | None, typer.Option(help="module:attribute. Default: `batches` beside --loss.")] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="A language model: a Hugging Face directory, a .gguf file or a run of pretrain. Held-out errors."),
    ] = None,
    length: Annotated[int, typer.Option(min=2, help="With --model: tokens in a window, which is one sample.")] = 128,
    gradients: Annotated[
        Path | None,
        typer.Option(help="Directory with an array (N, m, n) a matrix, .npy or .safetensors: held-out errors."),
    ] = None,
    folds: Annotated[int, typer.Option(min=2, help="With --model or --gradients: each fit sees all folds but one.")] = 8,
    skip_nonfinite: Annotated[
        bool, typer.Option("--skip-nonfinite", help="With --model or --gradients: leave out gradients that are not finite.")
    ] = False,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Of the low-rank structures. Default: 4, or 32 with --model or --gradients.")
    ] = None,
    solve_up_to: Annotated[int, typer.Option(help="Solve matrices of at most this many entries.")] = SOLVE_UP_TO,
    dtype: Annotated[str, typer.Option(help="Data type assumed when reporting state size in bytes.")] = "float32",
    seed: Annotated[int, typer.Option(help="Seed of the built-in model, its data, and all random draws.")] = 0,
    out: Annotated[
        Path, typer.Option(file_okay=False, help="Directory for figures and lens.json; of held-out errors, estimates.json.")
    ] = Path("lens-out"),
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers to this file too.")] = None,
) -> None:
    """Compare structures, and their optimizers, on the Fishers of a model's matrices. Exit with 1 if a verdict fails.

    By default the model is a small byte-level language model, trained for a few seconds on the sources of Python's standard
    library. All structures on three of its matrices take about two minutes on two cores.
    """
    _compile_less()
    with refusing("lens"):
        held_out = model is not None or gradients is not None
        known = named_structures(rank or 32, sweeps=10) if held_out else named_structures(rank or 4)
        if held_out:
            del known["dense"]  # mn x mn
        chosen = known if structures is None else parse_structures("--structures", structures, known)
        state_dtype = named_dtype("--dtype", dtype)
        if fisher not in FISHERS:
            raise ValueError(f"--fisher: one of {', '.join(FISHERS)}; got {fisher!r}")
        # Everything that can be refused is refused before minutes of work.
        sources = {"--loss": loss, "--model": model, "--gradients": gradients}
        given = [name for name, source in sources.items() if source is not None]
        if len(given) > 1:
            raise ValueError("give one of --loss, --model and --gradients: each says where gradients come from.")
        refuse_unread(context, *given or [BUILT_IN], READ_WITH)
        ranked = any(structure == known.get(name) and hasattr(structure, "rank") for name, structure in chosen.items())
        refuse_unread(context, LOW_RANK if ranked else ", ".join(chosen), {"rank": (LOW_RANK,)})
        out.mkdir(parents=True, exist_ok=True)
        figures = {out / "lens.png": error_against_memory, out / "divergences.png": error_in_each_divergence}
        for option, path in (*(("--out", path) for path in (*figures, out / "lens.json")), ("--json", json_file)):
            require_writable(option, path)
        named = None if matrices is None else [part.strip() for part in matrices.split(",")]
        if held_out:
            if model is not None:
                # The embedding and the head have a side as long as the vocabulary: they are taken only where they are named.
                options = {"patterns": named or ["layers/*"], "samples": samples, "length": length, "out": out}
                gradients, named = write_model_gradients(model, text_path, **options), None
            options = {"patterns": named or ["*"], "folds": folds, "skip_nonfinite": skip_nonfinite, "seed": seed, "out": out}
            report = estimate_gradients(chosen, read_gradients(gradients), **options)
            if json_file is not None:
                json_file.write_text(json.dumps(report, indent=2) + "\n")
            return
        if loss is None:
            found = builtin_fishers(text_path, named or DEFAULT_MATRICES, fisher, samples, steps, seed)
        else:
            found = user_fishers(loss, params, batches, named or ["*"], fisher, samples, seed)
        comparisons = _compare(chosen, _without_zeros(found), seed, solve_up_to, state_dtype)
        for comparison in comparisons:
            print_tables(comparison, dtype)
        for path, figure in figures.items():
            figure(comparisons).savefig(path, dpi=150)
        report = {
            "fimlens": __version__,
            "seed": seed,
            "ok": all(c.ok for c in comparisons),
            "matrices": [c.to_json() for c in comparisons],
        }
        for path in (out / "lens.json", json_file):
            if path is not None:
                path.write_text(json.dumps(report, indent=2) + "\n")
    _conclude(comparisons, [*figures, out / "lens.json"])
    if not report["ok"]:
        raise typer.Exit(1)


def _conclude(comparisons: list[Comparison], written: list[Path]) -> None:
    """Say in words what the tables show, which files were written, and which verdicts failed."""
    console.print(LEGEND, style="dim")
    console.print(*conclude_in_sample(comparisons), sep="\n")
    console.print(f"Figures and numbers: {', '.join(map(str, written))}")
    for comparison in comparisons:
        if not comparison.rows:
            errors.print(f"No structure suits {comparison.matrix}: nothing was judged.", style="red")
    if not all(row.ok for comparison in comparisons for row in comparison.rows):
        errors.print("A verdict failed: see NO above.", style="red")


def _compare(
    chosen: dict[str, Structure], fishers: dict[str, Fisher], seed: int, solve_up_to: int, dtype: Any
) -> list[Comparison]:
    """Say how much is to be compared, compare the structures on each Fisher, and show how far that is."""
    total, sizes = len(chosen) * len(fishers), [math.prod(fisher.shape) for fisher in fishers.values()]
    errors.print(
        f"{len(chosen)} structures on {len(fishers)} matrices of up to {max(sizes):,} entries: {total} comparisons. Each takes "
        "about two seconds on two cores, most of it in the compiler."
    )
    stopped = threading.Event()
    with long_progress() as bar, _compiled_for(max(sizes)), ThreadPoolExecutor(AT_ONCE) as pool:
        task = bar.add_task("structures", total=total)

        def judged(name: str) -> Comparison:
            def advance(structure: str) -> None:
                if stopped.is_set():
                    raise KeyboardInterrupt
                bar.update(task, advance=1, description=f"{name}: {structure}")

            key = jax.random.key(seed)  # the same draws for every matrix
            options = {"matrix": name, "key": key, "solve_up_to": solve_up_to, "dtype": dtype, "progress": advance}
            return compare(chosen, fishers[name], **options)

        try:  # XLA compiles outside of Python's lock, so that one matrix is traced while another is compiled
            comparisons = list(pool.map(judged, fishers))
        except BaseException:
            stopped.set()  # the pool waits for its threads, which end after the structure that they are at
            raise
        bar.update(task, description="structures")
    return comparisons


def _without_zeros(fishers: dict[str, Fisher]) -> dict[str, Fisher]:
    """Leave out matrices whose gradients are all zero, and say so: every structure has such an F."""
    moving = {name: fisher for name, fisher in fishers.items() if fisher.norm_squared_in_units > 0}
    still = ", ".join(name for name in fishers if name not in moving)
    if not moving:
        raise ValueError(f"all gradients of {still} are zero. Train the model first, or give other batches.")
    if still:
        errors.print(f"Left out, as all gradients are zero: {still}.")
    return moving


def _compile_less() -> None:
    """Ask XLA to compile faster, unless XLA_FLAGS says how: here the compiler takes longer than the code that it makes.

    JAX reads the flags at its first array, and stops at one that it does not know: the second is unknown since jaxlib 0.11.
    """
    known = tuple(map(int, jaxlib.__version__.split(".")[:2])) < (0, 11)
    emitters = " --xla_cpu_use_fusion_emitters=false" if known else ""
    os.environ.setdefault("XLA_FLAGS", f"--xla_cpu_parallel_codegen_split_count=1{emitters}")


@contextmanager
def _compiled_for(entries: int) -> Iterator[None]:
    """Compile without optimisation, so that the compiler takes less time, if no matrix has more than TINY entries."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", before or entries <= TINY)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)

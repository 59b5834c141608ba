"""fimlens lens: compare every structure, and its optimizer, on real gradients."""

import json
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fimlens import __version__
from fimlens.cli.arguments import attribute, console, errors, named_dtype, parse_structures, refusal, require_writable
from fimlens.cli.lens_estimates import estimate_gradients
from fimlens.cli.lens_tables import LEGEND, print_tables
from fimlens.cli.model_gradients import write_model_gradients
from fimlens.fisher.fisher import Fisher
from fimlens.language_model import llama, text
from fimlens.lens.compare import SOLVE_UP_TO, Comparison, compare
from fimlens.lens.conclusions import conclude_in_sample
from fimlens.lens.figure import error_against_memory, error_in_each_divergence
from fimlens.models.batches import count_examples, require_batches
from fimlens.models.fishers import empirical_fisher, minibatch_fisher
from fimlens.models.gradient_files import read_gradients
from fimlens.models.matrices import select_matrices
from fimlens.models.model_fisher import model_fisher
from fimlens.structure import Structure
from fimlens.structures.named import named_structures

WINDOW = 64  # bytes of context of the built-in model


DEFAULT_MATRICES = ["layers/0/attention/query", "layers/1/attention/value", "layers/1/mlp/down"]


FISHERS = ("empirical", "minibatch", "model", "model-exact")


def lens(
    structures: Annotated[
        str | None, typer.Option(help="Names such as adam,soap; module:attribute for your own. Default: all named ones.")
    ] = None,
    matrices: Annotated[
        str | None, typer.Option(help="Paths or patterns such as 'layers/*/attention/query', separated by commas.")
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
    folds: Annotated[int, typer.Option(min=2, help="With --gradients: each fit sees all folds but one.")] = 8,
    skip_nonfinite: Annotated[
        bool, typer.Option("--skip-nonfinite", help="With --gradients: leave out gradients that are not finite.")
    ] = False,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Of the low-rank structures. Default: 4, or 32 with --model and --gradients.")
    ] = None,
    solve_up_to: Annotated[int, typer.Option(help="Solve matrices of at most this many entries.")] = SOLVE_UP_TO,
    dtype: Annotated[str, typer.Option(help="Data type assumed when reporting state size in bytes.")] = "float32",
    seed: Annotated[int, typer.Option(help="Seed of the built-in model, its data, and all random draws.")] = 0,
    out: Annotated[Path, typer.Option(help="Directory to write both figures and lens.json to.")] = Path("lens-out"),
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers to this file too.")] = None,
) -> None:
    """Compare structures, and their optimizers, on the Fishers of a model's matrices. Exit with 1 if a verdict fails.

    By default the model is a small byte-level language model, trained for a few seconds on the sources of Python's standard
    library.
    """
    try:
        held_out = model is not None or gradients is not None
        known = named_structures(rank or 32, sweeps=10) if held_out else named_structures(rank or 4)
        if held_out:
            del known["dense"]  # mn x mn
        chosen = known if structures is None else parse_structures("--structures", structures, known)
        state_dtype = named_dtype("--dtype", dtype)
        if fisher not in FISHERS:
            raise ValueError(f"--fisher: one of {', '.join(FISHERS)}; got {fisher!r}")
        # Everything that can be refused is refused before minutes of work.
        if sum(given is not None for given in (loss, model, gradients)) > 1:
            raise ValueError("give one of --loss, --model and --gradients: each says where gradients come from.")
        out.mkdir(parents=True, exist_ok=True)
        figures = {out / "lens.png": error_against_memory, out / "divergences.png": error_in_each_divergence}
        for option, path in (*(("--out", path) for path in (*figures, out / "lens.json")), ("--json", json_file)):
            require_writable(option, path)
        if held_out:
            named = ["*"] if matrices is None else [part.strip() for part in matrices.split(",")]
            if model is not None:
                gradients = write_model_gradients(model, text_path, patterns=named, samples=samples, length=length, out=out)
                named = ["*"]
            options = {"patterns": named, "folds": folds, "skip_nonfinite": skip_nonfinite, "seed": seed, "out": out}
            report = estimate_gradients(chosen, read_gradients(gradients), **options)
            if json_file is not None:
                json_file.write_text(json.dumps(report, indent=2) + "\n")
            return
        with Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=errors
        ) as bar:
            patterns = None if matrices is None else [part.strip() for part in matrices.split(",")]
            if loss is None:
                found = _builtin_fishers(bar, text_path, patterns or DEFAULT_MATRICES, fisher, samples, steps, seed)
            else:
                found = _user_fishers(loss, params, batches, patterns or ["*"], fisher, samples, seed)
            comparisons = _compare(bar, chosen, found, seed, solve_up_to, state_dtype)
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
    except (ValueError, TypeError, OSError) as error:
        errors.print(refusal("lens", error), style="red", markup=False)
        raise typer.Exit(2) from error
    console.print(LEGEND, style="dim", markup=False, highlight=False)
    for line in filter(None, conclude_in_sample(comparisons)):
        console.print(line, markup=False, highlight=False)
    console.print(f"Figures and numbers: {', '.join(map(str, figures))}, {out / 'lens.json'}", markup=False)
    for comparison in comparisons:
        if not comparison.rows:
            errors.print(f"No structure suits {comparison.matrix}: nothing was judged.", style="red", markup=False)
    if not all(row.ok for comparison in comparisons for row in comparison.rows):
        errors.print("A verdict failed: see NO above.", style="red")
    if not report["ok"]:
        raise typer.Exit(1)


def _builtin_fishers(
    bar: Progress, paths: list[Path] | None, patterns: list[str], kind: str, samples: int, steps: int, seed: int
) -> dict[str, Fisher]:
    """Train the small language model, and compute the Fishers of its matrices on newly drawn windows."""
    corpus = text.read(paths or text.standard_library())
    config = llama.Config()
    loss = partial(llama.loss, config)
    params = llama.init(config, jax.random.key(seed))
    select_matrices("lens", params, patterns)  # refuses a wrong name before the training instead of after it
    tx = optax.adam(optax.cosine_decay_schedule(1e-2, max(steps, 1)))

    @jax.jit
    def step(params: Any, state: Any, batch: Any) -> tuple[Any, Any, Any]:
        value, slope = jax.value_and_grad(loss)(params, batch)
        updates, state = tx.update(slope, state)
        return optax.apply_updates(params, updates), state, value

    state, value = tx.init(params), jnp.nan
    windows = text.batches(corpus, size=16, length=WINDOW + 1, seed=seed)
    task = bar.add_task("training a byte-level language model", total=steps)
    for _ in range(steps):
        params, state, value = step(params, state, jnp.asarray(next(windows), jnp.int32))
        bar.advance(task)
    bar.update(task, description=f"trained a byte-level language model: {float(value):.3f} nats per byte")
    length = 9 if kind == "model-exact" else WINDOW + 1  # 8 predictions x 256 labels make 2048 gradients a window
    size = min(16, samples)
    fresh = text.batches(corpus, size=size, length=length, seed=seed + 1)
    count = samples if kind == "minibatch" else -(-samples // size)
    batches = [jnp.asarray(next(fresh), jnp.int32) for _ in range(count)]
    if kind.startswith("model"):
        return _compute_fishers(kind, partial(llama.logits, config), params, [b[:, :-1] for b in batches], patterns, seed)
    return _compute_fishers(kind, loss, params, batches, patterns, seed)


def _user_fishers(
    loss: str, params: str | None, batches: str | None, patterns: list[str], kind: str, samples: int, seed: int
) -> dict[str, Fisher]:
    """Compute the Fishers of a user's own model."""
    module = loss.partition(":")[0]
    model = attribute("--loss", loss)
    given = [
        attribute(f"--{name}", reference or f"{module}:{name}")
        for name, reference in (("params", params), ("batches", batches))
    ]
    weights, data = (value() if callable(value) else value for value in given)
    require_batches("lens", data)
    few = islice(data, samples) if kind == "minibatch" else _first(data, samples)
    return _compute_fishers(kind, model, weights, few, patterns, seed)


def _first(batches: Iterable[Any], samples: int) -> Iterator[Any]:
    """Yield batches until they hold this many examples, cutting the last. No batch is drawn beyond: batches may be endless."""
    for batch in batches:
        count = count_examples("lens", batch)
        yield jax.tree.map(lambda x, most=samples: x[:most], batch)
        samples -= count
        if samples <= 0:
            return


def _compute_fishers(kind: str, model: Any, params: Any, batches: Any, patterns: list[str], seed: int) -> dict[str, Fisher]:
    """Compute Fishers of the kind that --fisher names."""
    if kind == "empirical":
        return empirical_fisher(model, params, batches, matrices=patterns)
    if kind == "minibatch":
        return minibatch_fisher(model, params, batches, matrices=patterns)
    labels = "exact" if kind == "model-exact" else "sampled"
    return model_fisher(model, params, batches, labels=labels, key=jax.random.key(seed), matrices=patterns)


def _compare(
    bar: Progress, chosen: dict[str, Structure], fishers: dict[str, Fisher], seed: int, solve_up_to: int, dtype: Any
) -> list[Comparison]:
    """Compare the structures on each Fisher, and show how far that is."""
    task = bar.add_task("structures", total=len(chosen) * len(fishers))
    comparisons = []
    for name, fisher in fishers.items():

        def advance(structure: str, matrix: str = name) -> None:
            bar.update(task, advance=1, description=f"{matrix}: {structure}")

        key = jax.random.key(seed)  # the same draws for every matrix
        comparisons.append(
            compare(chosen, fisher, matrix=name, key=key, solve_up_to=solve_up_to, dtype=dtype, progress=advance)
        )
    bar.update(task, description="structures")
    return comparisons

"""fimlens lens: judge every structure and its optimizer on real gradients."""

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
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fimlens import __version__
from fimlens.cli.arguments import attribute, console, errors, named_dtype, named_structures, refusal, require_writable, table
from fimlens.fisher import from_model as gradients
from fimlens.fisher.fisher import Fisher
from fimlens.language_model import llama, text
from fimlens.lens import compare as judge
from fimlens.lens.figure import error_against_memory
from fimlens.structure import Structure

WINDOW = 64  # bytes of context of the embedded model


DEFAULT_MATRICES = ["layers/0/attention/query", "layers/1/attention/value", "layers/1/mlp/down"]


FISHERS = ("empirical", "minibatch", "model", "model-exact")


LEGEND = """
error = basis + spectrum, over ||F||^2; ratio: over the numeric optimum. keeps: numbers of state where statistics are \
averaged, or where fits are. F~ off, update: how far the transform, fed the same gradients in the fit's basis, ends from F~ \
and from F~^(-1/2) g; free: from F~ with its own basis and decay, which is not judged."""


def lens(
    structures: Annotated[
        str | None, typer.Option(help="Names separated by commas, such as adam,soap, or module:attribute for your own.")
    ] = None,
    matrices: Annotated[
        str | None, typer.Option(help="Paths or patterns separated by commas, such as 'layers/*/attention/query'.")
    ] = None,
    fisher: Annotated[str, typer.Option(help=" | ".join(FISHERS))] = "empirical",
    samples: Annotated[int, typer.Option(min=1, help="Examples (minibatches of 16, for minibatch).")] = 64,
    text_path: Annotated[
        list[Path] | None, typer.Option("--text", help="File or directory to train on; Python's standard library by default.")
    ] = None,
    steps: Annotated[int, typer.Option(min=0, help="Training steps of the embedded model.")] = 400,
    loss: Annotated[
        str | None,
        typer.Option(
            help="module:function, your loss(params, batch) in place of the embedded model (logits, for a model Fisher)."
        ),
    ] = None,
    params: Annotated[str | None, typer.Option(help="module:attribute; by default `params` beside the loss.")] = None,
    batches: Annotated[str | None, typer.Option(help="module:attribute; by default `batches` beside the loss.")] = None,
    solve_up_to: Annotated[int, typer.Option(help="Seek the numeric optimum where m n is at most this.")] = judge.SOLVE_UP_TO,
    dtype: Annotated[str, typer.Option(help="Of the optimizers' state, for its bytes.")] = "float32",
    seed: int = 0,
    out: Annotated[Path, typer.Option(help="Directory for lens.png and lens.json.")] = Path("lens-out"),
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers here as well.")] = None,
) -> None:
    """Judge every structure and its transform on the Fishers of real matrices; exit with 1 where a verdict fails.

    By default: train a small byte-level language model for a few seconds on the sources of Python's standard library.
    """
    try:
        chosen = judge.STRUCTURES if structures is None else named_structures("--structures", structures)
        state_dtype = named_dtype("--dtype", dtype)
        if fisher not in FISHERS:
            raise ValueError(f"--fisher: one of {', '.join(FISHERS)}; got {fisher!r}")
        out.mkdir(parents=True, exist_ok=True)
        for option, path in (("--out", out / "lens.png"), ("--out", out / "lens.json"), ("--json", json_file)):
            require_writable(option, path)
        with Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=errors
        ) as bar:
            patterns = None if matrices is None else [part.strip() for part in matrices.split(",")]
            if loss is None:
                found = _embedded(bar, text_path, patterns or DEFAULT_MATRICES, fisher, samples, steps, seed)
            else:
                found = _own(loss, params, batches, patterns or ["*"], fisher, samples, seed)
            comparisons = _compare(bar, chosen, found, seed, solve_up_to, state_dtype)
        for comparison in comparisons:
            _print(comparison, dtype)
        error_against_memory(comparisons).savefig(out / "lens.png", dpi=150)
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
    console.print(f"Figure and numbers: {out / 'lens.png'}, {out / 'lens.json'}", markup=False)
    for comparison in comparisons:
        if not comparison.rows:
            errors.print(f"No structure suits {comparison.matrix}: nothing was judged.", style="red", markup=False)
    if not all(row.ok for comparison in comparisons for row in comparison.rows):
        errors.print("Some verdict failed: see NO above.", style="red")
    if not report["ok"]:
        raise typer.Exit(1)


def _embedded(
    bar: Progress, paths: list[Path] | None, patterns: list[str], kind: str, samples: int, steps: int, seed: int
) -> dict[str, Fisher]:
    """Train the small language model, and take the Fishers of its matrices on fresh windows."""
    corpus = text.read(paths or text.standard_library())
    config = llama.Config()
    loss = partial(llama.loss, config)
    params = llama.init(config, jax.random.key(seed))
    gradients.choose("lens", params, patterns)  # a wrong name is refused before the training, not after
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
    length = 9 if kind == "model-exact" else WINDOW + 1  # 8 predictions x 256 labels are 2048 gradients a window
    size = min(16, samples)
    fresh = text.batches(corpus, size=size, length=length, seed=seed + 1)
    count = samples if kind == "minibatch" else -(-samples // size)
    batches = [jnp.asarray(next(fresh), jnp.int32) for _ in range(count)]
    if kind.startswith("model"):
        return _fishers(kind, partial(llama.logits, config), params, [b[:, :-1] for b in batches], patterns, seed)
    return _fishers(kind, loss, params, batches, patterns, seed)


def _own(
    loss: str, params: str | None, batches: str | None, patterns: list[str], kind: str, samples: int, seed: int
) -> dict[str, Fisher]:
    """The Fishers of a user's own model."""
    module = loss.partition(":")[0]
    model = attribute("--loss", loss)
    held = [attribute(f"--{name}", given or f"{module}:{name}") for name, given in (("params", params), ("batches", batches))]
    weights, data = (value() if callable(value) else value for value in held)
    gradients.require_batches("lens", data)
    few = islice(data, samples) if kind == "minibatch" else _first(data, samples)
    return _fishers(kind, model, weights, few, patterns, seed)


def _first(batches: Iterable[Any], samples: int) -> Iterator[Any]:
    """The first examples, in the batches that they came in; no batch is drawn after the last of them."""
    for batch in batches:
        count = gradients.examples("lens", batch)
        yield jax.tree.map(lambda x, most=samples: x[:most], batch)
        samples -= count
        if samples <= 0:
            return


def _fishers(kind: str, model: Any, params: Any, batches: Any, patterns: list[str], seed: int) -> dict[str, Fisher]:
    if kind == "empirical":
        return gradients.empirical_fisher(model, params, batches, matrices=patterns)
    if kind == "minibatch":
        return gradients.minibatch_fisher(model, params, batches, matrices=patterns)
    labels = "exact" if kind == "model-exact" else "sampled"
    return gradients.model_fisher(model, params, batches, labels=labels, key=jax.random.key(seed), matrices=patterns)


def _compare(
    bar: Progress, chosen: dict[str, Structure], fishers: dict[str, Fisher], seed: int, solve_up_to: int, dtype: Any
) -> list[judge.Comparison]:
    task = bar.add_task("structures", total=len(chosen) * len(fishers))
    comparisons = []
    for name, fisher in fishers.items():

        def advance(structure: str, matrix: str = name) -> None:
            bar.update(task, advance=1, description=f"{matrix}: {structure}")

        key = jax.random.key(seed)
        comparisons.append(
            judge.compare(chosen, fisher, matrix=name, key=key, solve_up_to=solve_up_to, dtype=dtype, progress=advance)
        )
    bar.update(task, description="structures")
    return comparisons


def _print(comparison: judge.Comparison, dtype: str) -> None:
    """Two tables of at most 80 columns: what the structures are worth, and what their optimizers make of them."""
    m, n = comparison.shape
    console.print(f"\n{comparison.matrix} ({m} x {n}). {comparison.fisher}.", style="bold", markup=False, highlight=False)
    error = table("structure", "error", "=basis", "+spectrum", "optimum", "ratio", "claim", "holds")
    kept = table("optimizer", "keeps", dtype, "or fits", "F~ off", "update", "free", "holds")

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    for row in sorted(comparison.rows, key=lambda row: (row.elements, row.relative)):
        parts = (number(abs(x), ".4f") for x in (row.relative, row.basis, row.spectrum))
        best = number(row.optimum, ".4f"), number(row.ratio, ".4f")
        error.add_row(row.name, *parts, *best, row.claim, "yes" if row.claim_holds else "NO")
        sizes = f"{row.elements:,}", decimal(row.bytes), f"{row.fit_elements:,}"
        off = number(row.streamed, ".0e"), number(row.update, ".0e"), number(row.free, ".2f")
        kept.add_row(row.name, *sizes, *off, "yes" if row.optimizer_holds else "NO")
    console.print(error, kept)
    for row in comparison.rows:
        for doubt in row.doubts:
            console.print(f"{row.name}: {doubt}.", markup=False)
    for name, reason in comparison.unsuited.items():
        console.print(f"{name} was left out. {reason}", markup=False)

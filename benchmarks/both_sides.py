"""Held-out loss with low-rank SOAP, which has bases on both sides, with Alice, which has one, and with Adam.

    python benchmarks/both_sides.py [--steps 240] [--seeds 3]

Each method trains the small language model of fimlens/experiments/trial.py at every learning rate of a grid. For the leaves
that are not matrices of a layer, Adam has the rate 0.01 in every run, as in `fimlens ablate`.
"""

import argparse
import statistics
from functools import partial

import optax
from rich.console import Console
from rich.progress import track
from rich.table import Table

import fimlens as fl
from fimlens.experiments.trial import train_and_evaluate, train_beside_adam

SIZES = {"rank": 16, "leading": 5, "update_interval": 20}
METHODS = {"alice": partial(fl.alice, **SIZES), "low_rank_soap": partial(fl.low_rank_soap, **SIZES)}
RATES = (0.02, 0.05, 0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    runs = {f"optax.adamw, {rate}": partial(train_and_evaluate, optax.adamw, rate) for rate in (0.005, 0.01, 0.02)}
    runs |= {f"{name}, {rate}": partial(train_beside_adam, make, rate) for name, make in METHODS.items() for rate in RATES}
    table = Table("run", "mean", "each seed")
    for name, run in track(runs.items(), "runs"):
        losses = [run(steps=options.steps, seed=seed) for seed in range(options.seeds)]
        table.add_row(name, f"{statistics.mean(losses):.4f}", " ".join(f"{x:.4f}" for x in losses))
    Console().print(table)


if __name__ == "__main__":
    main()

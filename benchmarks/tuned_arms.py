"""Compare optimizers that differ in one change, each tuned by one rule: the body of several benchmarks.

Each arm trains the small language model of fimlens/experiments/trial.py. The rate of Adam on embeddings, norms and head is the
same in every arm. Each training is one JSON line, written when it ends, so that a second run continues the file.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import optax
from rich.console import Console
from rich.table import Table

from fimlens._records import add_records, known_records
from fimlens.experiments.trial import train_beside_adam
from fimlens.experiments.tuning import best_power, tuned

Make = Callable[..., optax.GradientTransformation]


def read(path: Path, steps: int) -> dict[tuple[str, int, int], float]:
    """Return the losses of the file by arm, power of two of the rate, and seed; those of another length are left out."""
    own = [line for line in known_records(path) if line["steps"] == steps]
    return {(line["arm"], line["power"], line["seed"]): math.inf if line["loss"] is None else line["loss"] for line in own}


def compare_arms(description: str, arms: dict[str, tuple[Make, float]], path: Path) -> None:
    """Run the command line of a benchmark: train what is missing of the arms, and print a table.

    Args:
        description: what the benchmark is for.
        arms: by name, an optimizer that takes `adam_learning_rate`, and the learning rate around which its tuning begins.
        path: the file of all trainings, unless the command line names another.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tries", type=int, default=5)
    parser.add_argument("--json", type=Path, default=path)
    parser.add_argument("--arms", nargs="*", default=list(arms), choices=list(arms), metavar="NAME")
    options = parser.parse_args()
    done, console = read(options.json, options.steps), Console(width=160)
    table = Table("arm", "rate", "held-out loss", "each seed", "loss of the first seed at every rate")
    for name in options.arms:
        make, usual = arms[name]

        def loss(power: int, seed: int, name=name, make=make, usual=usual) -> float:
            key, rate = (name, power, seed), usual * 2.0**power
            if key not in done:
                start = time.perf_counter()
                done[key] = train_beside_adam(make, rate, steps=options.steps, seed=seed)
                seconds = time.perf_counter() - start
                console.print(f"{name} at {rate:g}, seed {seed}: {done[key]:.4f} in {seconds:.0f} s", highlight=False)
                finite = done[key] if math.isfinite(done[key]) else None  # JSON knows no infinity
                line = {"arm": name, "power": power, "rate": rate, "seed": seed, "steps": options.steps, "loss": finite}
                line["device"] = jax.devices()[0].device_kind
                add_records(options.json, line | {"seconds": round(seconds, 1)})
            return done[key]

        losses = tuned(loss, options.tries, options.seeds)
        best = best_power(losses)
        each = [losses[key] for key in sorted(losses) if key[0] == best]
        tried = {f"{usual * 2.0**power:g}": losses[power, 0] for power, seed in sorted(losses) if seed == 0}
        seeds, rates = " ".join(f"{x:.4f}" for x in each), ", ".join(f"{rate}: {x:.4f}" for rate, x in tried.items())
        table.add_row(name, f"{usual * 2.0**best:g}", f"{statistics.median(each):.4f}", seeds, rates)
    console.print(table)

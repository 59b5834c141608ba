"""Held-out loss of a small language model with different settings of `racs` or `muon`: the grounds for their defaults.

    python benchmarks/defaults.py [racs | muon] [--steps 200] [--seeds 3]

The model is that of fimlens/experiments/trial.py with fewer layers. The loss is in nats per byte.
"""

import argparse
import statistics
from functools import partial

import optax
from rich.console import Console
from rich.progress import track
from rich.table import Table

import fimlens as fl
from fimlens.experiments.trial import train_and_evaluate
from fimlens.language_model import llama

CONFIG = llama.Config(vocabulary=256, hidden=64, mlp=172, heads=4, layers=4)


def racs(corrected: bool, factor: float):
    """Return a maker of RACS, with Adam on the other leaves at `factor` times its rate."""
    return lambda schedule: fl.racs(schedule, bias_correction=corrected, adam_learning_rate=lambda t: factor * schedule(t))


def of_racs() -> dict[str, tuple]:
    """Return RACS's runs by name: an optimizer of the schedule, and a rate."""
    runs = {f"optax.adamw, {rate}": (optax.adamw, rate) for rate in (3e-3, 1e-2)}
    for rate in (0.02, 0.06):
        for corrected in (True, False):
            runs[f"racs, {rate}, bias_correction={corrected}, Adam's rate 0.15 x"] = racs(corrected, 0.15), rate
    for factor in (0.05, 0.5):
        runs[f"racs, 0.06, bias_correction=True, Adam's rate {factor} x"] = racs(True, factor), 0.06
    return runs | {"racs, 0.06, with its defaults": (racs(False, 0.5), 0.06)}


def of_muon() -> dict[str, tuple]:
    """Return Muon's runs by name: each list of coefficients at two rates."""
    names = [(rate, name) for rate in (0.02, 0.04) for name in ("jordan", "polar-express")]
    return {f"muon, {rate}, coefficients={name!r}": (partial(fl.muon, coefficients=name), rate) for rate, name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("optimizer", nargs="?", default="racs", choices=["racs", "muon"])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    runs = of_muon() if options.optimizer == "muon" else of_racs()
    table = Table("run", "held-out loss, median over seeds", "each seed")
    for name, (make, rate) in track(runs.items(), "runs"):
        losses = [train_and_evaluate(make, rate, steps=options.steps, seed=s, config=CONFIG) for s in range(options.seeds)]
        table.add_row(name, f"{statistics.median(losses):.3f}", " ".join(f"{x:.3f}" for x in losses))
    Console().print(table)


if __name__ == "__main__":
    main()

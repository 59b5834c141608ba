"""Does the divergence matter for training? One structure in several divergences, each arm tuned by one rule.

    python benchmarks/divergences.py [--steps 240] [--seeds 3] [--tries 5] [--json FILE] [--arms NAME ...]

RACS fits each gradient by five sweeps, whatever the divergence. The Kronecker products are one sentence,
Rotated(Marginals(divergence), "LR", PowerStep()), with the momentum, decays and refreshes of KL-Shampoo: `shampoo squared`,
`kl_shampoo` and `kronecker` differ in the divergence alone. `shampoo` has the same options, and minimises its bound. Each arm
trains the small language model of fimlens/experiments/trial.py at learning rates a factor of two apart. The rate of Adam on
embeddings, norms and head is the same in every arm, as in benchmarks/racs_adafactor.py.

Each training is one JSON line, written when it ends: a second run continues the file, and the table is of all its lines. The
table has the held-out loss at the best rate, in nats per byte: the median over seeds.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import optax
from rich.console import Console
from rich.table import Table

import fimlens as fl
from fimlens.experiments.trial import train_and_evaluate
from fimlens.experiments.tuning import best_power, tuned
from fimlens.optimizers.full_chain import full_chain

ADAM_RATE = 0.01  # learning rate of Adam on embeddings, norms and head
FILE = Path(__file__).with_suffix(".jsonl")


def rotated(inner: fl.Structure) -> Callable[..., optax.GradientTransformation]:
    """Return the optimizer of a spectrum rotated on both sides, with the options of KL-Shampoo."""

    def scale_by_direction() -> optax.GradientTransformation:
        """Scale matrices by the structure."""
        structure = fl.Rotated(inner, "LR", fl.PowerStep())
        return fl.scale_by_structure(structure, b1=0.9, b2=0.98, update_interval=10, turn="after", momentum="rotated")

    return full_chain(scale_by_direction)


ARMS = {  # the optimizer, and the learning rate around which its tuning begins
    **{f"racs, b = {b:g}": (partial(fl.racs, divergence=fl.Beta(b)), 0.08) for b in (0.0, 0.5, 1.0, 1.5, 2.0)},
    "sinkgd": (fl.sinkgd, 0.005),
    "shampoo": (rotated(fl.GeometricMarginals()), 0.01),
    "shampoo squared": (rotated(fl.Marginals(clamp=4000.0)), 0.01),
    "kl_shampoo": (fl.kl_shampoo, 0.01),
    "kronecker": (rotated(fl.Marginals(fl.Frobenius(), clamp=4000.0)), 0.01),
    "kl_soap": (fl.kl_soap, 0.01),
    "soap": (fl.soap, 0.01),
}


def trained(name: str, rate: float, steps: int, seed: int) -> float:
    """Train an arm and return its held-out loss; infinite if it diverged."""
    make, _ = ARMS[name]
    adam_factor = ADAM_RATE / rate

    def optimizer(schedule: optax.Schedule) -> optax.GradientTransformation:
        return make(schedule, adam_learning_rate=lambda t: adam_factor * schedule(t))

    loss = train_and_evaluate(optimizer, rate, steps=steps, seed=seed)
    return loss if math.isfinite(loss) else math.inf


def read(path: Path, steps: int) -> dict[tuple[str, int, int], float]:
    """Return the losses of the file by arm, power of two of the rate, and seed; those of another length are left out."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    own = [line for line in lines if line["steps"] == steps]
    return {(line["arm"], line["power"], line["seed"]): math.inf if line["loss"] is None else line["loss"] for line in own}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tries", type=int, default=5)
    parser.add_argument("--json", type=Path, default=FILE)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS), metavar="NAME")
    options = parser.parse_args()
    done, console = read(options.json, options.steps), Console(width=160)
    table = Table("arm", "rate", "held-out loss", "each seed", "loss of the first seed at every rate")
    for name in options.arms:
        usual = ARMS[name][1]

        def loss(power: int, seed: int, name=name, usual=usual) -> float:
            key, rate = (name, power, seed), usual * 2.0**power
            if key not in done:
                start = time.perf_counter()
                done[key] = trained(name, rate, options.steps, seed)
                seconds = time.perf_counter() - start
                console.print(f"{name} at {rate:g}, seed {seed}: {done[key]:.4f} in {seconds:.0f} s", highlight=False)
                finite = done[key] if math.isfinite(done[key]) else None  # JSON knows no infinity
                line = {"arm": name, "power": power, "rate": rate, "seed": seed, "steps": options.steps, "loss": finite}
                line["device"] = jax.devices()[0].device_kind
                with options.json.open("a") as file:
                    file.write(json.dumps(line | {"seconds": round(seconds, 1)}) + "\n")
            return done[key]

        losses = tuned(loss, options.tries, options.seeds)
        best = best_power(losses)
        each = [losses[key] for key in sorted(losses) if key[0] == best]
        tried = {f"{usual * 2.0**power:g}": losses[power, 0] for power, seed in sorted(losses) if seed == 0}
        seeds, rates = " ".join(f"{x:.4f}" for x in each), ", ".join(f"{rate}: {x:.4f}" for rate, x in tried.items())
        table.add_row(name, f"{usual * 2.0**best:g}", f"{statistics.median(each):.4f}", seeds, rates)
    console.print(table)


if __name__ == "__main__":
    main()

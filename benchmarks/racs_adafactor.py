"""Why RACS differs from Adafactor, although both have the same structure: one change at a time, each arm tuned.

    python benchmarks/racs_adafactor.py [--steps 240] [--seeds 3] [--tries 5] [--json FILE]

Both divide G_ij by (s_j q_i)^(1/2). The arms lead from Adafactor to RACS. Each trains the small language model of
fimlens/experiments/trial.py, at learning rates a factor of two apart. The table has the held-out loss at the best rate, in nats
per byte: the median over seeds.
"""

import argparse
import json
import math
import statistics
from pathlib import Path

import optax
from rich.console import Console
from rich.progress import track
from rich.table import Table

import fimlens as fl
from fimlens.experiments.trial import train_and_evaluate
from fimlens.experiments.tuning import best_power, tuned
from fimlens.optimizers.full_chain import full_chain
from fimlens.transforms.norms import clip_by_rms, limit_norm_growth, scale_by_weight_rms

ADAM_RATE = 0.01  # learning rate of Adam on embeddings, norms and head


def decay(t):
    """Return Adafactor's decay of the second moments at step t."""
    return 1 - t**-0.8


def with_marginals(b2, *after, average="statistics"):
    """Return an optimizer with Adafactor's structure and divergence for matrices, and Adam for all other leaves."""
    structure = fl.scale_by_structure(fl.Marginals(), b1=None, b2=b2, eps=0.0, average=average, bias_correction=False)

    def scale_by_direction() -> optax.GradientTransformation:
        """Scale matrices by the structure, then apply the further transforms of the arm."""
        return optax.chain(structure, *after)

    return full_chain(scale_by_direction)


limited = limit_norm_growth(1.01), optax.scale(0.05)
WHOLE = "adafactor"
ARMS = {  # the optimizer, and the learning rate around which its tuning begins
    WHOLE: (fl.adafactor, 0.1),
    "+ Adam for embeddings, norms and head": (with_marginals(decay, clip_by_rms(1.0), scale_by_weight_rms()), 0.1),
    "+ no scale by the weights": (with_marginals(decay, clip_by_rms(1.0)), 0.005),
    "+ a decay of 0.9": (with_marginals(0.9, clip_by_rms(1.0)), 0.005),
    "+ the limiter in place of clipping": (with_marginals(0.9, *limited), 0.08),
    "+ averages of fits": (with_marginals(0.9, *limited, average="fits"), 0.08),
    "+ nearest in Frobenius: racs": (fl.racs, 0.08),
}


def trained(name: str, rate: float, steps: int, seed: int) -> float:
    """Train an arm and return its held-out loss. Adam, if the arm has it, has the same rate at every rate of the method."""
    make, _ = ARMS[name]
    adam_factor = ADAM_RATE / rate

    def optimizer(schedule: optax.Schedule) -> optax.GradientTransformation:
        return make(schedule) if name == WHOLE else make(schedule, adam_learning_rate=lambda t: adam_factor * schedule(t))

    loss = train_and_evaluate(optimizer, rate, steps=steps, seed=seed)
    return loss if math.isfinite(loss) else math.inf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tries", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    table, rows = Table("arm", "rate", "held-out loss", "each seed", "loss of the first seed at every rate"), []
    for name, (_, usual) in track(ARMS.items(), "arms"):

        def loss(power: int, seed: int, name=name, usual=usual) -> float:
            return trained(name, usual * 2.0**power, options.steps, seed)

        losses = tuned(loss, options.tries, options.seeds)
        best = best_power(losses)
        each = [losses[key] for key in sorted(losses) if key[0] == best]
        tried = {f"{usual * 2.0**power:g}": losses[power, 0] for power, seed in sorted(losses) if seed == 0}
        rows.append({"arm": name, "rate": usual * 2.0**best, "losses": each, "tried": tried})
        seeds, rates = " ".join(f"{x:.4f}" for x in each), ", ".join(f"{rate}: {x:.4f}" for rate, x in tried.items())
        table.add_row(name, f"{usual * 2.0**best:g}", f"{statistics.median(each):.4f}", seeds, rates)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=2) + "\n")
    Console(width=160).print(table)


if __name__ == "__main__":
    main()

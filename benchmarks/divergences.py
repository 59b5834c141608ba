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

from collections.abc import Callable
from functools import partial
from pathlib import Path

import optax
from tuned_arms import compare_arms

import fimlens as fl
from fimlens.optimizers.full_chain import full_chain


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


if __name__ == "__main__":
    compare_arms(__doc__, ARMS, Path(__file__).with_suffix(".jsonl"))

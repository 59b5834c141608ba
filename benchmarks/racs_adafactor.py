"""Why RACS differs from Adafactor, although both have the same structure: one change at a time, each arm tuned by one rule.

    python benchmarks/racs_adafactor.py [--steps 240] [--seeds 3] [--tries 5] [--json FILE] [--arms NAME ...]

Both divide G_ij by (s_j q_i)^(1/2). The arms lead from Adafactor to RACS. Each trains the small language model of
fimlens/experiments/trial.py, at learning rates a factor of two apart. Each training is a line of the file, written when it
ends, and a second run continues the file. The table has the held-out loss at the best rate, in nats per byte: the median over
seeds.
"""

from pathlib import Path

import optax
from tuned_arms import compare_arms

import fimlens as fl
from fimlens.optimizers.full_chain import full_chain
from fimlens.transforms.norms import clip_by_rms, limit_norm_growth, scale_by_weight_rms


def decay(t):
    """Return Adafactor's decay of the second moments at step t."""
    return 1 - t**-0.8


def whole(learning_rate, adam_learning_rate):
    """Return Adafactor, which leaves nothing to Adam."""
    del adam_learning_rate
    return fl.adafactor(learning_rate)


def with_marginals(b2, *after, average="statistics"):
    """Return an optimizer with Adafactor's structure and divergence for matrices, and Adam for all other leaves."""
    structure = fl.scale_by_structure(fl.Marginals(), b1=None, b2=b2, eps=0.0, average=average, bias_correction=False)

    def scale_by_direction() -> optax.GradientTransformation:
        """Scale matrices by the structure, then apply the further transforms of the arm."""
        return optax.chain(structure, *after)

    return full_chain(scale_by_direction)


limited = limit_norm_growth(1.01), optax.scale(0.05)
ARMS = {  # the optimizer, and the learning rate around which its tuning begins
    "adafactor": (whole, 0.1),
    "+ Adam for embeddings, norms and head": (with_marginals(decay, clip_by_rms(1.0), scale_by_weight_rms()), 0.1),
    "+ no scale by the weights": (with_marginals(decay, clip_by_rms(1.0)), 0.005),
    "+ a decay of 0.9": (with_marginals(0.9, clip_by_rms(1.0)), 0.005),
    "+ the limiter in place of clipping": (with_marginals(0.9, *limited), 0.08),
    "+ averages of fits": (with_marginals(0.9, *limited, average="fits"), 0.08),
    "+ nearest in Frobenius: racs": (fl.racs, 0.08),
}


if __name__ == "__main__":
    compare_arms(__doc__, ARMS, Path(__file__).with_suffix(".jsonl"))

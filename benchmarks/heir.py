"""Which change brings Alice's loss to Muon's at Alice's memory? One change at a time from `alice`, each arm tuned by one rule.

    python benchmarks/heir.py [--steps 240] [--seeds 3] [--tries 5] [--json FILE] [--arms NAME ...]

Every arm but the references is a sentence over `fl.scale_by_low_rank`, with rank 16, 5 leading directions and a refresh every
20 steps. No arm has the complement's denominators in another divergence: given the basis, the means are nearest in all of them
(docs/divergences.md). Each arm trains the small language model of fimlens/experiments/trial.py, with one rate of Adam on
embeddings, norms and head. Each training is a line of the file, written when it ends, and a second run continues the file. The
table has the held-out loss at the best rate, in nats per byte: the median over seeds.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import optax
from tuned_arms import Make, compare_arms

import fimlens as fl
from fimlens.optimizers.full_chain import full_chain
from fimlens.structure import Params, Tree
from fimlens.transforms import compensation as rules
from fimlens.transforms.compensation import Compensation
from fimlens.transforms.momentum import average_updates
from fimlens.transforms.orthogonalize import scale_by_shape

SIZES = {"rank": 16, "update_interval": 20}
alice = partial(fl.alice, leading=5, **SIZES)


@dataclass(frozen=True)
class Polar(fl.Scalar):
    """The polar factor in place of one scale, times the root of the longer side, as in a whitened gradient."""

    def precondition(self, params: Params, X: Tree, eps: float) -> Tree:
        return rules.polar.direction(X[None])[0]


def low_rank(
    inner: fl.Structure,
    complement: fl.Spectrum,
    compensation: Compensation,
    *,
    b1: float | None = 0.9,
    gamma: float | None = 1.01,
    before: tuple[optax.GradientTransformation, ...] = (),
    after: tuple[optax.GradientTransformation, ...] = (optax.scale(0.3),),
) -> Make:
    """Return Alice with another structure of the lead, another complement or compensation, or transforms around her."""

    def scale_by_direction() -> optax.GradientTransformation:
        """Scale matrices by the sentence."""
        lead = fl.LowRank(inner, SIZES["rank"], complement, tracker=fl.SubspaceIteration(leading=5, b3=0.999))
        direction = fl.scale_by_low_rank(
            lead,
            compensation=compensation,
            b1=b1,
            b2=0.9,
            alpha_c=0.4,
            gamma=gamma if compensation is rules.nearest else None,
            update_interval=SIZES["update_interval"],
            moments="reset",
            bias_correction=False,
        )
        return optax.chain(*before, direction, *after)

    return full_chain(scale_by_direction)


def scale_by_adam() -> optax.GradientTransformation:
    """Adam's direction."""
    return optax.scale_by_adam()


adam, columns, drop, nearest = fl.Diagonal(), fl.Columns(), fl.Drop(), rules.nearest
then_polar = fl.orthogonalize(), scale_by_shape("rms")
ARMS = {  # the optimizer, and the learning rate around which its tuning begins
    "adam": (full_chain(scale_by_adam), 0.005),
    "muon": (fl.muon, 0.02),
    "alice": (alice, 0.04),
    "then polar": (low_rank(adam, columns, nearest, after=then_polar), 0.04),
    "polar complement": (low_rank(adam, drop, rules.polar), 0.04),
    "polar lead": (low_rank(Polar(), columns, nearest), 0.04),
    "both polar": (low_rank(Polar(), drop, rules.polar), 0.04),
    "momentum of all": (low_rank(adam, columns, nearest, b1=None, before=(average_updates(0.9),)), 0.04),
    "momentum in the subspace, then polar": (low_rank(fl.Scalar(), fl.Scalar(), nearest, after=then_polar), 0.04),
    "one number for the complement": (low_rank(adam, fl.Scalar(), nearest), 0.04),
    "sign complement": (low_rank(adam, drop, rules.sign), 0.04),
    "momentum of 0.95": (partial(alice, b1=0.95), 0.04),
    "bias correction": (partial(alice, bias_correction=True), 0.04),
    "no limiter": (partial(alice, gamma=None), 0.04),
    "one size of updates": (low_rank(adam, columns, nearest, after=(fl.match_rms(0.2),)), 0.04),
    "muon, one size of updates": (partial(fl.muon, scale="rms"), 0.01),
    **{f"muon, momentum of {beta}": (partial(fl.muon, beta=beta), 0.02) for beta in (0.9, 0.8)},
    **{
        f"then polar, momentum of {b1}": (low_rank(adam, columns, nearest, b1=b1, after=then_polar), 0.04) for b1 in (0.95, 0.8)
    },
    "then polar, no limiter": (low_rank(adam, columns, nearest, gamma=None, after=then_polar), 0.04),
    "then polar, polar complement": (low_rank(adam, drop, rules.polar, after=then_polar), 0.04),
}


if __name__ == "__main__":
    compare_arms(__doc__, ARMS, Path(__file__).with_suffix(".jsonl"))

"""How many steps an optimizer saves beside Adam, as we measured it."""

from typing import NamedTuple


class SpeedUp(NamedTuple):
    """Adam's steps over the optimizer's to the same loss, and the source of this ratio."""

    ratio: float
    source: str


# At 600 steps, each with its whole schedule, over a tuned AdamW: benchmarks/README.md, "Whole schedules at several lengths".
WHOLE_SCHEDULES = {"alice_muon": 1.69, "muon": 1.66, "kl_shampoo": 1.62, "soap": 1.59, "soap_muon": 1.58, "alice": 1.17}


# By the crossing of curves of 300 steps, over an Adam that was tuned less: benchmarks/README.md, "Twelve optimizers".
CROSSINGS = {"osoap": 1.49, "shampoo": 1.26, "apollo-svd": 1.22, "adadiag": 1.15, "adafactor": 1.18, "fira": 1.03}


# What [G] reports for its own on LLaMA of 60M to 1.3B parameters on C4.
REPORTED = {"alice": "; [G] reports 2.0 to 2.8 on its models"}


BY_SCHEDULES = "measured by us on cpu-1m, over a tuned AdamW at 600 steps"
BY_CROSSINGS = "measured by us on cpu-1m by crossing curves of 300 steps, which flatters some methods"


SPEED_UPS = {
    "adam": SpeedUp(1.0, "the others are compared with it"),
    "adamw": SpeedUp(1.0, "the others are compared with it"),
    **{name: SpeedUp(ratio, BY_SCHEDULES + REPORTED.get(name, "")) for name, ratio in WHOLE_SCHEDULES.items()},
    **{name: SpeedUp(ratio, BY_CROSSINGS) for name, ratio in CROSSINGS.items()},
    "racs": SpeedUp(
        1.0, "assumed: by whole schedules it was 1.07 at 300 steps and behind AdamW at 600; [G] reports 1.5 to 2.4 in time"
    ),
    "galore": SpeedUp(1.0, "assumed: by crossings it reached Adam's loss with one seed of three"),
}


UNMEASURED = SpeedUp(1.0, "assumed: as many steps as Adam, as we have no measurement")

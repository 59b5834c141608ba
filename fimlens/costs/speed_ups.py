"""How many steps an optimizer saves beside Adam, as we measured it."""

from typing import NamedTuple


class SpeedUp(NamedTuple):
    """Adam's steps over the optimizer's to the same loss, and the source of this ratio."""

    ratio: float
    source: str


# Medians of three seeds, each optimizer at its own best rate: benchmarks/README.md, "Twelve optimizers".
MEASURED = {
    "muon": 1.81, "alice": 1.56, "soap": 1.45, "osoap": 1.49, "racs": 1.33, "shampoo": 1.26, "apollo-svd": 1.22,
    "adadiag": 1.15, "adafactor": 1.18, "fira": 1.03,
}  # fmt: skip


# What [G] reports for its own two on LLaMA of 60M to 1.3B parameters on C4.
REPORTED = {"alice": "; [G] reports 2.0 to 2.8 on its models", "racs": "; [G] reports 1.5 to 2.4 in wall clock on its models"}


OURS = "measured by us on cpu-1m, 300 steps, 3 seeds"


SPEED_UPS = {
    "adam": SpeedUp(1.0, "the others are compared with it"),
    **{name: SpeedUp(ratio, OURS + REPORTED.get(name, "")) for name, ratio in MEASURED.items()},
    "galore": SpeedUp(1.0, "assumed: in our measurement it reached Adam's loss with one seed of three"),
}


UNMEASURED = SpeedUp(1.0, "assumed: as many steps as Adam, as we have no measurement")

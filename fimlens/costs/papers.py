"""What the papers state: sizes of state, totals and ranks. [G] is Gong et al., 2025 (arXiv 2502.07752).

An optimizer whose publication states none of them needs no entry here.
"""

from collections.abc import Callable

Formula = Callable[[int, int, int], int]


def rotated(side: int) -> int:
    """The side, or 0 where it is over the limit of SOAP's code, `max_precond_dim`: then it has neither covariance nor basis."""
    return side if side <= 10_000 else 0


def short_side_first(formula: Formula) -> Formula:
    """Extend a formula for m <= n to every shape, for a method that puts the shorter side first."""
    return lambda m, n, r: formula(*sorted((m, n)), r)


# The independent witness of the counts in `memory`, which are made without it: `fimlens memory` prints both, and tests
# compare them.
# Numbers of state for an m x n matrix, as in x @ W, at rank r; counters, keys and the limiter's scalars come on top.
FORMULAS: dict[str, Formula] = {
    "sgd": lambda m, n, r: 0,
    "adam": lambda m, n, r: 2 * m * n,
    "adamw": lambda m, n, r: 2 * m * n,
    "adafactor": lambda m, n, r: m + n,
    "lars": lambda m, n, r: m * n,
    "lamb": lambda m, n, r: 2 * m * n,
    "muon": lambda m, n, r: m * n,
    "normuon": lambda m, n, r: m * n + n,
    "swan": lambda m, n, r: 0,
    "shampoo": lambda m, n, r: rotated(m) ** 2 + rotated(n) ** 2,
    "osoap": short_side_first(lambda m, n, r: 2 * m * n + 2 * rotated(m) ** 2),
    "soap": lambda m, n, r: 2 * m * n + 2 * rotated(m) ** 2 + 2 * rotated(n) ** 2,
    "soap_muon": lambda m, n, r: 2 * m * n + 2 * rotated(m) ** 2 + 2 * rotated(n) ** 2,
    "kl_shampoo": lambda m, n, r: m * n + 2 * rotated(m) ** 2 + 2 * rotated(n) ** 2 + m + n,
    "kl_soap": lambda m, n, r: 2 * m * n + 2 * rotated(m) ** 2 + 2 * rotated(n) ** 2 + m + n,
    "aro": short_side_first(lambda m, n, r: m * n + m**2),
    "racs": lambda m, n, r: m + n,
    "sinkgd": lambda m, n, r: 0,
    "adadiag": short_side_first(lambda m, n, r: 2 * m * n + rotated(m) ** 2),
    "adadiag_pp": lambda m, n, r: 2 * m * n + rotated(m) ** 2 + rotated(n) ** 2,
    "adafacdiag": short_side_first(lambda m, n, r: m * n + m + n + rotated(m) ** 2),
    "alice": short_side_first(lambda m, n, r: 2 * n * r + m * r + n * (r < m) + r**2),
    "alice_muon": short_side_first(lambda m, n, r: 2 * n * r + m * r + n * (r < m) + r**2),
    "alice0": short_side_first(lambda m, n, r: 2 * n * r + m * r + n * (r < m)),
    "cosmos": short_side_first(lambda m, n, r: m * n + n * r + m * r + r**2),
    "frugal": short_side_first(lambda m, n, r: 2 * n * r + m * r),
    "galore": short_side_first(lambda m, n, r: 2 * n * r + m * r),
    "fira": short_side_first(lambda m, n, r: 2 * n * r + m * r),
    "apollo": short_side_first(lambda m, n, r: 2 * n * r),
    "apollo-svd": short_side_first(lambda m, n, r: 2 * n * r + m * r),
    "apollo-mini": short_side_first(lambda m, n, r: 2 * n),
}


# Of those, the numbers that [G]'s figure needs at four bytes each, whatever the dtype: Alice's p and Q~.
IN_FLOAT32 = {"alice": short_side_first(lambda m, n, r: n * (r < m) + r**2)}


# Ranks of the low-rank methods by model, as in [G]; GaLore's at 7B.
RANKS = {"llama-60m": 128, "llama-130m": 256, "llama-350m": 256, "llama-1b": 512, "llama-7b": 1024}


# GiB of weights and state in bfloat16 of [G]'s 1.3B run, with the output head (on Adam, on the method itself).
FIGURES = {
    "llama-1b": {
        "adam": (7.48, None), "muon": (5.23, None), "racs": (2.98, None), "galore": (None, 4.25), "fira": (None, 4.25),
        "apollo-svd": (4.43, None), "alice0": (None, 4.25), "alice": (None, 4.42),
    }
}  # fmt: skip

"""Do the estimates of `fl.estimate` have the mean and the intervals that they state? Populations whose Fisher is known.

    python benchmarks/coverage.py [--repetitions 300] [--samples 32 128 512] [--sizes 16 32 64] [--json FILE]

Each repetition draws samples, estimates the error of every structure, and compares it with the mean error of the same fits
against the Fisher of the population, written out. One line of JSON for each population, size, number of samples and structure,
written as it comes; a second run continues the file. The columns:

    numerator    mean of (estimate - truth) of ||F~ - F||^2 in standard errors: within 3 of zero
    difference   the same of the difference to the diagonal, in standard errors
    ratio        mean of estimate - truth of the relative error, in percent of the mean truth
    covered      share of the repetitions in which the 95 % interval holds the truth
    plug_in      mean of the plug-in error less the truth
    warned       share of repetitions with a warning of heavy tails
"""

import argparse
import json
import math
import time
import warnings
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import fimlens as fl
from fimlens.lens.estimate import folds_of
from fimlens.structures.named import named_structures

FILE = Path(__file__).with_suffix(".jsonl")
STRUCTURES = {name: s for name, s in named_structures().items() if name != "dense"}
REFERENCE = "adam"
KINDS = ("isotropic", "diagonal", "low rank", "Kronecker", "heavy tails")
COLUMNS = ("numerator", "difference", "ratio", "covered", "plug_in", "warned")


def roots(kind: str, n: int) -> np.ndarray:
    """Return mn matrices R_k with F = E[g g^T] for g = sum z_k R_k / (mn)^(1/2): a population of n x n matrices."""
    draw = np.random.default_rng(0)
    spectrum = np.geomspace(1, 0.02, n) ** 0.5
    bases = [np.linalg.qr(draw.normal(size=(n, n)))[0] for _ in range(2)]
    units = np.eye(n * n).reshape(n * n, n, n)
    if kind == "isotropic":
        return units * n
    if kind == "diagonal":
        return units * n * np.exp(draw.normal(size=(n, n)))
    if kind == "low rank":
        spectrum = np.where(np.arange(n) < n // 8, 1, 0.05)
    left, right = (U * spectrum for U in bases)  # Kronecker
    return n * np.einsum("ia,kab,jb->kij", left, units, right)


def draw(kind: str, R: np.ndarray, N: int, seed: int) -> np.ndarray:
    """Draw N gradients of a population; of heavy tails, Student's t with 3 degrees of freedom and the same Fisher."""
    random = np.random.default_rng(seed)
    z = random.normal(size=(N, len(R)))
    if kind == "heavy tails":
        z *= np.sqrt(1 / random.chisquare(3, size=(N, 1)))  # t has the variance 3 / (3 - 2)
    return (z @ R.reshape(len(R), -1) / math.sqrt(len(R))).reshape(N, *R.shape[1:]).astype(np.float32)


def measure(kind: str, n: int, N: int, repetitions: int) -> dict[str, dict[str, float]]:
    """Return the columns of every structure."""
    R = roots(kind, n)
    population = fl.Fisher.from_gradients(R.astype(np.float32))
    found: dict[str, list] = {name: [] for name in STRUCTURES}
    for seed in range(repetitions):
        fisher, key = fl.Fisher.from_gradients(draw(kind, R, N, seed)), jax.random.key(seed)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            estimates = fl.estimate(STRUCTURES, fisher, key=key)
        truths = {name: truth(structure, fisher, population, key) for name, structure in STRUCTURES.items()}
        for name, row in estimates.rows.items():
            total, relative = truths[name]
            beside = relative - truths[REFERENCE][1]
            inside = row.low <= relative <= row.high
            of_difference, _ = estimates.difference(name, REFERENCE)
            off = row.total - total, of_difference - beside, row.relative - relative, row.plug_in - relative
            found[name].append([*off, inside, relative, bool(caught)])
    return {name: summary(np.array(rows, float)) for name, rows in found.items()}


def truth(structure: fl.Structure, fisher: fl.Fisher, population: fl.Fisher, key: jax.Array) -> tuple[float, float]:
    """Return the mean error of the fits of `fl.estimate` against the population, absolute and relative to ||F||^2."""
    folds, of_fits = folds_of(np.arange(len(fisher)), 8, key)
    gaps = []
    for k in range(folds.count):
        params = fl.fit(structure, fisher.take(folds.outside(k)), key=of_fits)
        gaps.append(fl.gap(structure, params, population))
    return tuple(float(np.mean([float(gap[part]) for gap in gaps])) for part in (0, 3))


def summary(rows: np.ndarray) -> dict[str, float]:
    """Return the columns from the deviations of all repetitions."""

    def deviations(values: np.ndarray) -> float:
        spread = values.std(ddof=1) / math.sqrt(len(values))
        return float(values.mean() / spread) if spread else 0.0

    total, difference, ratio, plug_in, inside, relative, warned = rows.T
    percent = 100 * ratio.mean() / relative.mean()
    found = deviations(total), deviations(difference), percent, inside.mean(), plug_in.mean(), warned.mean()
    return {"truth": float(relative.mean())} | {name: float(x) for name, x in zip(COLUMNS, found, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=300)
    parser.add_argument("--samples", type=int, nargs="*", default=[32, 128, 512])
    parser.add_argument("--sizes", type=int, nargs="*", default=[16, 32, 64])
    parser.add_argument("--kinds", nargs="*", default=KINDS, choices=KINDS)
    parser.add_argument("--json", type=Path, default=FILE)
    options = parser.parse_args()
    lines = [json.loads(line) for line in options.json.read_text().splitlines()] if options.json.exists() else []
    done = {(line["kind"], line["size"], line["samples"], line["repetitions"]) for line in lines}
    for n in options.sizes:
        for kind in options.kinds:
            for N in options.samples:
                if (kind, n, N, options.repetitions) in done:
                    continue
                start = time.perf_counter()
                found = measure(kind, n, N, options.repetitions)
                seconds = round(time.perf_counter() - start)
                about = {"kind": kind, "size": n, "samples": N, "repetitions": options.repetitions, "seconds": seconds}
                new = [about | {"structure": name} | row for name, row in found.items()]
                lines += new
                with options.json.open("a") as file:
                    file.writelines(json.dumps(line) + "\n" for line in new)
                print(f"{kind}, {n} x {n}, {N} samples: {seconds} s", flush=True)
    show(lines)


def show(lines: list[dict]) -> None:
    """Print the worst of every column over structures, for each population, size and number of samples."""
    table = Table("population", "size", "samples", "numerator", "difference", "ratio, %", "covered", "plug-in", "warned")
    cases = dict.fromkeys((line["kind"], line["size"], line["samples"]) for line in lines)
    for case in cases:
        own = [line for line in lines if (line["kind"], line["size"], line["samples"]) == case]
        worst = [max((line[name] for line in own), key=abs) for name in ("numerator", "difference", "ratio")]
        covered = [line["covered"] for line in own]
        plug_in = [line["plug_in"] for line in own]
        cells = [f"{worst[0]:+.1f}", f"{worst[1]:+.1f}", f"{worst[2]:+.1f}", f"{min(covered):.2f} to {max(covered):.2f}"]
        cells += [f"{min(plug_in):+.2f} to {max(plug_in):+.2f}", f"{own[0]['warned']:.2f}"]
        table.add_row(case[0], str(case[1]), str(case[2]), *cells)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()

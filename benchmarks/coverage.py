"""Do the estimates of `fl.estimate` have the mean and the intervals that they state? Populations whose Fisher is known.

    python benchmarks/coverage.py [--repetitions 300] [--samples 32 128 512] [--sizes 16 32 64]

Each repetition draws samples, estimates the error of every structure, and compares it with the mean error of the same fits
against the Fisher of the population, written out. One line of JSON for each population, size, number of samples and divergence
as it comes, with these columns for each structure; a second run continues the file.

    truth        mean of the true error, as `Estimate.relative` has it
    numerator    mean of estimate - truth of the error that is not divided by the size of F, in standard errors
    difference   the same of the difference to the diagonal
    ratio        mean of estimate - truth of the relative error, in percent of the mean truth, without the part that goes with
                 deviations whose mean is known to be zero: those of the numerator, of ||F||^2 and of tr F
    of_ratio     the same in standard errors
    covered      share of the repetitions in which the 95 % interval holds the truth
    covered_difference    the same of the difference of the relative error to that of the diagonal
    plug_in      mean of the plug-in error less the truth
    warned       share of repetitions with a warning of heavy tails
"""

import argparse
import math
import time
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student

import fimlens as fl
from fimlens._records import add_records, known_records
from fimlens.divergence import excess
from fimlens.lens.estimate import folds_of
from fimlens.lens.estimates import HEAVY
from fimlens.lens.held_out import HeldOut
from fimlens.lens.split import Split
from fimlens.lens.trial import Trial
from fimlens.solver.fit import unchecked_fit
from fimlens.structure import EigenvalueBlock
from fimlens.structures.named import named_structures

FILE = Path(__file__).with_suffix(".jsonl")
STRUCTURES = {name: s for name, s in named_structures().items() if name != "dense"}
REFERENCE = "adam"
KINDS = ("isotropic", "diagonal", "low rank", "Kronecker", "heavy tails")
DIVERGENCES = {"Frobenius": fl.Frobenius(), "von Neumann": fl.VonNeumann(), "LogDet": fl.LogDet()}
FOLDS = 8


class Population(NamedTuple):
    """Gradients G = L (S * Z) R^T, with entries of Z of variance 1: F = sum of S_ij^2 r_j r_j^T (x) l_i l_i^T."""

    L: np.ndarray
    S: np.ndarray
    R: np.ndarray

    def draw(self, N: int, seed: int, heavy: bool) -> fl.Fisher:
        """Draw N gradients; with heavy tails, Student's t with 3 degrees of freedom and the same Fisher."""
        random = np.random.default_rng(seed)
        Z = random.normal(size=(N, *self.S.shape))
        if heavy:
            Z *= np.sqrt(1 / random.chisquare(3, size=(N, 1, 1)))  # t has the variance 3 / (3 - 2)
        return fl.Fisher.from_gradients((self.L @ (self.S * Z) @ self.R.T).astype(np.float32))

    def moments(self, U: np.ndarray | None = None, V: np.ndarray | None = None) -> np.ndarray:
        """Return E[(U^T G V)^2]; None stands for the identity."""
        left, right = (B if U is None else U.mT @ B for U, B in ((U, self.L), (V, self.R)))
        return left**2 @ self.S**2 @ (right**2).mT

    @property
    def norm_squared(self) -> float:
        left, right = ((B.T @ B) ** 2 for B in (self.L, self.R))
        return float(np.sum(self.S**2 * (left @ self.S**2 @ right)))


def population(kind: str, n: int) -> Population:
    """Return a population of n x n matrices."""
    draw, identity, ones = np.random.default_rng(0), np.eye(n), np.ones((n, n))
    if kind == "isotropic":
        return Population(identity, ones, identity)
    if kind == "diagonal":
        return Population(identity, np.exp(draw.normal(size=(n, n))), identity)
    spectrum = np.where(np.arange(n) < n // 8, 1, 0.05) if kind == "low rank" else np.geomspace(1, 0.02, n) ** 0.5
    left, right = (np.linalg.qr(draw.normal(size=(n, n)))[0] * spectrum for _ in range(2))  # a Kronecker product
    return Population(left, ones, right)


@partial(jax.jit, static_argnums=0)
def eigenvalues(structure: fl.Structure, params: fl.Params) -> Any:
    """Return the eigenvalues of a stack of fits."""
    return jax.vmap(structure.eigenvalues)(params)


def blocks_of(structure: fl.Structure, params: fl.Params, of: Population) -> list[EigenvalueBlock]:
    """Return the eigenvalues of a stack of fits beside the population's second moments, written out for named structures."""
    bases = params.frame.bases
    left, right = (getattr(bases, side, None) for side in ("left", "right"))
    values, V = eigenvalues(structure, params), of.moments(left, right).astype(np.float32)
    if not isinstance(structure, fl.LowRank):
        return [EigenvalueBlock(*(np.broadcast_to(x, (FOLDS, *of.S.shape)) for x in (values, V)), 1.0)]
    m, _ = of.S.shape
    outside = (of.moments().astype(np.float32).sum(0) - V.sum(1)) / (m - structure.rank)  # one eigenvalue for each column
    tied = None if values.columns is None else values.columns[:, 0]
    return [EigenvalueBlock(values.lead, V, 1.0), EigenvalueBlock(tied, outside, m - structure.rank)]


beyond_trace = jax.jit(excess, static_argnums=1)  # D(F, F~) - tr phi(F)


def truths(
    structure: fl.Structure, params: fl.Params, level: np.ndarray, of: Population, divergences: list[str]
) -> dict[str, tuple[float, float]]:
    """Return the mean error of a stack of fits against the population by divergence: absolute, and as an estimate states it.

    Args:
        structure: the structure.
        params: its fits, stacked.
        level: the mean eigenvalue of the samples of each.
        of: the population.
        divergences: their names.
    """
    V = of.moments().astype(np.float32)
    isotropic = [EigenvalueBlock(np.broadcast_to(level[:, None, None], (FOLDS, *V.shape)), V, 1.0)]
    sizes = {"Frobenius": of.norm_squared, "von Neumann": V.sum(), "LogDet": 2 * V.size}
    blocks, found = blocks_of(structure, params, of), {}
    for name in divergences:
        total, of_level = (float(beyond_trace(x, DIVERGENCES[name])) / FOLDS for x in (blocks, isotropic))
        total += of.norm_squared if name == "Frobenius" else -of_level
        found[name] = total, total / sizes[name]
    return found


class Tested(Trial):
    """A trial whose fits were made and tested together with those of other repetitions."""

    def _test(self, linear: dict[tuple[int, ...], float], _: Any, __: Any, *left_out: int) -> HeldOut:
        return HeldOut(linear[left_out], 0.0)  # the part of the basis is not looked at


@partial(jax.jit, static_argnums=(0, 1))
def fit_and_test(structure: fl.Structure, divergences: tuple[str, ...], inputs: tuple) -> tuple:
    """Return the fits of many repetitions without each fold, and D(F, F~) - tr phi(F) on that fold, in units of F.

    The last part is the same difference for the fit of all samples, on these samples.
    """

    def tested(G: jax.Array, H: jax.Array, unit: jax.Array, key: jax.Array) -> tuple[fl.Params, list[jax.Array]]:
        params = unchecked_fit(structure, fl.Fisher.from_gradients(G), key)
        blocks = structure.eigenvalue_blocks(params, fl.Fisher.from_gradients(H))
        blocks = [EigenvalueBlock(None if x is None else x / unit, V / unit, count) for x, V, count in blocks]
        return params, [excess(blocks, DIVERGENCES[name]) for name in divergences]

    def repetition(inputs: tuple) -> tuple:
        G, outside, inside, unit, key = inputs
        each = jax.lax.map(lambda chosen: tested(G[chosen[0]], G[chosen[1]], unit, key), (outside, inside))
        return *each, tested(G, G, unit, key)[1]

    with jax.default_matmul_precision("highest"):
        return jax.lax.map(repetition, inputs)


def measure(
    kind: str, n: int, N: int, repetitions: int, structures: dict[str, fl.Structure], divergences: list[str]
) -> dict[str, dict[str, list]]:
    """Return the columns of every structure by divergence."""
    of = population(kind, n)
    found: dict[str, dict[str, list]] = {divergence: {name: [] for name in structures} for divergence in divergences}
    most = -(-repetitions // -(-repetitions * 4 * N * n * n // 2**28))  # repetitions at once: in equal parts, of one shape
    for start in range(0, repetitions, most):
        chunk = []  # for each repetition a trial of each divergence, and the inputs of `fit_and_test`
        for seed in range(start, min(start + most, repetitions)):
            folds, of_fits = folds_of(np.arange(N), FOLDS, jax.random.key(seed))
            split = Split(of.draw(N, seed, kind == "heavy tails"), folds)
            trials = [Tested(split, DIVERGENCES[name], best_scale=False, shrink=False) for name in divergences]
            sides = (np.array([side(k) for k in range(FOLDS)]) for side in (folds.outside, folds.inside))
            chunk.append((trials, (split.fisher.samples, *sides, split.fisher.unit, of_fits)))
        inputs = jax.tree.map(lambda *x: jnp.stack(x), *(inputs for _, inputs in chunk))
        pseudo: dict[tuple[str, int], tuple[np.ndarray, float, float]] = {}
        for name in structures:  # the reference is the first
            params, tests, whole = jax.tree.map(np.asarray, fit_and_test(structures[name], tuple(divergences), inputs))
            for i, (trials, (_, outside, *_)) in enumerate(chunk):
                split = trials[0].split
                levels, (norm, se) = split.mean_squares[outside].mean(1), split.norm_squared
                warned = se > norm / 2 or split.largest_share > HEAVY
                of_sizes = norm / of.norm_squared - 1, split.mean_squares.mean() / of.moments().mean() - 1
                true = truths(structures[name], jax.tree.map(itemgetter(i), params), levels, of, divergences)
                for j, divergence in enumerate(divergences):
                    row = trials[j].row({(k,): tests[j][i, k] for k in range(FOLDS)} | {(): whole[j][i]})
                    total, relative = true[divergence]
                    reference = pseudo.setdefault((divergence, i), (np.array(row.pseudo), row.total - total, relative))
                    low, high = interval(np.subtract(row.pseudo, reference[0]))
                    inside = row.low <= relative <= row.high, low <= relative - reference[2] <= high
                    off = row.total - total, row.total - total - reference[1], row.relative - relative
                    found[divergence][name].append([relative, *off, *of_sizes, *inside, row.plug_in - relative, warned])
    G, key, first = of.draw(N, seed, kind == "heavy tails"), jax.random.key(seed), divergences[0]  # of the last repetition
    known = fl.estimate({REFERENCE: STRUCTURES[REFERENCE]}, G, key=key, divergence=DIVERGENCES[first]).rows[REFERENCE]
    np.testing.assert_allclose(known.pseudo, pseudo[first, len(chunk) - 1][0], rtol=1e-3, atol=1e-3)
    return {divergence: {name: summary(np.array(x)) for name, x in own.items()} for divergence, own in found.items()}


def interval(pseudo: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the mean of pseudo-values."""
    reach = student.ppf(0.975, FOLDS - 1) * pseudo.std(ddof=1) / math.sqrt(FOLDS)
    return pseudo.mean() - reach, pseudo.mean() + reach


def summary(rows: np.ndarray) -> list[float]:
    """Return the columns from the deviations of all repetitions."""
    relative, total, difference, ratio, norm, mean, inside, inside_of_difference, plug_in, warned = rows.T.astype(float)

    def deviation(values: np.ndarray, parameters: int = 0) -> float:
        spread = values.std(ddof=1 + parameters) / math.sqrt(len(values))
        return values.mean() / spread if spread else 0.0

    if math.isfinite(ratio.sum()):  # without what it owes to deviations whose mean is zero, so that its own mean shows
        controls = np.stack([total, norm, mean, np.ones_like(mean)], 1)
        ratio = ratio - controls[:, :3] @ np.linalg.lstsq(controls, ratio)[0][:3]
    percent = 100 * ratio.mean() / relative.mean()
    found = relative.mean(), deviation(total), deviation(difference), percent, deviation(ratio, 3)
    shares = inside.mean(), inside_of_difference.mean(), plug_in.mean(), warned.mean()
    return [float(f"{x:.3g}") if math.isfinite(x) else str(x) for x in (*found, *shares)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=300)
    parser.add_argument("--samples", type=int, nargs="*", default=[32, 128, 512])
    parser.add_argument("--sizes", type=int, nargs="*", default=[16, 32, 64])
    parser.add_argument("--kinds", nargs="*", default=KINDS, choices=KINDS)
    parser.add_argument("--structures", nargs="*", default=list(STRUCTURES), choices=list(STRUCTURES))
    parser.add_argument("--divergences", nargs="*", default=list(DIVERGENCES), choices=list(DIVERGENCES))
    parser.add_argument("--json", type=Path, default=FILE)
    options = parser.parse_args()
    lines = known_records(options.json)
    structures = {name: STRUCTURES[name] for name in dict.fromkeys([REFERENCE, *options.structures])}
    for n in options.sizes:
        for N in options.samples:
            for kind in options.kinds:
                about = {"kind": kind, "size": n, "samples": N, "repetitions": options.repetitions}
                known = [line["divergence"] for line in lines if about.items() <= line.items()]
                divergences = [name for name in options.divergences if name not in known]
                if not divergences:
                    continue
                start = time.perf_counter()
                found = measure(kind, n, N, options.repetitions, structures, divergences)
                new = [about | {"divergence": name, "rows": rows} for name, rows in found.items()]
                lines += new
                add_records(options.json, *new)
                print(f"{kind}, {n} x {n}, {N} samples: {time.perf_counter() - start:.0f} s", flush=True)
    show(lines)


def show(lines: list[dict]) -> None:
    """Print the worst of every column over structures, the bias of the ratio in percent of the size of F."""
    head = ("divergence", "population", "size", "samples", "numerator", "difference", "bias, %", "covered", "covered, paired")
    table = Table(*head, "plug-in", "warned")
    for line in lines:
        cells = [line["divergence"], line["kind"], str(line["size"]), str(line["samples"])]
        columns = np.array(list(line["rows"].values()), float).T
        truth, numerator, difference, ratio, _, covered, paired, plug_in, warned = columns[:, np.isfinite(columns).all(0)]
        cells += [f"{x[np.argmax(np.abs(x))]:+.1f}" for x in (numerator, difference, ratio * truth)]
        cells += [f"{x.min():.2f} to {x.max():.2f}" for x in (covered, paired, plug_in)]
        table.add_row(*cells, f"{warned[0]:.2f}")
    Console(width=160).print(table)


if __name__ == "__main__":
    main()

"""What fimlens lens prints of one matrix: tables of at most 80 columns, and every doubt."""

import math

from rich.filesize import decimal

from fimlens.cli.arguments import console, table
from fimlens.lens.compare import Comparison
from fimlens.lens.crossed import FAMILIES, crossed_errors
from fimlens.lens.nearness import DIVERGENCES
from fimlens.lens.row import EXACT, Row

LETTERS = {"EXACT": "E", "LIMIT": "L", "ONE_STEP": "O", "BOUND": "B"}  # of claims, where there is no room for words


# What is verified of a claim, in a word or two.
VERIFIED = {"EXACT": "nearest", "LIMIT": "nearest", "ONE_STEP": "in basis", "BOUND": "a bound"}


LEGEND = """
First table. kept: how many numbers the optimizer keeps beside its momentum. error: basis + spectrum, relative to ||F||^2. \
optimum: the least error that the solver found. ratio: error / optimum. claim: what the structure claims in the Frobenius \
norm. verified: "nearest", the solver finds no nearer member. "stationary", what the fit minimises has no slope there, and \
no more is known. "in basis", the eigenvalues are the best for the basis, whose cost is in ratio. "a bound", the fit \
minimises a bound on the error, and ratio says how loose it is.
Second table. Each divergence D has three columns: the error D(F, F~) / D(F, c I), its basis part, and the error of t F~ \
at the best scalar t. An error is 1 for the best multiple of the identity, c I, and 0 for F. * marks the least error of a \
column, without structures that are F itself. E, L, O, B: the claims EXACT, LIMIT, ONE_STEP and BOUND. nats: F is \
singular, so D is infinite. The error is then a gradient's negative log-likelihood under F~, per entry, less that under c \
I.
Third table. F~ off: the distance of the optimizer's F~ from the fit, after the same gradients in the fit's basis. update: \
the distance of its update from F~^(-1/2) g. verified: both are rounding. free: the distance of its F~ from the fit with \
its own basis and decay. It never fails a run."""


def print_tables(comparison: Comparison, dtype: str) -> None:
    """Print the tables of structures, of divergences, of optimizers and of families, and every doubt."""
    m, n = comparison.shape
    console.print(f"\n{comparison.matrix} ({m} x {n}). {comparison.fisher}.", style="bold")
    structures = table("structure", "kept", "error", "basis", "spectrum", "optimum", "ratio", "claim", "verified")
    structures.padding = 0  # nine columns
    optimizers = table("optimizer", "kept", dtype, "F~ off", "update", "free", "verified")
    ordered = sorted(comparison.rows, key=lambda row: (row.kept, row.relative))
    for row in ordered:
        numbers = map(_short, (abs(row.relative), abs(row.basis), abs(row.spectrum), row.optimum, row.ratio))
        claim = row.divergences["Frobenius"].claim
        structures.add_row(row.name, f"{row.kept:,}", *numbers, claim or "-", _verified(row, claim))
        sizes = f"{row.kept:,}", decimal(row.bytes)
        off = (
            _number(row.streamed, ".0e"),
            _number(row.update, ".0e"),
            _number(row.free, ".2f" if (row.free or 0) < 100 else ".0e"),
        )
        optimizers.add_row(row.name, *sizes, *off, "yes" if row.optimizer_holds else "NO")
    console.print(structures)
    _print_divergences(comparison, ordered)
    console.print(optimizers)
    _print_families(comparison)
    for row in comparison.rows:
        for doubt in row.doubts:
            console.print(f"{row.name}: {doubt}.")
    for name, reason in comparison.unsuited.items():
        console.print(f"{name} was left out. {reason}")


def _verified(row: Row, claim: str | None) -> str:
    """Say what was verified of a fit and its claim in the Frobenius norm, or NO."""
    if not row.claim_holds:
        return "NO"
    seen = row.relative <= EXACT or row.optimum is not None or claim in ("ONE_STEP", "BOUND")
    return VERIFIED[claim] if seen and claim is not None else "stationary"


def _print_divergences(comparison: Comparison, ordered: list[Row]) -> None:
    """Print how near each structure is in each divergence."""
    if not ordered:
        return
    titles = [f"{d}{', nats' if ordered[0].divergences[d].unit == 'nats' else ''}".replace(" ", "\n") for d in DIVERGENCES]
    shown = table("structure", *(heading for title in titles for heading in (title, "basis", "at t")))
    shown.padding = 0  # ten columns
    best = {(d, scaled): comparison.best(d, scaled=scaled) for d in DIVERGENCES for scaled in (False, True)}
    for row in ordered:
        cells = []
        for d, near in row.divergences.items():
            marks = ["*" if best[d, scaled] == row.name else " " for scaled in (False, True)]
            cells += [
                _short(near.error) + marks[0] + LETTERS.get(near.claim, " "),
                _short(near.basis),
                _short(near.scaled) + marks[1],
            ]
        shown.add_row(row.name, *cells)
    console.print(shown)


def _print_families(comparison: Comparison) -> None:
    """Print the fit of a family in each divergence, seen in all three, for families whose three fits are among the rows."""
    shown = table("structure", "family", "nearest in", *DIVERGENCES)
    for family, lines in crossed_errors({row.name: row.divergences for row in comparison.rows}).items():
        for (divergence, name), line in zip(FAMILIES[family].items(), lines, strict=True):
            shown.add_row(name, family, divergence, *map(_short, line))
    if shown.rows:
        console.print(shown)


def _short(x: float | None) -> str:
    """The number in at most four characters and a sign: .123, 1.23, 12.3, 123 or 1e+04."""
    if x is None or not math.isfinite(x):
        return "-" if x is None else str(x)
    if abs(x) < 0.9995:
        return f"{x:.3f}".replace("0.", ".", 1) if abs(x) >= 5e-4 else "0"
    return f"{x:.3g}" if abs(x) < 999.5 else f"{x:.0e}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)

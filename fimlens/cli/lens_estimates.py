"""fimlens lens --gradients: estimates on gradients from files, for which held-out samples and error bars are needed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fimlens import __version__
from fimlens._validate import differences, names_like, write_atomically
from fimlens.cli.arguments import console, errors, long_progress, table
from fimlens.fisher.stored_form import samples_of
from fimlens.lens.conclusions import conclude
from fimlens.lens.estimate import MAX_BYTES, estimate_each, folds_of
from fimlens.lens.estimate_figure import error_map, errors_with_bars
from fimlens.lens.estimates import Estimates
from fimlens.lens.nearness import DIVERGENCES
from fimlens.lens.split import Split
from fimlens.lens.trial import Trial
from fimlens.models.gradient_files import GradientFiles, fingerprint
from fimlens.structure import Structure

LEGEND = """
kept: how many numbers the optimizer keeps beside its momentum. error: the mean error of fits to all folds but one, on the \
fold that they have not seen, with its standard error (+-) and its two parts, basis and spectrum. plug-in: the error of \
the fit of all gradients on the same gradients, which flatters large families. In Frobenius, errors are relative to \
||F||^2. In the other divergences they are per entry, less that of the best multiple of the identity; in LogDet they are \
in nats."""


def estimate_gradients(
    structures: Mapping[str, Structure],
    files: GradientFiles,
    *,
    patterns: list[str],
    folds: int,
    skip_nonfinite: bool,
    seed: int,
    out: Path,
) -> dict[str, Any]:
    """Estimate every structure on the gradients of every matrix, print tables and conclusions, and write figures.

    The numbers of a matrix are written to estimates.json in `out` as soon as they are known. A second run continues there, and
    adds other structures and matrices to it.

    Args:
        structures: by name.
        files: the gradients.
        patterns: which matrices, such as "layers/*".
        folds: the number of folds.
        skip_nonfinite: leave out gradients that are not finite.
        seed: of folds and random bases.
        out: an existing directory.

    Returns:
        What estimates.json holds.

    Raises:
        ValueError: no matrix has a name like the patterns, the gradients cannot be divided into folds, or `out` has the
            estimates of another run.
    """
    named = {name for pattern in patterns for name in names_like(files.matrices, pattern)}
    chosen = {name: G for name, G in files.matrices.items() if name in named}
    if not chosen:
        raise ValueError(f"--matrices: none is like {', '.join(patterns)}. There are {', '.join(files.matrices)}.")
    path, count = out / "estimates.json", len(next(iter(chosen.values())))
    about = {"fimlens": __version__, "kind": files.kind, "samples": count, "folds": folds, "seed": seed}
    known = _read_known(path, about)
    done, marks = known.get("matrices", {}), known.get("fingerprints", {})
    found: dict[str, dict[str, Estimates]] = {}
    errors.print(
        f"{len(structures)} structures on {len(chosen)} matrices, with {count} gradients in {folds} folds. Estimates are "
        f"stored in {path} as they come: after an interruption the same command continues."
    )
    with long_progress() as bar:
        task = bar.add_task("structures", total=len(chosen) * len(structures))
        for name, gradients in chosen.items():
            # Other gradients may have the same name, number and kind: those of the same matrix later in training.
            mark = fingerprint([gradients] if files.units is None else [gradients, files.units])
            old = done.get(name, {}) if marks.get(name) == mark else {}
            written = next(iter(old.values()), {}).get("structures", {})  # a name may stand for several ranks
            missing = {each: structure for each, structure in structures.items() if written.get(each) != repr(structure)}
            bar.update(task, advance=len(structures) - len(missing))
            if missing:
                fisher, kept = samples_of(f"lens: {name}", gradients, MAX_BYTES, skip_nonfinite)
                divided, key = folds_of(kept if files.units is None else files.units[kept], folds, jax.random.key(seed))
                split = Split(fisher, divided)
                trials = {d: Trial(split, sense, best_scale=False, shrink=False) for d, sense in DIVERGENCES.items()}

                def advance(structure: str, matrix: str = name) -> None:
                    bar.update(task, advance=1, description=f"{matrix}: {structure}")

                new = estimate_each(missing, split, trials, key, advance)
                done = done | {name: {d: _joined(old.get(d, {}), part.to_json()) for d, part in new.items()}}
                marks = marks | {name: mark}
                write_atomically(path, json.dumps(about | {"fingerprints": marks, "matrices": done}, indent=1) + "\n")
            found[name] = {d: Estimates.from_json(part, structures) for d, part in done[name].items()}
    for name, parts in found.items():
        _print(name, parts, files)
    _conclude(found, out)
    console.print(f"Numbers and figures: {path} and *.png beside it.")
    return about | {"fingerprints": marks, "matrices": done}


def _conclude(found: Mapping[str, Mapping[str, Estimates]], out: Path) -> None:
    """Draw the figures of each divergence, and say in words what they show."""
    by_divergence = {d: {name: parts[d] for name, parts in found.items()} for d in DIVERGENCES}
    for d, estimates in by_divergence.items():
        stem = d.lower().replace(" ", "-")
        errors_with_bars(estimates).savefig(out / f"estimates-{stem}.png", dpi=150)
        error_map(estimates).savefig(out / f"map-{stem}.png", dpi=150)
    console.print(LEGEND, style="dim")
    for estimates in by_divergence.values():
        console.print(*conclude(estimates), sep="\n")


def _read_known(path: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Return what an earlier run wrote; nothing if there was none. Refuse to write over what is about anything else."""
    try:
        known = json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}. Remove it, or name another directory by --out.") from error
    if not isinstance(known, dict):
        raise ValueError(f"{path} holds no estimates. Remove it, or name another directory by --out.")
    if known and (differing := differences(known, about)):
        raise ValueError(f"{path} is of another run: {differing}. Remove it, or name another directory by --out.")
    return known


def _joined(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return new estimates, and the old ones of structures that are not among the new."""
    parts = ("structures", "rows", "unsuited")
    kept = {part: {name: x for name, x in old.get(part, {}).items() if name not in new["structures"]} for part in parts}
    return new | {part: kept[part] | new[part] for part in parts}


def _print(matrix: str, parts: Mapping[str, Estimates], files: GradientFiles) -> None:
    """Print one table a divergence, the nearest structure first."""
    first = next(iter(parts.values()))
    m, n = first.shape
    about = f"{first.samples} gradients in {first.folds} folds: {files.kind}, {files.normalisation}"
    console.print(f"\n{matrix} ({m} x {n}). {about}.", style="bold")
    for name, found in parts.items():
        shown = table("structure", "kept", "error", "+-", "basis", "spectrum", "plug-in", title=f"in {name}")
        for structure in found.ranked():
            row = found.rows[structure]
            cells = [_number(x) for x in (row.relative, row.se, row.basis, row.spectrum, row.plug_in)]
            shown.add_row(structure, f"{found.kept(structure):,}", *cells)
        console.print(shown)
    for name, reason in first.unsuited.items():
        console.print(f"{name} was left out. {reason}")
    if not first.reliable:
        words = "so that errors in the Frobenius norm mean little here: take more gradients, or read the other tables"
        console.print(f"{first.doubt}, {words}.", style="red")


def _number(x: float | None) -> str:
    return "" if x is None else "-" if np.isnan(x) else f"{x:.3f}"

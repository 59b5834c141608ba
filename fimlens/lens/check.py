"""`check`: run the laws on a structure and report."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import jax
from rich.table import Table

from fimlens.lens.case import TOLERANCE, draw_case
from fimlens.lens.laws import LAWS, SHAPES
from fimlens.solver.sizes import unsuited
from fimlens.structure import Structure


class Finding(NamedTuple):
    """One law at one shape; it holds where the deviation is within tolerance."""

    law: str
    shape: tuple[int, int]
    deviation: float

    @property
    def ok(self) -> bool:
        return self.deviation <= TOLERANCE


@dataclass(frozen=True)
class Report:
    """What `check` found; printable, and a table under rich."""

    structure: Structure
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return bool(self.findings) and all(finding.ok for finding in self.findings)

    def __str__(self) -> str:
        tried = tuple(dict.fromkeys(finding.law for finding in self.findings))
        only = "" if len(tried) == len(LAWS) else f" of those tried ({', '.join(tried)})"
        lines = [f"{self.structure}: {'every' if self.ok else 'not every'} law{only} holds"]
        for law, shape, deviation in (finding for finding in self.findings if not finding.ok):
            statement = " ".join((LAWS[law].__doc__ or "").split())
            lines.append(f"  {law} at {shape[0]} x {shape[1]}: off by {deviation:.2g}. The law: {statement}")
        return "\n".join(lines)

    def __rich__(self) -> Table:
        table = Table(title=f"Laws of {self.structure}")
        for heading in ("law", "shape", "off by", "holds"):
            table.add_column(heading)
        for finding in self.findings:
            m, n = finding.shape
            table.add_row(finding.law, f"{m} x {n}", f"{finding.deviation:.1e}", "yes" if finding.ok else "NO")
        return table


class LawBroken(AssertionError):
    """A structure breaks a law; `report` has every finding.

    Examples:
        >>> import fimlens as fl
        >>> class Shifted(fl.Rows):
        ...     def project(self, moments): return moments + 1
        >>> try:
        ...     fl.check(Shifted(), shapes=[(2, 2)], laws=["homogeneity"])
        ... except fl.LawBroken as error:
        ...     print([finding.law for finding in error.report.findings if not finding.ok])
        ['homogeneity']
    """

    def __init__(self, report: Report) -> None:
        super().__init__(str(report))
        self.report = report


def check(
    structure: Structure,
    *,
    shapes: Iterable[tuple[int, int]] | None = None,
    laws: Iterable[str] = tuple(LAWS),
    seed: int = 0,
) -> Report:
    """Run the laws on a structure, and return the report where all hold.

    Args:
        shapes: of the matrices to try; by default the first two of 3 x 4, 4 x 3, 4 x 6 and 6 x 6 that the structure accepts.
        laws: their names; all by default.
        seed: of the random ensembles.

    Raises:
        LawBroken: some law does not hold; the message states which, where and by how much.
        TypeError: `structure` is not a Structure instance.
        ValueError: there are no laws or no shapes, a law's name is unknown, or the structure accepts none of the shapes.

    Examples:
        >>> import fimlens as fl
        >>> fl.check(fl.Rows(), shapes=[(3, 4)]).ok
        True
    """
    if not isinstance(structure, Structure):
        raise TypeError(f"check: expected a structure, such as fl.Diagonal(); got {structure!r}. Classes need ().")
    laws = tuple(laws)
    for law in laws:
        if law not in LAWS:
            raise ValueError(f"check: there is no law {law!r}. The laws are {', '.join(LAWS)}.")
    suited = tuple(shapes) if shapes is not None else _suited(structure)
    for name, given in (("laws", laws), ("shapes", suited)):
        if not given:
            raise ValueError(f"check: {name} is empty, so that nothing would be checked. Leave it out for the usual ones.")
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        cases = [draw_case(structure, shape, seed, solved=k == 0) for k, shape in enumerate(suited)]
        findings = tuple(Finding(law, case.shape, float(LAWS[law](case))) for case in cases for law in laws)
    report = Report(structure, findings)
    if not report.ok:
        raise LawBroken(report)
    return report


def _suited(structure: Structure) -> tuple[tuple[int, int], ...]:
    refusals = {shape: unsuited(structure, shape) for shape in SHAPES}
    suited = [shape for shape, refusal in refusals.items() if refusal is None]
    if not suited:
        raise ValueError(f"check: {structure} accepts none of {SHAPES}; give shapes=. It says: {refusals[SHAPES[0]]}")
    return tuple(suited[:2])

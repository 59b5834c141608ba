"""One row of a comparison: everything that is measured of one structure, and the verdicts."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from fimlens.divergence import FROBENIUS
from fimlens.fisher.fisher import Fisher
from fimlens.lens.nearness import Nearness, measure_nearness
from fimlens.lens.run_optimizer import optimizer_deviations
from fimlens.optimizers.mixture import kept_size
from fimlens.solver.fit import NEGATIVE_TOLERANCE, gap, least_eigenvalue
from fimlens.solver.solve import solve
from fimlens.solver.stationarity import stationarity
from fimlens.structure import Claim, Params, Structure

EXACT = 1e-12  # a fit with a smaller relative error is F itself


TOLERANCE = 1e-8  # a larger slope, excess or deviation fails the verdict


class Row(NamedTuple):
    """One line of a `Comparison`: a structure, its error, its size, its optimizer, and a verdict on each.

    Errors are relative to ||F||^2. None stands for what was not measured.

    Attributes:
        name: the name that the structure was given.
        structure: the structure, as it prints.
        claim: the name of its claim, which is about the divergence that its fit minimises.
        relative: the error of its fit, basis + spectrum.
        basis: the part of the error that the best eigenvalues in that basis would leave.
        spectrum: the part that the eigenvalues add.
        optimum: the least error that the solver found.
        ratio: relative / optimum.
        starts: how many starts the solver had.
        reached: how many of them ended at the optimum.
        slope: the largest slope of the structure's objective at the fit.
        least: the least eigenvalue of the fit, relative to the largest.
        kept: how many numbers its optimizer keeps beside the momentum, in `fl.scale_by_recommended`.
        bytes: the size of these in bytes.
        streamed: how far the F~ in the optimizer's state is from the fit, if it runs in the basis of the fit.
        update: how far its last update is from F~^{-1/2} Vec(G) computed from the dense F~.
        free: how far the F~ in its state is from the fit, if it runs with its own basis, refresh and decay. Not judged.
        claim_holds: whether the fit is a member, is stationary, and is not beaten if its claim says so.
        optimizer_holds: whether `streamed` and `update` are rounding.
        doubts: why a verdict failed, in words.
        divergences: how near the fit is in each divergence, a `Nearness` by name: "Frobenius", "von Neumann", "LogDet".
    """

    name: str
    structure: str
    claim: str
    relative: float
    basis: float
    spectrum: float
    optimum: float | None
    ratio: float | None
    starts: int | None
    reached: int | None
    slope: float
    least: float
    kept: int
    bytes: int
    streamed: float | None
    update: float | None
    free: float | None
    claim_holds: bool
    optimizer_holds: bool
    doubts: tuple[str, ...]
    divergences: Mapping[str, Nearness]

    @property
    def ok(self) -> bool:
        """Whether both verdicts are good."""
        return self.claim_holds and self.optimizer_holds


def measure_row(
    name: str, structure: Structure, fitted: Params, fisher: Fisher, key: Array, solve_up_to: int, dtype: Any
) -> Row:
    """Solve and run the optimizer of one structure, and judge its fit by them. Other arguments are those of `compare`."""
    error = gap(structure, fitted, fisher)
    norm = float(fisher.norm_squared) or 1.0  # the errors of a zero Fisher are zero, not 0/0
    slope, least = stationarity(structure, fisher, fitted), float(least_eigenvalue(structure, fitted))
    member = least >= -NEGATIVE_TOLERANCE
    # The solver is by far the most expensive part. It runs on small matrices whose fit is not exact, and once for a family:
    # what is nearest in LogDet has a twin in the Frobenius norm.
    solution, small = None, np.prod(fisher.shape) <= solve_up_to
    if member and small and float(error.relative) > EXACT and structure.divergence.degree != 0:
        solution = solve(structure, fisher, key=key, starts=1)
    # Other claims do not say that the fit is nearest, so a nearer member is no contradiction.
    optimal = structure.claim_in(FROBENIUS) in (Claim.EXACT, Claim.LIMIT)
    excess = solution.certificate.excess if solution is not None and optimal else 0.0
    deviations = optimizer_deviations(structure, fisher, fitted)
    claim_doubts = _doubts_of_claim(member, least, slope, excess)
    optimizer_doubts = _doubts_of_optimizer(deviations.state, deviations.update)
    optimum = None if solution is None else solution.value / norm
    kept = kept_size(structure, fisher.shape)
    return Row(
        name=name,
        structure=str(structure),
        claim=structure.claim.name,
        relative=float(error.relative),
        basis=float(error.basis) / norm,
        spectrum=float(error.spectrum) / norm,
        optimum=optimum,
        ratio=None if optimum is None or optimum < EXACT else float(error.relative) / optimum,
        starts=None if solution is None else len(solution.certificate.values),
        reached=None if solution is None else solution.certificate.reached,
        slope=slope,
        least=least,
        kept=kept,
        bytes=kept * jnp.dtype(dtype).itemsize,
        streamed=deviations.state,
        update=deviations.update,
        free=deviations.free,
        claim_holds=not claim_doubts,
        optimizer_holds=not optimizer_doubts,
        doubts=(*claim_doubts, *optimizer_doubts),
        divergences=measure_nearness(structure, fitted, fisher),
    )


def _doubts_of_claim(member: bool, least: float, slope: float, excess: float) -> list[str]:
    """Say why a claim fails; nothing if it holds."""
    if not member:
        return [f"its fit is no member: an eigenvalue is {least:.2g} of the largest, and no Fisher has a negative one"]
    doubts = []
    if not slope <= TOLERANCE:  # and not >: NaN must fail
        doubts.append(f"its objective has a slope of {slope:.0e} at the fit, so the fit does not minimise it")
    if not excess <= TOLERANCE:
        doubts.append(f"the solver found a member nearer by {excess:.2g} of ||F||^2")
    return doubts


def _doubts_of_optimizer(state: float | None, update: float | None) -> list[str]:
    """Say why an optimizer fails; nothing if it holds or was not run."""
    measured = (
        (state, "the F~ in its state is {:.0e} off that of the fit"),
        (update, "its update is {:.0e} off that of the dense F~"),
    )
    return [words.format(off) for off, words in measured if off is not None and not off <= TOLERANCE]

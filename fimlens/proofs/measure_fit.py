"""Measure, at one Fisher, a fit that is no short expression: the derivatives of the gap there, and what the solver reaches."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fimlens.divergence import Divergence
from fimlens.fisher.dense_form import DenseFisher
from fimlens.fisher.fisher import Fisher
from fimlens.proofs.evaluate import stationarity
from fimlens.solver.fit import fit, gap, is_member, least_eigenvalue
from fimlens.solver.solve import solve
from fimlens.structure import Claim, Structure
from fimlens.structures.spectra import Spectrum

MEASURED = 1e-9  # bound on a measured gradient, relative to its largest term, and on differences of relative gaps


NEAR = 0.01  # how much larger than the limit's the relative gap may be after a few iterations


def measure_fit(
    structure: Structure, divergence: Divergence, shape: tuple[int, int], why: str, known: str = "", stops: bool = False
) -> tuple[str, bool]:
    """The verdict on a fit that is not an expression: measure the gradient of the gap at the fit of one Fisher.

    Args:
        structure: the structure.
        divergence: the divergence of the gap.
        shape: rows and columns of the matrix.
        why: why the fit is measured, a clause about the fit.
        known: a verdict on a part of the fit, which is proved.
        stops: the fit stops after a number of iterations. It may then, as with `known`, stay near the limit that it claims.
    """
    with jax.enable_x64(True):
        uneven = 1 / (1 + np.add.outer(*map(np.arange, shape)))  # so that a fit with bounds meets them
        F = Fisher.from_gradients(uneven * np.random.default_rng(0).normal(size=(3 * shape[0] * shape[1], *shape)) ** 2)
        if isinstance(structure, Spectrum):
            F = DenseFisher(F.kind, F.normalisation, jnp.diag(jnp.diagonal(F.dense())), shape)
        member = fit(structure, F)
        if not is_member(structure, member):
            least = f"{least_eigenvalue(structure, member):.2g} of the largest, and no Fisher has a negative eigenvalue"
            return f"refused: {why}, and at one Fisher an eigenvalue is {least}", False

        def slope_from(F: Fisher) -> Any:
            return stationarity(structure, divergence, member, F)

        def largest(tree: Any) -> float:
            return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))

        # The gradient is a difference of two terms; that of F = 0 is the first of them, and sets the scale for rounding errors.
        nothing = DenseFisher(F.kind, F.normalisation, jnp.zeros_like(F.dense()), shape)
        # A coordinate of exactly 0 is at its bound, where the gap may still fall in the direction that is not allowed.
        free = jax.tree.map(lambda c, g: jnp.where(c == 0, jnp.minimum(g, 0), g), member.coords, slope_from(F))
        terms = largest(slope_from(nothing))
        relative = largest(free) / terms if terms else float("inf")
        best = solve(structure, F, divergence=divergence, key=jax.random.key(0)).params
        gaps = [float(gap(structure, p, F, divergence=divergence).relative) for p in (member, best)]
    measured = f"measured, not proved, because {why}: "
    slope_text = f"at one Fisher the gradient is {relative:.0e} of its terms"
    any_basis = structure.claim in (Claim.EXACT, Claim.LIMIT)  # the other claims hold for the given bases only
    if relative <= MEASURED and (not any_basis or gaps[0] <= gaps[1] + MEASURED):
        return f"{known}{measured}{slope_text}", True
    if (known or stops) and structure.claim is Claim.LIMIT:
        return f"{known or measured}the limit is not reached, {slope_text}", gaps[0] < gaps[1] + NEAR
    gap_text = f"the relative gap is {gaps[0]:.3g} while `solve` reaches {gaps[1]:.3g}"
    return f"refused: {why}, and {slope_text}; {gap_text}", False

"""How far a closed form is from being stationary: the slope of its objective at the fit."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from fimlens.fisher.fisher import Fisher
from fimlens.solver.newton import aim_at, scale_coordinates
from fimlens.structure import Claim, Params, Structure


def stationarity(structure: Structure, fisher: Fisher, fitted: Params) -> float:
    """Return the largest slope of the structure's objective at its fit, relative to the size of F in its divergence.

    If the claim is EXACT or LIMIT the slope is over the whole chart, bases included. Otherwise the basis solves another
    problem, and the slope is over the eigenvalues alone.
    """
    return float(_largest_slope(structure, fisher, fitted))


@partial(jax.jit, static_argnums=0)
def _largest_slope(structure: Structure, fisher: Fisher, fitted: Params) -> Float[Array, ""]:
    # Along z in units of the coordinates, and relative to the size of F: the slope then does not depend on its scale.
    size = aim_at(structure.divergence, fisher).size

    def objective(z: Params) -> Array:
        member = structure.chart(scale_coordinates(fitted, z), fitted)
        return structure.objective(member, fisher) / size

    slope = jax.grad(objective)(jax.tree.map(jnp.zeros_like, fitted))
    whole = structure.claim in (Claim.EXACT, Claim.LIMIT)
    return jnp.abs(ravel_pytree(slope if whole else slope.coords)[0]).max()

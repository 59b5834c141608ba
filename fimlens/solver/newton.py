"""Damped Newton through a structure's chart: the descent of `solve`, for any structure.

Steps are found by conjugate gradients, which need the Hessian only in products with vectors, and which leave a saddle along the
first direction of negative curvature that they meet. Each step starts a new chart at the member reached, so derivatives are
taken at z = 0 only.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Float

from fimlens.divergence import Divergence, excess
from fimlens.fisher.fisher import Fisher
from fimlens.solver.fit import is_member, without_rounding
from fimlens.structure import Params, Structure

# Fractions of the Newton step that are tried. The gap is quadratic in eigenvalues (sqrt(c) + z)^2, so quartic in z. Where an
# eigenvalue falls to zero it is z^4, whose Newton step is z/3: three times that step is exact.
STEPS = (3.0, 2.0, 1.0, 0.5, 0.25, 0.1, 0.03, 0.01, 1e-3)


CONJUGATE_STEPS = 100


def scale_coordinates(member: Params, z: Params) -> Params:
    """Scale each array of coordinates in z by the root mean square root of the member's own.

    The chart moves a coordinate c as (sqrt(c) + z)^2. In these units z is of order 1 at every scale of F, so neither steps nor
    tolerances depend on that scale.
    """

    def unit(c: Array) -> Array:
        size = jnp.sqrt(jnp.mean(jnp.abs(c)))
        return jnp.where(size > 0, size, 1)

    return Params(z.frame, jax.tree.map(lambda x, c: x * unit(c), z.coords, member.coords))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Aim:
    """What is minimised: D(F, F~) / size, or its excess over tr phi(F) where that is infinite."""

    divergence: Divergence = field(metadata={"static": True})
    size: Float[ArrayLike, ""]
    offset: Float[ArrayLike, ""]
    unit: Float[ArrayLike, ""]  # the largest second moment, which sets the size of rounding


@partial(jax.jit, static_argnums=0)
def aim_at(divergence: Divergence, fisher: Fisher) -> Aim:
    """Return what to minimise for this Fisher."""
    trace = divergence.trace(fisher)
    size = divergence.size(trace, jnp.mean(fisher.second_moment()), math.prod(fisher.shape))
    return Aim(divergence, size, jnp.where(jnp.isfinite(trace), trace / size, 0), fisher.unit)


@partial(jax.jit, static_argnums=0)
def relative_gap(structure: Structure, params: Params, fisher: Fisher, aim: Aim) -> Float[Array, ""]:
    """Return the aim's value, or infinity outside the PSD cone: a matrix there may be nearer than any member."""
    blocks = without_rounding(structure.eigenvalue_blocks(params, fisher), aim.unit)
    value = aim.offset + excess(blocks, aim.divergence) / aim.size
    return jnp.where(is_member(structure, params), value, jnp.inf)


@partial(jax.jit, static_argnums=(0, 4))
def descend(
    structure: Structure, members: Sequence[Params], fisher: Fisher, aim: Aim, iterations: int
) -> tuple[Params, Float[Array, " starts"], Float[Array, " starts"], Float[Array, " starts"]]:
    """Descend from each member. Return those reached, stacked; the relative gaps before and after; and the gradient norms."""
    _, unravel = ravel_pytree(members[0])

    def move(member: Params, z: Array) -> Params:
        return structure.chart(scale_coordinates(member, unravel(z)), member)

    def gap_at(z: Array, member: Params) -> Array:
        return relative_gap(structure, move(member, z), fisher, aim)

    def step(member: Params, value: Array) -> tuple[Params, Array, Array]:
        zero = jnp.zeros_like(ravel_pytree(member)[0])
        # Linearised once, the gradient gives Hessian products at the price of one tangent each.
        slope, curve = jax.linearize(lambda z: jax.grad(gap_at)(z, member), zero)
        newton = _truncated_newton(slope, curve)
        newton = newton * jnp.minimum(1, 2 / jnp.linalg.norm(newton))  # a trust region: z is of order 1
        # In place of a line search all steps are tried at once: members are small, and a vmap has no branches.
        trials = jnp.array(STEPS)[:, None] * newton
        values = jax.vmap(lambda z: gap_at(z, member))(trials)
        values = jnp.where(jnp.isfinite(values), values, jnp.inf)
        best = jnp.argmin(values)
        better = values[best] < value
        # Without an improvement the member stays, so values never rise.
        moved = jax.tree.map(lambda new, old: jnp.where(better, new, old), move(member, trials[best]), member)
        return moved, jnp.where(better, values[best], value), jnp.linalg.norm(slope)

    def unconverged(state: tuple[Params, Array, Array, Array, Array]) -> Array:
        _, _, _, idle, count = state
        return (count < iterations) & (idle < 2)  # a step may stand still once, where rounding hides its gain

    def advance(state: tuple[Params, Array, Array, Array, Array]) -> tuple[Params, Array, Array, Array, Array]:
        member, value, _, idle, count = state
        member, new, slope = step(member, value)
        return member, new, slope, jnp.where(value - new > 1e-15, 0, idle + 1), count + 1

    def descend_from(member: Params) -> tuple[Params, Array, Array, Array]:
        first = relative_gap(structure, member, fisher, aim)
        member, value, slope, *_ = jax.lax.while_loop(unconverged, advance, (member, first, jnp.inf, 0, 0))
        return member, first, value, slope

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    return jax.lax.map(descend_from, stacked)  # not vmap, under which every start would run until the last has converged


def _truncated_newton(slope: Array, curve: Callable[[Array], Array]) -> Array:
    """Return the Newton step by conjugate gradients, stopped along the first direction of negative curvature (Steihaug, 1983).

    `slope` is the gradient, and `curve` multiplies by the Hessian.
    """
    size = jnp.linalg.norm(slope)
    floor = jnp.minimum(0.1, jnp.sqrt(size)) * size  # inexact far away, and exact enough for quadratic convergence near the end

    def unconverged(state: tuple[Array, ...]) -> Array:
        _, r, _, negative, count = state
        return ~negative & (count < CONJUGATE_STEPS) & (jnp.linalg.norm(r) > floor)

    def search(state: tuple[Array, ...]) -> tuple[Array, ...]:
        p, r, d, _, count = state
        image = curve(d)
        energy, square = jnp.vdot(d, image), jnp.vdot(r, r)
        negative = energy <= 1e-14 * jnp.vdot(d, d)  # zero counts: redundant charts are flat along some directions
        # Along negative curvature the model has no minimum: take a step of length 1, for the line search to scale.
        alpha = jnp.where(negative, 1 / jnp.linalg.norm(d), square / jnp.where(negative, 1, energy))
        new = r - alpha * image
        return p + alpha * d, new, new + jnp.vdot(new, new) / square * d, negative, count + 1

    return jax.lax.while_loop(unconverged, search, (jnp.zeros_like(slope), -slope, -slope, False, 0))[0]

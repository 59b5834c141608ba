"""How well a member describes samples that it was not fitted to: sums over those samples, without bias."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fimlens.divergence import Divergence, excess
from fimlens.fisher.fisher import Fisher
from fimlens.fisher.samples import Samples
from fimlens.lens.nearness import best_scale
from fimlens.structure import EigenvalueBlock, Params, Structure


class Moments(NamedTuple):
    """What samples have along the directions of a family, block by block, in units of F.

    Attributes:
        means: their second moments V.
        variances: those of V, as estimates of the moments of the population.
    """

    means: list[Float[Array, "..."]]
    variances: list[Float[Array, "..."]]


class Units(NamedTuple):
    """The unit of F in which a test computes, and the size in that unit below which a number is the rounding of a zero."""

    unit: Float[Array, ""]
    rounding: Float[Array, ""]


class Adjustment(NamedTuple):
    """What a fit becomes before it is tested: (1 - rho) t F~ + rho c I, with t the scale, rho the share and c the level."""

    scale: Float[Array, ""]
    share: Float[Array, ""]
    level: Float[Array, ""]

    def __call__(self, block: EigenvalueBlock) -> EigenvalueBlock:
        value = jnp.zeros_like(block.moment) if block.eigenvalue is None else block.eigenvalue
        return block._replace(eigenvalue=(1 - self.share) * self.scale * value + self.share * self.level)


class HeldOut(NamedTuple):
    """What samples say of a member that has not seen them, in units of F.

    Attributes:
        linear: D(F, F~) - tr phi(F), which is linear in F and therefore has no bias.
        basis: the part of it that no eigenvalues can change: minus the sum of phi(V), and what lies outside the range.
    """

    linear: Float[Array, ""]
    basis: Float[Array, ""]


@partial(jax.jit, static_argnums=(0, 1))
def held_out(
    structure: Structure, divergence: Divergence, params: Params, moments: Moments, adjustment: Adjustment, units: Units
) -> HeldOut:
    """Test a member on samples that it was not fitted to.

    phi(V) of an estimate V is too large by phi''(V) / 2 times the variance of V, to second order. That is subtracted, which
    is exact in the Frobenius norm.
    """
    known = structure.eigenvalue_blocks(params, Fisher.of_one(jnp.zeros(params.frame.shape, moments.means[0].dtype)))
    blocks = [_cleaned(value, V, c, units) for (value, _, c), V in zip(known, moments.means, strict=True)]
    adjusted = [adjustment(block) for block in blocks]
    basis = jnp.zeros([])
    for old, new, variance in zip(blocks, adjusted, moments.variances, strict=True):
        _, V, c = new
        if old.eigenvalue is None:
            basis += excess([new], divergence)
        else:
            basis -= c * jnp.sum(divergence.phi(V) - divergence.curvature(V) * variance / 2)
    return HeldOut(excess(adjusted, divergence), basis)


@partial(jax.jit, static_argnums=0)
def moments_along(
    structure: Structure,
    params: Params,
    fisher: Samples,
    starts: Bool[Array, " k"],
    pairs: Float[Array, ""],
    unit: Float[Array, ""],
) -> Moments:
    """Return the moments of samples along the directions of a member.

    Args:
        structure: the family.
        params: the member, of which the frame counts.
        fisher: the samples, those of a sampling unit after each other.
        starts: whether a sample is the first of its unit.
        pairs: the number of ordered pairs of samples of different units.
        unit: of F, in which moments are computed, so that no square leaves float32.
    """

    def moments_of(G: Float[Array, "m n"]) -> list[Array]:
        return [block.moment for block in structure.eigenvalue_blocks(params, Fisher.of_one(G / jnp.sqrt(unit)))]

    def add(sums: tuple, G: Float[Array, "m n"], start: Bool[Array, ""]) -> tuple:
        total, squares, own = sums
        V = moments_of(G)
        squares = [q + jnp.where(start, s**2, 0) for q, s in zip(squares, own, strict=True)]
        own = [jnp.where(start, 0, s) + v for s, v in zip(own, V, strict=True)]
        return [s + v for s, v in zip(total, V, strict=True)], squares, own

    with jax.default_matmul_precision("highest"):
        zero = [jnp.zeros_like(V) for V in moments_of(jnp.zeros(fisher.shape, fisher.dtype))]
        total, squares, own = fisher.scan(add, (zero, zero, zero), starts)
    means = [s / len(starts) for s in total]
    # The product of the moments of samples of two units has the mean V^2.
    products = [(s**2 - q - last**2) / pairs for s, q, last in zip(total, squares, own, strict=True)]
    return Moments(means, [V**2 - square for V, square in zip(means, products, strict=True)])


def _cleaned(value: Array | None, V: Array, count: float, units: Units) -> EigenvalueBlock:
    """Return a block in units of F, without what rounding left of zeros: an error is infinite or not, by a zero."""
    unit, rounding = units
    value = None if value is None else jnp.where(value / unit > rounding, value / unit, 0)
    outside = value is None or value == 0
    return EigenvalueBlock(value, jnp.where(outside & (rounding > V), 0, V), count)


@partial(jax.jit, static_argnums=(0, 1))
def scale_of(structure: Structure, divergence: Divergence, params: Params, fisher: Fisher, units: Units) -> Float[Array, ""]:
    """Return the t for which t F~ is nearest to a Fisher."""
    with jax.default_matmul_precision("highest"):
        blocks = structure.eigenvalue_blocks(params, fisher)
    return best_scale([_cleaned(value, V / units.unit, c, units) for value, V, c in blocks], divergence)

"""How near a fit is to F in each of the three divergences: the columns of the lens."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fimlens.divergence import Divergence, Frobenius, LogDet, VonNeumann
from fimlens.fisher.fisher import Fisher
from fimlens.member import EigenvalueBlock
from fimlens.solver.fit import in_units, isotropic_excess, split
from fimlens.structure import Params, Structure

DIVERGENCES = {"Frobenius": Frobenius(), "von Neumann": VonNeumann(), "LogDet": LogDet()}


def divergence_name(printed: str) -> str:
    """Return the name of a divergence in words, given how it prints: "von Neumann" for "VonNeumann()"."""
    return next((name for name, divergence in DIVERGENCES.items() if str(divergence) == printed), printed)


class Nearness(NamedTuple):
    """How near a fit is to F in one divergence. Smaller is nearer; the nearest multiple c I of the identity sets the scale.

    An error is a share, D(F, F~) / D(F, c I): 1 for c I, and 0 for F itself. LogDet is infinite where F is singular. There an
    error is in nats: the Gaussian negative log-likelihood of a gradient under F~, per entry, less that under c I.

    Attributes:
        claim: the name of what the structure claims of its fit in this divergence; None where it claims nothing.
        unit: "share" or "nats".
        error: basis + spectrum.
        basis: what the best eigenvalues in that basis would leave; None where it is infinite.
        spectrum: what the eigenvalues add; None where `basis` is.
        scaled: the error of t F~, at the best scalar t. It compares optimizers whose learning rate is tuned.
    """

    claim: str | None
    unit: str
    error: float
    basis: float | None
    spectrum: float | None
    scaled: float


def measure_nearness(structure: Structure, fitted: Params, fisher: Fisher) -> dict[str, Nearness]:
    """Return how near a fit is, by the names of `DIVERGENCES`."""
    unit, count = fisher.unit, math.prod(fisher.shape)
    blocks = _blocks(structure, fitted, fisher, unit)
    mean = jnp.mean(fisher.second_moment()) / unit
    found = {}
    for name, divergence in DIVERGENCES.items():
        trace = divergence.trace(fisher, unit)
        error, basis, spectrum, scaled = map(float, _errors(divergence, count, blocks, trace, mean))
        claim = structure.claim_in(divergence)
        parts = (basis, spectrum) if math.isfinite(basis) else (None, None)
        kind = "share" if jnp.isfinite(trace) else "nats"
        found[name] = Nearness(None if claim is None else claim.name, kind, error, *parts, scaled)
    return found


@partial(jax.jit, static_argnums=0)
def _blocks(structure: Structure, fitted: Params, fisher: Fisher, unit: Float[Array, ""]) -> list[EigenvalueBlock]:
    """Return the eigenvalue blocks in units of F, with eigenvalues of rounding size set to 0, whose logarithm means nothing."""

    def cleaned(value: Array | None, V: Array, count: float) -> EigenvalueBlock:
        rounding = None if value is None else 1000 * jnp.finfo(value.dtype).eps * unit > jnp.abs(value)
        return EigenvalueBlock(None if value is None else jnp.where(rounding, 0, value), V, count)

    return in_units([cleaned(*block) for block in structure.eigenvalue_blocks(fitted, fisher)], unit, unit)


@partial(jax.jit, static_argnums=(0, 1))
def _errors(
    divergence: Divergence, count: int, blocks: list[EigenvalueBlock], trace: Float[Array, ""], mean: Float[Array, ""]
) -> tuple[Array, Array, Array, Array]:
    """Return the error, its two parts and the error at the best scale."""
    mean = jnp.where(mean > 0, mean, 1)
    of_isotropic = isotropic_excess(divergence, mean, count)
    singular = jnp.isinf(trace)
    # D less an infinite tr phi(F) is twice a log-likelihood, up to a constant that cancels in the difference to c I's.
    trace = jnp.where(singular, -of_isotropic, trace)
    size = jnp.where(singular, 2 * count, trace + of_isotropic)
    total, basis, spectrum = split(blocks, divergence, trace)
    scaled, *_ = split(at_best_scale(blocks, divergence), divergence, trace)
    return tuple(part / jnp.where(size > 0, size, 1) for part in (total, basis, spectrum, scaled))


def at_best_scale(blocks: list[EigenvalueBlock], divergence: Divergence) -> list[EigenvalueBlock]:
    """Return the blocks of t F~, the nearest multiple."""
    t = best_scale(blocks, divergence)
    return [block._replace(eigenvalue=None if block.eigenvalue is None else t * block.eigenvalue) for block in blocks]


def best_scale(blocks: list[EigenvalueBlock], divergence: Divergence) -> Float[Array, ""]:
    """Return t = tr(F F~^(b-1)) / tr F~^b, for which t F~ is nearest to F in a divergence of degree b; 1 where it is 0."""
    seen = [block for block in blocks if block.eigenvalue is not None]
    weights = [c * divergence.weight(value) for value, _, c in seen]
    of_F, of_member = (sum(jnp.vdot(w, block[k]) for w, block in zip(weights, seen, strict=True)) for k in (1, 0))
    t = of_F / jnp.where(of_member > 0, of_member, 1)
    return jnp.where(t > 0, t, 1)

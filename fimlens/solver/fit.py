"""The questions that every structure answers: its member for a Fisher, the gap, and the sizes of family and state."""

import math
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Bool, Float

from fimlens.divergence import FROBENIUS, Divergence, excess, require_divergence
from fimlens.fisher.fisher import Fisher
from fimlens.solver.sizes import unsuited, zero_state
from fimlens.structure import EigenvalueBlock, Params, Structure

NEGATIVE_TOLERANCE = 1e-9  # an eigenvalue may be this far below zero, relative to the largest, by rounding


class Gap(NamedTuple):
    """The answer of `gap`: the divergence D(F, F~), split into what the basis misses and what the eigenvalues miss.

    Use `relative` or `share` to compare: they hold at every scale. In float32 the Frobenius norm's other three do not hold
    fourth powers of gradients below 1e-9 or above 1e9. Each field is a scalar array.

    Attributes:
        total: D(F, F~) = basis + spectrum; ||F~ - F||_F^2 by default. It may be infinite where F or F~ is singular.
        basis: the error that the best eigenvalues would leave in this basis; None where it is infinite.
        spectrum: the error of the eigenvalues, given the basis; None where `basis` is.
        relative: total over the size of F in the divergence: ||F||_F^2, tr F under von Neumann, mn under LogDet.
        share: total over D(F, cI), with cI the nearest multiple of the identity: 1 for it, and 0 for F itself.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> fisher = fl.Fisher.from_gradients(jnp.array([[[1.0, 2.0], [3.0, 4.0]]]))
        >>> gap = fl.gap(fl.Rows(), fl.fit(fl.Rows(), fisher), fisher)
        >>> print(f"{gap.total:.1f} = {gap.basis:.1f} + {gap.spectrum:.1f}, relative {gap.relative:.3f}")
        575.0 = 546.0 + 29.0, relative 0.639
    """

    total: Float[Array, ""]
    basis: Float[Array, ""] | None
    spectrum: Float[Array, ""] | None
    relative: Float[Array, ""]
    share: Float[Array, ""]


class Unsuited(ValueError):
    """A structure that has no fit here, by its nature and by no fault: it does not suit the shape, or there is no minimum."""


def fit(structure: Structure, fisher: Fisher, *, key: Array | None = None) -> Params:
    """Fit a structure to a Fisher by its closed form: find the basis, then the nearest eigenvalues in it.

    `structure.claim` tells what the closed form minimises, `gap` how far the member is from the Fisher, and `solve` whether
    another member is nearer.

    Args:
        structure: the family, such as fl.Diagonal().
        fisher: the Fisher of one (m, n) matrix.
        key: draws the basis of structures whose basis is random; jax.random.key(0) by default.

    Returns:
        The member F~, as a `Params`: `structure.dense(params)` writes it out, and `structure.apply` multiplies by it.

    Raises:
        TypeError: `structure` is not a Structure instance, or `fisher` is not a Fisher.
        ValueError: the structure does not suit the shape, or its divergence has no minimum: LogDet has none where F has zeros
            that the family can follow. Tracers, as under jit, are not refused.

    Examples:
        >>> import jax, fimlens as fl
        >>> fisher = fl.Fisher.from_gradients(jax.random.normal(jax.random.key(0), (8, 3, 4)))
        >>> fl.fit(fl.Rows(), fisher).coords.shape
        (3, 1)
    """
    require_structure_and_fisher("fit", structure, fisher)
    try:
        params = unchecked_fit(structure, fisher, jax.random.key(0) if key is None else key)
    except ValueError as error:
        if reason := unsuited(structure, fisher.shape):  # asked only now, as it takes longer than a small fit
            raise Unsuited(reason) from error
        raise
    require_minimum("fit", structure, params, fisher, structure.divergence)
    return params


@partial(jax.jit, static_argnums=0)
def unchecked_fit(structure: Structure, fisher: Fisher, key: Array) -> Params:
    """Return `fit` for arguments that are known to fit together, whether or not there is a minimum."""
    # Accelerators multiply with fewer bits by default, which second moments do not survive.
    with jax.default_matmul_precision("highest"):
        frame = structure.converged_basis(fisher, key)
        return structure.fit(structure.stats(fisher, Params(frame, None)), frame)


def require_minimum(call: str, structure: Structure, params: Params, fisher: Fisher, divergence: Divergence) -> None:
    """Refuse, in the name of the call, a Fisher on which the divergence has no minimum in the frame of `params`."""
    if divergence.finite_at_zero or any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((params, fisher))):
        return
    if reason := structure.no_minimum(params, fisher, divergence):
        raise no_minimum(f"{call}: {divergence} has no minimum over {structure} here: {reason}")


def no_minimum(finding: str) -> Unsuited:
    """Return the error of a divergence that has no minimum, with the remedy."""
    return Unsuited(f"{finding}. Take more gradients, or a divergence that is finite at 0, such as fl.Beta(0.5).")


def gap(structure: Structure, params: Params, fisher: Fisher, *, divergence: Divergence = FROBENIUS) -> Gap:
    """Measure how far a member is from a Fisher, and how much of that its basis is to blame for.

    Nothing of size mn x mn is built, unless the Fisher or the structure is dense itself. Parameters with a negative eigenvalue,
    which are no member, are measured like any other; `check` and `solve` detect them.

    Args:
        structure: the family.
        params: a member of it, from `fit`, from `solve` or from an optimizer's state.
        fisher: the Fisher of a matrix of the same shape.
        divergence: in which sense; by default the Frobenius norm, whatever the structure's own is.

    Returns:
        A `Gap`: the error, its two parts, and its size relative to that of F.

    Raises:
        TypeError: `structure` is not a Structure instance, `fisher` not a Fisher, or `divergence` not a Divergence.
        ValueError: the member and the Fisher have different shapes, or the member belongs to another structure.

    Examples:
        >>> import jax, fimlens as fl
        >>> fisher = fl.Fisher.from_gradients(jax.random.normal(jax.random.key(0), (8, 3, 4)))
        >>> adam = fl.gap(fl.Diagonal(), fl.fit(fl.Diagonal(), fisher), fisher)
        >>> float(adam.spectrum)  # all of Adam's error is in its basis
        0.0
    """
    require_structure_and_fisher("gap", structure, fisher)
    if params.frame.shape != fisher.shape:
        raise ValueError(
            f"gap: the member is for a {params.frame.shape} matrix and the Fisher for a {fisher.shape} one. "
            "Fit it to this Fisher."
        )
    # With arrays of other shapes, broadcasting could go through and give a wrong number.
    if jax.tree.map(jnp.shape, params) != _member_shapes(structure, fisher.shape):
        raise ValueError(
            f"gap: the member is not one of {structure}, whose bases and coordinates have other shapes. "
            "Give the structure that it was fitted with."
        )
    require_divergence("gap", divergence)
    return unchecked_gap(structure, params, fisher, divergence)


def unchecked_gap(structure: Structure, params: Params, fisher: Fisher, divergence: Divergence = FROBENIUS) -> Gap:
    """Return `gap` for arguments that are known to fit together."""
    unit = fisher.unit if divergence.degree is not None else jnp.ones_like(fisher.unit)
    found = gap_in_units(structure, params, fisher, divergence, unit, divergence.trace(fisher, unit))
    known = isinstance(found.basis, jax.core.Tracer) or bool(jnp.isfinite(found.basis))
    return found if known else found._replace(basis=None, spectrum=None)


@partial(jax.jit, static_argnums=(0, 3))
def gap_in_units(
    structure: Structure,
    params: Params,
    fisher: Fisher,
    divergence: Divergence,
    unit: Float[Array, ""],
    trace: Float[Array, ""],
) -> Gap:
    """Return the gap, given a unit, by default the largest second moment, and tr phi(F / unit).

    Everything is computed in that unit, so that no square leaves float32.
    """
    with jax.default_matmul_precision("highest"):
        blocks = in_units(structure.eigenvalue_blocks(params, fisher), unit, fisher.unit)
        total, basis, spectrum = split(blocks, divergence, trace)
        mean = jnp.mean(fisher.second_moment()) / unit
        isotropic = trace + isotropic_excess(divergence, mean, math.prod(fisher.shape))
        # An infinite tr phi(F) is the whole answer, from which nothing can be subtracted.
        total, basis, spectrum = (jnp.where(jnp.isinf(trace), jnp.inf, part) for part in (total, basis, spectrum))
        share = jnp.where(jnp.isinf(total), jnp.inf, total / jnp.where(isotropic > 0, isotropic, 1))
        relative = total / divergence.size(trace, mean, math.prod(fisher.shape))
        # unit^degree in two factors: unit^2 may overflow where its product with a part does not.
        half = unit ** ((divergence.degree or 0) / 2)
        return Gap(*(half * (half * part) for part in (total, basis, spectrum)), relative, share)


def split(
    blocks: list[EigenvalueBlock], divergence: Divergence, trace: Float[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Return D(F, F~), the basis error and the spectrum error, given the eigenvalue blocks of F~ and tr phi(F)."""
    seen = [block for block in blocks if block.eigenvalue is not None]
    spectrum = sum(c * jnp.sum(divergence.between(V, value)) for value, V, c in seen)
    # Directions outside the range have no eigenvalue that could be better: their error is the basis'.
    outside = excess([block for block in blocks if block.eigenvalue is None], divergence)
    basis = trace - sum(c * jnp.sum(divergence.phi(V)) for _, V, c in seen) + outside
    return trace + excess(blocks, divergence), basis, spectrum


def isotropic_excess(divergence: Divergence, mean: Float[Array, ""], count: int) -> Float[Array, ""]:
    """Return D(F, c I) - tr phi(F) for the nearest c, which is the mean of F's `count` eigenvalues."""
    return excess([EigenvalueBlock(mean, mean, count)], divergence)


def in_units(blocks: list[EigenvalueBlock], unit: Float[Array, ""], largest: Float[Array, ""]) -> list[EigenvalueBlock]:
    """Return the blocks of F~ / unit and F / unit without rounding, given the largest second moment of F."""
    cleaned = without_rounding(blocks, largest)
    return [EigenvalueBlock(None if value is None else value / unit, V / unit, count) for value, V, count in cleaned]


def without_rounding(blocks: list[EigenvalueBlock], largest: Float[ArrayLike, ""]) -> list[EigenvalueBlock]:
    """Return the blocks with zeros where rounding left second moments, far below the largest, beside eigenvalues of 0."""

    def cleaned(value: Array | None, V: Array, count: float) -> EigenvalueBlock:
        rounding = (value is None or value == 0) & (1000 * jnp.finfo(V.dtype).eps * largest > V)
        return EigenvalueBlock(value, jnp.where(rounding, 0, V), count)

    return [cleaned(*block) for block in blocks]


@partial(jax.jit, static_argnums=0)
def least_eigenvalue(structure: Structure, params: Params) -> Float[Array, ""]:
    """Return the least eigenvalue relative to the largest in size. It is negative only for a matrix that is no member."""
    values = ravel_pytree(structure.eigenvalues(params))[0]
    size = jnp.abs(values).max()
    return values.min() / jnp.where(size > 0, size, 1)


def is_member(structure: Structure, params: Params) -> Bool[Array, ""]:
    """Return whether no eigenvalue is negative by more than rounding."""
    return least_eigenvalue(structure, params) >= -NEGATIVE_TOLERANCE


@lru_cache
def _member_shapes(structure: Structure, shape: tuple[int, int]) -> Params:
    """Return the shapes of the arrays of a member."""
    frame, fits = jax.eval_shape(lambda: zero_state(structure, shape, "fits"))
    return jax.tree.map(jnp.shape, Params(frame, fits.spectrum))


def require_structure_and_fisher(call: str, structure: object, fisher: object) -> None:
    """Refuse anything but a structure and a Fisher."""
    if not isinstance(structure, Structure):
        raise TypeError(
            f"{call}: the first argument is a structure, such as fl.Diagonal(); got {structure!r}. Classes need ()."
        )
    if not isinstance(fisher, Fisher):
        raise TypeError(
            f"{call}: expected a Fisher, got {type(fisher).__name__}. "
            "Gradients (N, m, n) become one by fl.Fisher.from_gradients(G)."
        )

"""Derived once, for every structure: the nearest member, its gap, and the sizes of family and state."""

from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from fimlens.fisher.fisher import Fisher
from fimlens.fisher.limits import require_dense
from fimlens.structure import EigenvalueBlock, Params, Structure

AT_ROUNDING = 1e-9  # of an eigenvalue below zero, in units of the largest


class Gap(NamedTuple):
    """||F~ - F||_F^2, in two parts: what the basis misses, and what the eigenvalues miss in that basis.

    `relative` is total / ||F||^2. Each is a scalar array. In float32, gradients below 1e-9 or above 1e9 have fourth powers that
    it cannot hold, and `total`, `basis` and `spectrum` with them; `relative` holds at every scale. Parameters with negative
    eigenvalues, which name no member, are measured like any; `check` and `solve` tell them apart.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> fisher = fl.Fisher.from_gradients(jnp.array([[[1.0, 2.0], [3.0, 4.0]]]))
        >>> gap = fl.gap(fl.Rows(), fl.fit(fl.Rows(), fisher), fisher)
        >>> print(f"{gap.total:.1f} = {gap.basis:.1f} + {gap.spectrum:.1f}, relative {gap.relative:.3f}")
        575.0 = 546.0 + 29.0, relative 0.639
    """

    total: Float[Array, ""]
    basis: Float[Array, ""]
    spectrum: Float[Array, ""]
    relative: Float[Array, ""]


def fit(structure: Structure, fisher: Fisher, *, key: Array | None = None) -> Params:
    """The member that the structure's closed form gives for a Fisher: frame at rest, then the nearest eigenvalues.

    What the closed form is worth is `structure.claim`; how far the member is, `gap` says. `key` serves
    structures whose frame is drawn at random, and is jax.random.key(0) by default.

    Raises:
        TypeError: an argument is not a Structure instance, or not a Fisher.
        ValueError: the structure does not suit the shape.

    Examples:
        >>> import jax, fimlens as fl
        >>> fisher = fl.Fisher.from_gradients(jax.random.normal(jax.random.key(0), (8, 3, 4)))
        >>> fl.fit(fl.Rows(), fisher).coords.shape
        (3, 1)
    """
    require("fit", structure, fisher)
    return _fit(structure, fisher, jax.random.key(0) if key is None else key)


@partial(jax.jit, static_argnums=0)
def _fit(structure: Structure, fisher: Fisher, key: Array) -> Params:
    with jax.default_matmul_precision("highest"):
        frame = structure.converged_basis(fisher, key)
        return structure.fit(structure.stats(fisher, frame), frame)


def gap(structure: Structure, params: Params, fisher: Fisher) -> Gap:
    """How far a member is from a Fisher, from samples as from the dense form, without building mn x mn.

    Raises:
        TypeError: an argument is not a Structure instance, or not a Fisher.
        ValueError: member and Fisher are of different shapes, or the member is not one of this structure.

    Examples:
        >>> import jax, fimlens as fl
        >>> fisher = fl.Fisher.from_gradients(jax.random.normal(jax.random.key(0), (8, 3, 4)))
        >>> adam = fl.gap(fl.Diagonal(), fl.fit(fl.Diagonal(), fisher), fisher)
        >>> float(adam.spectrum)  # all of Adam's error is in its basis
        0.0
    """
    require("gap", structure, fisher)
    if params.frame.shape != fisher.shape:
        raise ValueError(
            f"gap: the member is for a {params.frame.shape} matrix and the Fisher for a {fisher.shape} one. "
            "Fit it to this Fisher."
        )
    if jax.tree.map(jnp.shape, params) != _layout(structure, fisher.shape):
        raise ValueError(
            f"gap: the member is not one of {structure}, whose bases and coordinates have other shapes. "
            "Give the structure that it was fitted with."
        )
    return measure(structure, params, fisher)


def measure(structure: Structure, params: Params, fisher: Fisher) -> Gap:
    """`gap`, of arguments that are known to suit."""
    return _gap(structure, params, fisher, fisher.unit, fisher.norm_squared_in_units)


@partial(jax.jit, static_argnums=0)
def _gap(structure: Structure, params: Params, fisher: Fisher, unit: Float[Array, ""], norm_squared: Float[Array, ""]) -> Gap:
    """In units of the largest second moment until the end, so that no square leaves float32."""
    with jax.default_matmul_precision("highest"):
        levels = [EigenvalueBlock(value / unit, V / unit, c) for value, V, c in structure.eigenvalue_blocks(params, fisher)]
        size = sum(c * jnp.sum(value**2) for value, _, c in levels)
        total = norm_squared - 2 * fisher.inner(lambda G: structure.apply(params, G / unit, lambda x: x / unit)) + size
        basis = norm_squared - sum(c * jnp.sum(V**2) for _, V, c in levels)
        spectrum = sum(c * jnp.sum((value - V) ** 2) for value, V, c in levels)
        relative = total / jnp.where(norm_squared > 0, norm_squared, 1)
        return Gap(*(unit * (unit * part) for part in (total, basis, spectrum)), relative)


def least_eigenvalue(structure: Structure, params: Params) -> Float[Array, ""]:
    """In units of the largest in size; a Fisher has no negative one."""
    values = ravel_pytree(structure.eigenvalues(params))[0]
    size = jnp.abs(values).max()
    return values.min() / jnp.where(size > 0, size, 1)


def is_member(structure: Structure, params: Params) -> Bool[Array, ""]:
    """Whether no eigenvalue is negative by more than rounding."""
    return least_eigenvalue(structure, params) >= -AT_ROUNDING


@lru_cache
def _layout(structure: Structure, shape: tuple[int, int]) -> Params:
    """The shapes of a member's arrays."""
    return jax.tree.map(jnp.shape, Params(*jax.eval_shape(lambda: zero_state(structure, shape, "fits"))))


def dimension(structure: Structure, shape: tuple[int, int], *, seed: int = 0) -> int:
    """The dimension of the family: the rank of the Jacobian of z -> dense(chart(z)) at a random member.

    Raises:
        ValueError: the structure does not suit the shape, or the matrix is too large.

    Examples:
        >>> import fimlens as fl
        >>> fl.dimension(fl.RowColumn(), (3, 4))  # m + n - 1: one number only scales q against s
        6
    """
    require_dense("dimension", "Take a smaller matrix.", shape)
    with jax.enable_x64(True):
        member = structure.isotropic(*shape)
        flat, unravel = ravel_pytree(member)
        z = jax.random.normal(jax.random.key(seed), flat.shape)
        jacobian = jax.jacfwd(lambda z: structure.dense(structure.chart(unravel(z), member)).reshape(-1))(z)
        return int(jnp.linalg.matrix_rank(jacobian, rtol=1e-9))


def state_size(structure: Structure, shape: tuple[int, int], *, average: str = "statistics") -> int:
    """How many numbers an optimizer keeps for one matrix: the frame, and averaged statistics or averaged fits.

    Momentum (m n) and counters come on top. Counted by `jax.eval_shape`, so nothing is allocated.

    Raises:
        ValueError: `average` is neither "statistics" nor "fits", or the structure does not suit the shape.

    Examples:
        >>> import fimlens as fl
        >>> fl.state_size(fl.RowColumn(), (512, 1376)), fl.state_size(fl.RowColumn(), (512, 1376), average="fits")
        (704512, 1888)
    """
    slot = jax.eval_shape(lambda: zero_state(structure, shape, average))
    return sum(leaf.size for leaf in jax.tree.leaves(slot))


def zero_state(structure: Structure, shape: tuple[int, int], average: str, dtype: Any = jnp.float32) -> tuple[Any, Any]:
    """The first frame, and zeros where statistics or fits will be averaged."""
    if average not in ("statistics", "fits"):
        raise ValueError(f'average is "statistics" or "fits"; got {average!r}')
    frame = jax.tree.map(lambda U: U.astype(dtype), structure.frame(*shape))

    def averaged() -> Any:
        stats = structure.stats(Fisher.from_gradients(jnp.zeros((1, *shape), dtype)), frame)
        return stats if average == "statistics" else structure.fit(stats, frame).coords

    # Only the layout is wanted: an eager evaluation would compile a program for each of its operations.
    return frame, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(averaged))


def require(call: str, structure: object, fisher: object) -> None:
    """Refuse what is not a structure or not a Fisher, by name."""
    if not isinstance(structure, Structure):
        raise TypeError(
            f"{call}: the first argument is a structure, such as fl.Diagonal(); got {structure!r}. Classes need ()."
        )
    if not isinstance(fisher, Fisher):
        raise TypeError(
            f"{call}: expected a Fisher, got {type(fisher).__name__}. "
            "Gradients (N, m, n) become one by fl.Fisher.from_gradients(G)."
        )

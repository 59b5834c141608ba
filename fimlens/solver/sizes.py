"""The sizes of a structure: the dimension of its family, the layout of its state, and how many numbers that holds."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from fimlens.fisher.fisher import Fisher, unvec
from fimlens.fisher.limits import require_dense
from fimlens.fisher.sample_form import SampleFisher
from fimlens.linalg.bases import cast_floating
from fimlens.structure import Frame, Params, Statistics, Structure, Tree


def dimension(structure: Structure, shape: tuple[int, int], *, seed: int = 0) -> int:
    """Count the parameters of a family: the dimension of the set of its members, without redundant ones.

    Computed as the rank of the Jacobian of z -> dense(chart(z)) at a random member.

    Args:
        structure: the family.
        shape: (m, n) of the weight matrix; a small one, as matrices of size mn x mn are built.
        seed: draws the member.

    Raises:
        ValueError: the structure does not suit the shape, or the matrix is too large.

    Examples:
        >>> import fimlens as fl
        >>> fl.dimension(fl.RowColumn(), (3, 4))  # m + n - 1: one number only scales q against s
        6
    """
    require_dense("dimension", "Take a smaller matrix.", shape)
    # A rank is decided by small singular values, so in float64.
    with jax.enable_x64(True):
        member = isotropic(structure, shape)
        flat, unravel = ravel_pytree(member)
        z = jax.random.normal(jax.random.key(seed), flat.shape)
        jacobian = jax.jacfwd(lambda z: structure.dense(structure.chart(unravel(z), member)).reshape(-1))(z)
        return int(jnp.linalg.matrix_rank(jacobian, rtol=1e-9))


def state_size(structure: Structure, shape: tuple[int, int], *, average: str = "statistics") -> int:
    """Count the numbers that `scale_by_structure` stores for one matrix, without momentum (m n more) and counters.

    Nothing is allocated, so any shape will do.

    Args:
        structure: the family.
        shape: (m, n) of the weight matrix.
        average: what the optimizer averages: "statistics", as it does by default, or "fits".

    Raises:
        ValueError: `average` is neither "statistics" nor "fits", or the structure does not suit the shape.

    Examples:
        >>> import fimlens as fl
        >>> fl.state_size(fl.RowColumn(), (512, 1376)), fl.state_size(fl.RowColumn(), (512, 1376), average="fits")
        (704512, 1888)
    """
    slot = jax.eval_shape(lambda: zero_state(structure, shape, average))
    return sum(leaf.size for leaf in jax.tree.leaves(slot))


def zero_state(
    structure: Structure, shape: tuple[int, int], average: str, dtype: Any = jnp.float32
) -> tuple[Frame, Statistics]:
    """Return the first frame, and zeros in the layout of what is averaged: "statistics" or "fits"."""
    layout = averaged_layout(structure, shape, average, dtype)
    return first_frame(structure, shape, dtype), jax.tree.map(jnp.zeros_like, layout)


def unsuited(structure: Structure, shape: tuple[int, int]) -> str | None:
    """Return what a structure says of a shape that it does not suit; None of one that it suits."""
    try:
        jax.eval_shape(partial(structure.frame, *shape))
    except ValueError as error:
        return str(error)
    return None


def first_frame(structure: Structure, shape: tuple[int, int], dtype: Any) -> Frame:
    """Return the frame before any gradient is seen."""
    return cast_floating(structure.frame(*shape), dtype)


def averaged_layout(structure: Structure, shape: tuple[int, int], average: str, dtype: Any) -> Statistics:
    """Return the shapes and dtypes of what is averaged; nothing is computed."""
    if average not in ("statistics", "fits"):
        raise ValueError(f'average is "statistics" or "fits"; got {average!r}')
    frame = jax.eval_shape(partial(first_frame, structure, shape, dtype))
    return jax.eval_shape(partial(_averaged_of_one, structure, average), jax.ShapeDtypeStruct(shape, dtype), frame)


def _averaged_of_one(structure: Structure, average: str, G: Float[Array, "m n"], frame: Frame) -> Statistics:
    """What an optimizer averages, of one gradient; the structure itself knows the layout of its statistics."""
    stats = structure.stats(Fisher.of_one(G), Params(frame, None))
    return stats if average == "statistics" else Statistics(None, structure.fit(stats, frame).coords)


def frame_of(structure: Structure, shape: tuple[int, int], bases: Tree) -> Frame:
    """Undo `bases_of`, for matrices of this shape."""
    return jax.tree.structure(jax.eval_shape(partial(structure.frame, *shape))).unflatten(jax.tree.leaves(bases))


def isotropic(structure: Structure, shape: tuple[int, int], scale: float | Array = 1.0) -> Params:
    """Return the member nearest to F = scale * I, which is F itself on the family's range; for small matrices."""
    m, n = shape
    require_dense("isotropic", "Take a smaller matrix.", shape)
    units = jnp.sqrt(m * n * scale) * jax.vmap(lambda e: unvec(e, shape))(jnp.eye(m * n))
    frame = structure.frame(m, n)
    identity = SampleFisher("identity", "mean over unit matrices", units)
    return structure.fit(structure.stats(identity, Params(frame, None)), frame)

"""The dtypes in which an optimizer keeps its state between steps, and the last cast of its updates."""

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike


class StateDtypes(NamedTuple):
    """Dtypes of an optimizer's state, one for each kind of array; None keeps the dtype of the computation.

    Give it as `dtypes` to any optimizer or transform; a single dtype there stands for all three. Statistics are computed in
    float32 at least, whatever the dtype in which they are stored.

    Args:
        momentum: averages of gradients.
        second_moment: statistics that eigenvalues are fitted to, or averaged fits.
        basis: bases, and the covariances that they follow.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> tx = fl.scale_by_structure(fl.Diagonal(), dtypes=fl.StateDtypes(momentum=jnp.bfloat16))
        >>> state = tx.init(jnp.ones((2, 3)))
        >>> state.momentum.dtype.name, state.averaged.dtype.name
        ('bfloat16', 'float32')
    """

    momentum: DTypeLike | None = None
    second_moment: DTypeLike | None = None
    basis: DTypeLike | None = None


def state_dtypes(given: StateDtypes | DTypeLike | None) -> StateDtypes:
    """The three dtypes: as given, or one dtype for all."""
    return given if isinstance(given, StateDtypes) else StateDtypes(given, given, given)


def narrowed(x: Array, like: ArrayLike) -> Array:
    """The array in the dtype of `like`. A finite number beyond that dtype becomes its largest, and not infinite."""
    dtype = jnp.result_type(like)
    if x.dtype == dtype or not jnp.issubdtype(dtype, jnp.floating):
        return x.astype(dtype)
    limit = float(jnp.finfo(dtype).max)
    return jnp.where(jnp.isfinite(x), jnp.clip(x, -limit, limit), x).astype(dtype)

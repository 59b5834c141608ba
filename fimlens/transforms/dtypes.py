"""The dtypes in which an optimizer keeps its state between steps, and the last cast of its updates."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, PyTree


class StateDtypes(NamedTuple):
    """Dtypes of an optimizer's state, one for each kind of array; None keeps the dtype of the computation.

    Give it as `dtypes` to any optimizer or transform; a single dtype there stands for all three. Statistics are computed in
    float32 at least, whatever the dtype in which they are stored. To halve the state take bfloat16. In float16 the squares of
    gradients below about 1e-4 are zero, and those over 255 stop at its largest number.

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


def stored_in(dtype: DTypeLike | None, tree: PyTree) -> PyTree:
    """The tree in the dtype of its storage, `narrowed`; None leaves it as it is."""
    return tree if dtype is None else jax.tree.map(lambda x: narrowed(x, dtype), tree)


def narrowed(x: Array, like: ArrayLike | DTypeLike) -> Array:
    """The array in the dtype of `like`, which is an array or a dtype. A finite number beyond it becomes its largest."""
    dtype = jnp.result_type(like)
    if x.dtype == dtype or not jnp.issubdtype(dtype, jnp.floating):
        return x.astype(dtype)
    limit = float(jnp.finfo(dtype).max)
    return jnp.where(jnp.isfinite(x), jnp.clip(x, -limit, limit), x).astype(dtype)

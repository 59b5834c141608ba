"""The parts of a gradient that a low-rank structure tells apart, and the bases that part it."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from fimlens.structure import Frame, Tree


class Bases(NamedTuple):
    """U (m, r), V (n, s) or None where the right side is taken whole, and the inner structure's frame over the lead."""

    left: Float[Array, "m r"]
    right: Float[Array, "n s"] | None
    inner: Frame


class Parts(NamedTuple):
    """A value for each of the four parts of a gradient; None for a part that is empty or dropped.

    The lead is X = U^T G V. The rows are U^T G - X V^T, the columns G V - U X, and the tail is the rest of G. Where the right
    side is taken whole (V = I), the columns are G - U U^T G, and rows and tail are empty.
    """

    lead: Tree
    rows: Tree
    columns: Tree
    tail: Tree


def spread(U: Float[Array, "m r"], values: Float[Array, "..."]) -> Float[Array, "m m"]:
    """U diag(values) U^T, of one value per direction or of one for all."""
    return U @ jnp.diag(jnp.broadcast_to(values.ravel(), (U.shape[1],))) @ U.T

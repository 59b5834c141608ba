"""The update of a low-rank structure, from products of its thin bases with the gradient alone.

With A = U^T G, B = G V and X = U^T G V, no part outside the lead is formed: each is a difference, and so is its square.
The derivations prove these functions equal to what `LowRank` does with the parts written out. They take stacks of matrices.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from fimlens.linalg.spectral_functions import inverse_root
from fimlens.structure import Params
from fimlens.structures.low_rank import LowRank
from fimlens.structures.parts import Parts


class Projections(NamedTuple):
    """U and V, and A = U^T G, B = G V, X = U^T G V. With V = I, where the right side is taken whole, V and B are None and
    X is A."""

    U: Float[Array, "*stack m r"]
    V: Float[Array, "*stack n s"] | None
    A: Float[Array, "*stack r n"]
    B: Float[Array, "*stack m s"] | None
    X: Float[Array, "*stack r s"]


def low_rank_update(
    G: Float[Array, "*stack m n"], seen: Projections, D: Float[Array, "*stack r s"], scales: Parts
) -> Float[Array, "*stack m n"]:
    """U D V^T on the lead, and each part outside it times its scale: a per row, b per column, c for the tail.

    c G + U ((a - c) A + (D - (a + b - c) X) V^T) + (b - c) B V^T. With V = I this is U (D - b X) + b G, and U D where nothing
    is compensated. Source: [G] Algorithm 4, and docs/corner.md for both sides.
    """
    U, V, A, B, X = seen
    _, a, b, c = scales
    if V is None:
        return U @ D if b is None else U @ (D - b * X) + b * G
    if a is None and b is None and c is None:
        return U @ D @ V.mT
    a, b, c = (jnp.zeros((), G.dtype) if scale is None else scale for scale in (a, b, c))
    return c * G + U @ ((a - c) * A + (D - (a + b - c) * X) @ V.mT) + ((b - c) * B) @ V.mT


def squares_of(G: Float[Array, "*stack m n"], seen: Projections) -> Parts:
    """Sums of squares of what each part outside the lead is a part of: of the rows of A, the columns of B, and all of G."""
    _, V, A, B, _ = seen
    if V is None:
        return Parts(None, None, sums_of_squares(G, -2), None)
    return Parts(None, sums_of_squares(A, -1), sums_of_squares(B, -2), sums_of_squares(G, (-2, -1)))


def squares_outside(whole: Parts, seen: Projections) -> Parts:
    """Sums of squares of each part outside the lead, over the directions that no basis tells apart, given `squares_of`.

    Differences cancel: a sum that is only rounding of the whole is for the caller to see.
    """
    columns = whole.columns - sums_of_squares(seen.X, -2)
    if seen.V is None:
        return Parts(None, None, columns, None)
    lead_rows = sums_of_squares(seen.X, -1)
    rows_and_columns = whole.rows.sum(-2, keepdims=True) + whole.columns.sum(-1, keepdims=True)
    tail = whole.tail - rows_and_columns + lead_rows.sum(-2, keepdims=True)
    return Parts(None, whole.rows - lead_rows, columns, tail)


def sums_of_squares(X: Float[Array, "*stack m n"], axes: int | tuple[int, int]) -> Float[Array, "*stack #m #n"]:
    """Sums of squares along axes that are kept."""
    return jnp.sum(X**2, axes, keepdims=True)


def low_rank_update_of(
    structure: LowRank, member: Params, G: Float[Array, "m n"], eps: Float[ArrayLike, ""]
) -> Float[Array, "m n"]:
    """The update of one member, by `low_rank_update`: what a law holds against its dense form."""
    U, V, inner = member.frame.bases
    seen_G = structure.see(G)
    A = U.T @ seen_G
    seen = Projections(U, None, A, None, A) if V is None else Projections(U, V, A, G @ V, A @ V)
    lead = Params(inner, member.coords.lead)
    X = structure.inner.precondition(lead, structure.inner.to_eigenbasis(inner, seen.X), eps)
    scales = jax.tree.map(inverse_root(eps), member.coords._replace(lead=None))
    update = low_rank_update(seen_G, seen, structure.inner.from_eigenbasis(inner, X), scales)
    return structure.see(update, like=G)

"""Where LogDet has no minimum: second moments that are zero, and the reason in words.

LogDet gains without bound along an eigenvalue that falls to zero where F has nothing. In the other divergences of a degree over
0 such an eigenvalue is zero, and that is all. The functions here are for concrete arrays: a trained step is never refused.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from fimlens.fisher.fisher import Fisher
from fimlens.fisher.samples import Samples
from fimlens.member import EigenvalueBlock


def is_zero(V: Float[Array, "..."], fisher: Fisher) -> Bool[Array, "..."]:
    """Whether second moments are zero up to rounding, which samples square: they are means of squares."""
    rounding = 64 * jnp.finfo(fisher.dtype).eps
    return (rounding**2 if isinstance(fisher, Samples) else rounding) * fisher.unit >= V


def zero_means(blocks: list[EigenvalueBlock], fisher: Fisher) -> str | None:
    """The reason where eigenvalues, each a mean of second moments, are zero with them."""
    seen = [(value, V) for value, V, _ in blocks if value is not None]
    count = sum(int(jnp.sum(is_zero(value, fisher) & is_zero(V, fisher))) for value, V in seen)
    return f"F has no second moment along {count} of the directions of free eigenvalues" if count else None


def zero_sides(fisher: Fisher, left: Float[Array, "m m"] | None, right: Float[Array, "n n"] | None) -> str | None:
    """The reason where the covariance of a side is singular; None stands for the unit vectors of a side."""
    into_left, into_right = (lambda G: G if left is None else left.T @ G), (lambda G: G if right is None else G @ right)
    rows, columns = fisher.second_moment(into_left).max(1), fisher.second_moment(into_right).max(0)
    for side, V in (("rows", rows), ("columns", columns)):
        if count := int(is_zero(V, fisher).sum()):
            return f"the gradients have no part along {count} directions of the {len(V)} of their {side}"
    return None


def zero_block(V: Float[Array, "m n"], fisher: Fisher) -> str | None:
    """The reason where V is zero on a block of I rows and J columns with I / m + J / n over 1.

    Then the eigenvalues of the block fall to zero at the expense of larger ones, at a gain (Rothblum and Schneider, 1989). Such
    a block is a cut: a flow of n from each row and m to each column, along the entries that are not zero, is less than m n.

    With a sum of exactly 1 the gain is bounded. But only a limit of members reaches the bound, unless V is zero on the opposite
    block too. Eigenvalues of the block fall to zero as 1/k after k sweeps, and others grow as k.
    """
    seen = ~np.asarray(is_zero(V, fisher))
    m, n = seen.shape
    if seen.all():
        return None
    i, j = np.nonzero(seen)
    source, rows, columns, sink = 0, 1 + np.arange(m), 1 + m + np.arange(n), 1 + m + n
    tails = np.concatenate([np.full(m, source), rows[i], columns])
    heads = np.concatenate([rows, columns[j], np.full(n, sink)])
    capacity = np.concatenate([np.full(m, n), np.full(len(i), m * n), np.full(n, m)]).astype(np.int32)
    graph = csr_array((capacity, (tails, heads)), shape=(m + n + 2, m + n + 2))
    flow = maximum_flow(graph, source, sink)
    if flow.flow_value == m * n:
        return None
    reached = np.zeros(m + n + 2, bool)
    reached[breadth_first_order((graph - flow.flow) > 0, source, return_predecessors=False)] = True
    height, width = reached[rows].sum(), (~reached[columns]).sum()
    share = f"{height} / {m} + {width} / {n} > 1"
    return f"its second moments are zero on a block of {height} rows and {width} columns, and {share}"


def rank(fisher: Fisher) -> int:
    """The number of independent gradients."""
    # Of one size, so that no small one passes for rounding. `map` takes each gradient by itself, and need not be linear here.
    return int(jnp.sum((fisher.map(_of_one_size) if isinstance(fisher, Samples) else fisher).spectrum > 0))


def _of_one_size(gradient: Float[Array, "m n"]) -> Float[Array, "m n"]:
    size = jnp.abs(gradient).max()
    return gradient / jnp.where(size > 0, size, 1)

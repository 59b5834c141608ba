"""The parts of a gradient that a low-rank structure tells apart, and the bases that part it."""

from typing import NamedTuple

from jaxtyping import Array, Float

from fimlens.structure import Frame, Tree


class Bases(NamedTuple):
    """U (m, r), V (n, s) or None where the right side is taken whole, and the inner structure's frame over the lead."""

    left: Float[Array, "m r"]
    right: Float[Array, "n s"] | None
    inner: Frame


class Parts(NamedTuple):
    """One thing for each part of a gradient: of the lead X = U^T G V; of the rest of its rows, U^T G - X V^T; of the rest of
    its columns, G V - U X; and of the tail, all else. None for a part that is empty or dropped.

    With V = I, where the right side is taken whole, the columns are G - U U^T G, and rows and tail are empty.
    """

    lead: Tree
    rows: Tree
    columns: Tree
    tail: Tree

"""Which axes of a leaf are a matrix: declared by the user, as `Axes` or by a rule of path and leaf."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from fimlens.transforms.leaf_rules import Leaf, Rule, leaf_rule


class Axes(NamedTuple):
    """Declare which axes of a leaf are a matrix's inputs, which its outputs, and which index several matrices.

    Give it as `axes` to `as_matrix`, `matrices` or any full chain, for leaves of three axes or more, and for a leaf that holds
    several matrices side by side. The product x @ W sums over the reduction axes, so the matrix has shape (inputs, outputs).
    Negative axes count from the end.

    Args:
        reduction: the axes of the inputs.
        output: the axes of the outputs.
        batch: the axes that index matrices. Default: None, all axes that are not named.
        rows: number of equal blocks along the inputs, each a matrix of its own, such as the heads of an output projection.
            Default: 1.
        columns: number of equal blocks along the outputs, each a matrix of its own: 3 where a leaf holds Q, K and V side by
            side, or the number of heads. Default: 1.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> rows = fl.scale_by_structure(fl.Rows(), b1=None)
        >>> heads = fl.as_matrix(rows, fl.Axes(reduction=(0, 1), output=2))  # (heads, d_head, d): one matrix, 8 x 6
        >>> stack = fl.as_matrix(rows, fl.Axes(reduction=-2, output=-1, batch=0))  # two matrices, 4 x 6
        >>> [tx.init(jnp.ones((2, 4, 6))).averaged.shape for tx in (heads, stack)]
        [(8, 1), (2, 4, 1)]
        >>> fl.routes({"qkv": jnp.ones((4, 12))}, axes={"qkv": fl.Axes(columns=3)})  # three matrices, 4 x 4
        {'qkv': (3, 4, 4)}
    """

    reduction: int | tuple[int, ...] = 0
    output: int | tuple[int, ...] = 1
    batch: int | tuple[int, ...] | None = None
    rows: int = 1
    columns: int = 1


def flax_axes(path: str, leaf: Leaf) -> Axes | None:
    """Declare the axes of Flax's attention kernels: give it as `axes` for a model built of Flax's modules.

    The kernels "query", "key" and "value" have shape (inputs, heads, head size), and "out" has (heads, head size, outputs);
    each is one matrix. Axes before these index layers, as `nn.scan` and `nnx.scan` make them. All other leaves are left to the
    evidence that `fl.as_matrix` describes.

    Args:
        path: the path of a parameter, such as "MultiHeadDotProductAttention_0/query/kernel".
        leaf: the parameter, or its jax.ShapeDtypeStruct.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> attention = {"query": {"kernel": jnp.ones((6, 2, 4))}, "out": {"kernel": jnp.ones((2, 4, 6))}}
        >>> tx = fl.muon(0.02, axes=fl.flax_axes)
        >>> fl.routes(attention, axes=fl.flax_axes)
        {'out/kernel': (8, 6), 'query/kernel': (6, 8)}
        >>> fl.routes({"query": {"kernel": jnp.ones((3, 6, 2, 4))}}, axes=fl.flax_axes)  # three layers, scanned
        {'query/kernel': (3, 6, 8)}
    """
    words = path.removesuffix("/value").split("/")
    if jnp.ndim(leaf) < 3 or words[-1] != "kernel" or len(words) < 2:
        return None
    if words[-2] in ("query", "key", "value"):
        return Axes(-3, (-2, -1))
    return Axes((-3, -2), -1) if words[-2] == "out" else None


def axes_rule(axes: Axes | Rule | PyTree | None) -> Rule:
    """The rule that gives the declared axes of a leaf, or None where none are declared.

    Raises:
        ValueError: `axes` is of another kind.
    """
    if _is_axes(axes):
        return lambda path, leaf: axes if jnp.ndim(leaf) >= 2 else None
    return leaf_rule("as_matrix", axes, _is_axes, "axes are None or fl.Axes(reduction, output), such as fl.Axes(0, (1, 2))")


def _is_axes(x: Any) -> bool:
    return x is None or isinstance(x, Axes | optax.contrib.MuonDimensionNumbers)

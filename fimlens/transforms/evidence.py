"""Evidence of what the axes of a leaf are, where nobody declares them: names, biases, and what the leaves beside it share."""

import re
from collections import defaultdict
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import PyTree

from fimlens._validate import path_name
from fimlens.transforms.axes import Axes, flax_axes

UNKNOWN = "unknown"  # the axes of a leaf of three or more for which there is no evidence


Words = tuple[str, ...]  # a path, word by word


Shape = tuple[int, ...]


# A norm ends a word, as in LayerNorm_0, rms_norm, norms and ln_1; "normformer" is none. It names the leaf or its parent, unless
# the leaf is a kernel: a block may be named after the norm that it begins with.
NORM = r"([^/]*(?i:norm)s?(_?\d+|_?[a-z])?|NormLayer[^/]*|[^/]*(?i:normali[sz]ation)[^/]*|ln(_?\w)?)"


# Flax NNX ends every path with "value".
# Biases have suffixes in recurrent cells (bias_hh_l0) and attention (bq, b_q). Half of a LoRA, lora_b, is a matrix.
VECTOR = r"(\w+_)?(bias(_[a-z]{1,2}(_l\d+)?)?|scale|gain|shift|offset)|(gamma|beta|alpha|ls)(_?\d)?|temperature|layer_?scale\w*"
VECTORS = re.compile(rf"(^|/)((?i:{VECTOR})|b_?[a-z]?\d?|{NORM}(/(?!kernel)[^/]*)?)(/value)?$")


# Prefixes of paths whose leaves have one leading axis that indexes copies.
COPIES = re.compile(r"^(\w+_)?(layers|blocks|experts|repeats)$|^(\w+_)?(scan|stack|vmap)", re.IGNORECASE)


# Names that users of Flax give to the axes of parameters: those of copies, and those that together are one side of a matrix.
COPY_AXES = ("layer", "layers", "block", "blocks", "stack", "scan", "expert", "experts", "exp")
HEAD_AXES = ("head", "heads", "q_heads", "kv", "kv_heads", "head_dim", "kv_head_dim")


def recognise(tree: PyTree) -> dict[str, Axes | str | None]:
    """The axes of each leaf by path: `Axes` of a matrix, None for numbers and vectors (stacked ones too), or UNKNOWN.

    The evidence, first come first served:

    1. names of axes that Flax keeps with a parameter (`nn.with_partitioning`, `nnx.with_partitioning`);
    2. a leading axis that all leaves under one prefix share indexes copies of a layer. The prefix must say so ("layers",
       "blocks", "experts", "ScanBlock_0"), or biases or norms under it must have that axis too;
    3. of the axes after those, none or one is a vector and two are a matrix. Beyond two, kernels of Flax's attention, kernels
       whose bias tells how many axes are outputs, and convolutions, known by name, are one matrix.
    """
    leaves = {path_name(path): (words_of(path), jnp.shape(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    shapes = dict(leaves.values())
    under: dict[Words, list[Words]] = defaultdict(list)
    for words in shapes:
        for depth in range(len(words) + 1):
            under[words[:depth]].append(words)
    names = _axis_names(tree)
    is_copied: dict[tuple[Words, int], bool] = {}

    def copies(words: Words) -> int:
        """The number of leading axes that index copies."""
        count = 0
        for depth in range(len(words) + 1):
            key = words[:depth], count
            if key not in is_copied:
                is_copied[key] = _is_copied(*key, {words: shapes[words] for words in under[key[0]]})
            count += is_copied[key]
        return count

    def axes(words: Words, shape: Shape) -> Axes | str | None:
        named = _by_axis_names(names[words]) if words in names and len(names[words]) == len(shape) else UNKNOWN
        return _by_shapes(words, shapes, copies(words)) if named == UNKNOWN else named

    return {path: axes(*leaf) for path, leaf in leaves.items()}


def words_of(path: Any) -> Words:
    """The words of a path, without the attribute by which Flax's boxes hold their arrays."""
    boxed = path and isinstance(path[-1], jax.tree_util.GetAttrKey) and path[-1].name == "value"
    return tuple(path_name((key,)) for key in (path[:-1] if boxed else path))


def _axis_names(tree: PyTree) -> dict[Words, tuple[Any, ...]]:
    """The names of axes that Flax's boxes (Linen) and variables (NNX) keep with a parameter."""

    def names_of(x: Any) -> tuple[Any, ...]:
        names = x.get_metadata().get("out_sharding") if hasattr(x, "get_metadata") else getattr(x, "names", None)
        return tuple(names) if isinstance(names, tuple | PartitionSpec) else ()

    boxes = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: bool(names_of(x)))
    return {words_of(path): names for path, box in boxes if (names := names_of(box))}


def _by_axis_names(names: tuple[Any, ...]) -> Axes | str | None:
    sides: list[list[int]] = []
    for axis, name in enumerate(names):
        if name in COPY_AXES:
            continue
        if name in HEAD_AXES and axis and names[axis - 1] in HEAD_AXES:
            sides[-1].append(axis)
        else:
            sides.append([axis])
    if len(sides) > 2:
        return UNKNOWN
    return Axes(*map(tuple, sides)) if len(sides) == 2 else None


def _is_copied(prefix: Words, count: int, leaves: dict[Words, Shape]) -> bool:
    """Whether the axis after `count` others indexes copies in all leaves under the prefix."""
    if any(len(shape) <= count for shape in leaves.values()) or len({shape[count] for shape in leaves.values()}) != 1:
        return False
    vectors = {words: shape for words, shape in leaves.items() if VECTORS.search("/".join(words))}
    if any(len(shape) < count + 2 for shape in vectors.values()) or max(map(len, leaves.values())) < count + 3:
        return False  # a bias of one axis has none for copies, and a stack holds some matrices
    if prefix and COPIES.search(prefix[-1]):
        items = any(words[len(prefix) :][:1] and words[len(prefix)].isdigit() for words in leaves)  # of a list: no stack
        return not items and (bool(vectors) or not all(map(_is_convolution, leaves)))  # kernels may have one width
    # As many heads as inputs could be taken for layers, so a bias that ends its kernel's shape is no evidence.
    kernels = ((_beside(words, ("kernel", "w"), leaves) or (), shape) for words, shape in vectors.items())
    return bool(vectors) and not any(kernel[-len(shape) :] == shape for kernel, shape in kernels)


def _by_shapes(words: Words, shapes: dict[Words, Shape], copies: int) -> Axes | str | None:
    shape = shapes[words]
    rank = len(shape) - copies
    if rank < 2:
        return None
    if rank == 2:
        return Axes(-2, -1)
    if _is_attention(words[:-2], shapes) and (axes := flax_axes("/".join(words), jax.ShapeDtypeStruct(shape, "float32"))):
        return axes
    bias = (_beside(words, ("bias", "b"), shapes) or ())[copies:] if words[-1:] in (("kernel",), ("w",)) else ()
    outputs = len(bias) if bias and shape[-len(bias) :] == bias else 0
    if shape[-2] == 1 and re.search("depth_?wise", "/".join(words), re.IGNORECASE):
        return None  # each of its columns is a vector of its own
    if shape[-2] == 1 or not (outputs or _is_convolution(words)):  # depthwise, or a convolution of one channel: who knows
        return UNKNOWN
    first = len(shape) - max(outputs, 1)
    return Axes(tuple(range(copies, first)), tuple(range(first, len(shape))))


def _is_attention(module: Words, shapes: dict[Words, Shape]) -> bool:
    """Whether the kernels "query" and "out" of a module fit together as in Flax's attention."""
    query, out = (shapes.get((*module, name, "kernel"), ()) for name in ("query", "out"))
    fits = len(query) == len(out) >= 3 and query[-2:] == out[-3:-1]
    return fits and (query[:-3], query[-3]) == (out[:-3], out[-1])


def _is_convolution(words: Words) -> bool:
    """Whether names say so. A "weight" is PyTorch's and Equinox's, with its output first, and is left unknown."""
    return bool(re.search(r"conv[^/]*(/(kernel|w))?$", "/".join(words), re.IGNORECASE))


def _beside(words: Words, names: tuple[str, ...], shapes: dict[Words, Shape]) -> Shape | None:
    """The shape of the leaf of one of these names beside a leaf."""
    return next((shapes[other] for name in names if (other := (*words[:-1], name)) in shapes), None)

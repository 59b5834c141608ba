"""From any tree of parameters to matrices: which leaves a method takes, and how each is seen as a matrix."""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, PyTree

from fimlens.chain import guarded_adam
from fimlens.views import path_name

METHOD, OTHERS = "method", "others"
EMBEDDING = re.compile(r"embed|(^|_)emb$|^wte$|^wpe$", re.IGNORECASE)
HEAD = re.compile(r"^((lm|output|readout|classifier)_?)?head$|^(logits|unembed\w*|lm_output)$", re.IGNORECASE)
# Flax NNX ends paths with "value". A norm ends a word, as in LayerNorm_0, rms_norm, norms and ln_1, not as in normformer, and
# is the leaf or holds it, unless that is a kernel: a block may be named after the norm that it begins with.
NORM = r"([^/]*(?i:norm)s?(_?\d+|_?[a-z])?|NormLayer[^/]*|[^/]*(?i:normali[sz]ation)[^/]*|ln(_?\w)?)"
VECTORS = re.compile(rf"(^|/)((?i:bias|scale)|{NORM}(/(?!kernel)[^/]*)?)(/value)?$")

Leaf = ArrayLike | jax.ShapeDtypeStruct
Rule = Callable[[str, Leaf], Any]


class Axes(NamedTuple):
    """Which axes of a leaf are a matrix's inputs (`reduction`), its outputs, and which count more matrices (`batch`).

    x @ W sums over the reduction axes, so that the matrix has shape (inputs, outputs). `batch` may be left out: the
    axes not named. Negative axes count from the end.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> rows = fl.scale_by_structure(fl.Rows(), b1=None)
        >>> heads = fl.as_matrix(rows, fl.Axes(reduction=(0, 1), output=2))  # (heads, d_head, d): one matrix, 8 x 6
        >>> stack = fl.as_matrix(rows, fl.Axes(reduction=-2, output=-1, batch=0))  # two matrices, 4 x 6
        >>> [tx.init(jnp.ones((2, 4, 6))).averaged.shape for tx in (heads, stack)]
        [(8, 1), (2, 4, 1)]
    """

    reduction: int | tuple[int, ...] = 0
    output: int | tuple[int, ...] = 1
    batch: int | tuple[int, ...] | None = None


def matrices(
    tx: optax.GradientTransformation,
    others: optax.GradientTransformation | None = None,
    *,
    route: Rule | str | PyTree | None = None,
    head: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Give matrices to `tx`, and all else to `others`: Adam's direction by default.

    Both are directions, with neither rate nor sign: the rate comes after, as in the example. A full chain, such as
    `fl.racs(0.02)`, routes by itself; as `tx` it would descend while the default `others` goes up the gradient, unscaled.

    By default a leaf of two axes or more is a matrix unless its path names an embedding ("embed", "tok_emb", "wte", "wpe"),
    vectors that may be stacked (a last "bias" or "scale", or the leaf of a norm, such as "attention_norm" or "LayerNorm_0/w"),
    or, with `head` False, the output head ("head", "lm_head", "logits", "unembed"). Empty leaves go to the others. `routes`
    says what becomes of each.

    Args:
        tx: the method's direction.
        others: the other leaves' direction; by default Optax's Adam, of gradients clipped where squares would leave float32.
        route: in place of this rule, one of your own: a regular expression that the path of a matrix matches, such as
            "attention|mlp"; a function of path and leaf to bool; or a tree of bools like the parameters. For a bool may stand
            "method" or "others".
        head: whether the output head goes to the method.

    Raises:
        ValueError: the route is no regular expression, or says something else of a leaf, or nothing.

    Examples:
        >>> import jax.numpy as jnp, optax, fimlens as fl
        >>> tx = optax.chain(fl.matrices(fl.scale_by_racs()), optax.scale_by_learning_rate(0.02))
        >>> params = {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}
        >>> state = tx.init(params)
        >>> sorted(state[0].inner_states)
        ['method', 'others']
        >>> updates, state = tx.update(params, state, params)
        >>> bool((updates["kernel"] < 0).all()), bool((updates["bias"] < 0).all())
        (True, True)
    """
    rule = _routing("matrices", route, head)

    def labels(params: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(lambda path, leaf: METHOD if rule(path_name(path), leaf) else OTHERS, params)

    return optax.partition({METHOD: tx, OTHERS: guarded_adam() if others is None else others}, labels)


def routes(
    params: PyTree, *, route: Rule | str | PyTree | None = None, head: bool = False, axes: Axes | Rule | PyTree | None = None
) -> dict[str, tuple[int, ...] | None]:
    """Where each leaf goes, by path: the shape in which the method sees it, or None where the others have it.

    Args:
        params: arrays or jax.ShapeDtypeStructs.
        route, head: as in `matrices`, and in every full chain.
        axes: as in `as_matrix`, and in every full chain.

    Raises:
        ValueError: as `matrices` and `as_matrix`.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> params = {"conv": jnp.ones((3, 3, 2, 4)), "kernel": jnp.ones((2, 8)), "norm": jnp.ones(8)}
        >>> fl.routes(params)
        {'conv': (18, 4), 'kernel': (2, 8), 'norm': None}
        >>> fl.routes(params, route="kernel")
        {'conv': None, 'kernel': (2, 8), 'norm': None}
    """
    is_methods, rule = _routing("routes", route, head), _viewing(axes)
    leaves = [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
    return {path: _View(path, leaf, rule).matrix if is_methods(path, leaf) else None for path, leaf in leaves}


def as_matrix(
    tx: optax.GradientTransformation, axes: Axes | Rule | PyTree | None = None
) -> optax.GradientTransformationExtraArgs:
    """Let `tx` see every leaf as matrices, and undo it.

    Args:
        tx: the method; it sees leaves of shape (*batch, m, n), with m the product of the reduction axes.
        axes: `Axes`, or Optax's MuonDimensionNumbers, for all leaves; a function of path and leaf to either, or None; or
            a tree of them like the parameters. Where they say None: leaves of up to two axes are as they are, three
            are a stack of matrices, four or more a convolution kernel, whose last axis is the output.

    Raises:
        ValueError: the axes of a leaf are not all named once, or are not given as `Axes`.

    Examples:
        >>> import jax, jax.numpy as jnp, optax, fimlens as fl
        >>> tx = fl.as_matrix(fl.scale_by_structure(fl.Rows(), b1=None), fl.Axes(reduction=0, output=(1, 2)))
        >>> state = tx.init(jnp.ones((8, 2, 4)))  # an attention projection (d, heads, d_head)
        >>> state.averaged.shape
        (8, 1)
    """
    rule = _viewing(axes)
    tx = optax.with_extra_args_support(tx)

    def seen(tree: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(lambda path, leaf: _View(path_name(path), leaf, rule).forth(leaf), tree)

    def init(params: PyTree) -> Any:
        return tx.init(seen(params))

    def update(updates: PyTree, state: Any, params: PyTree = None, **extra: Any) -> tuple[PyTree, Any]:
        moved, state = tx.update(seen(updates), state, None if params is None else seen(params), **extra)
        back = jax.tree_util.tree_map_with_path(lambda path, g, u: _View(path_name(path), g, rule).back(u), updates, moved)
        return back, state

    return optax.GradientTransformationExtraArgs(init, update)


class _View:
    """One leaf as (*batch, m, n), and back."""

    def __init__(self, path: str, leaf: Leaf, rule: Rule) -> None:
        rank = jnp.ndim(leaf)
        declared = rule(path, leaf)
        self.matrix = jnp.shape(leaf)
        self.untouched = declared is None and rank < 4
        if self.untouched:
            return
        if declared is None:
            declared = Axes(tuple(range(rank - 1)), rank - 1, ())
        reduction, output = (_tuple(axes, rank) for axes in declared[:2])
        batch = declared.batch if isinstance(declared, Axes) else None
        left = tuple(axis for axis in range(rank) if axis not in reduction + output)
        batch = left if batch is None else _tuple(batch, rank)
        self.order = batch + reduction + output
        if sorted(self.order) != list(range(rank)) or not reduction or not output:
            raise ValueError(
                f"as_matrix: {path!r} has shape {jnp.shape(leaf)}; its axes are to be named once each, some as reduction and "
                f"some as output; got {declared}."
            )
        self.shape = tuple(leaf.shape[axis] for axis in self.order)
        sizes = [math.prod(leaf.shape[axis] for axis in axes) for axes in (reduction, output)]
        self.matrix = (*self.shape[: len(batch)], *sizes)

    def forth(self, leaf: Array) -> Array:
        return leaf if self.untouched else leaf.transpose(self.order).reshape(self.matrix)

    def back(self, matrix: Array) -> Array:
        if self.untouched:
            return matrix
        inverse = tuple(sorted(range(len(self.order)), key=self.order.__getitem__))
        return matrix.reshape(self.shape).transpose(inverse)


def _tuple(axes: int | tuple[int, ...], rank: int) -> tuple[int, ...]:
    return tuple(axis % rank if -rank <= axis < rank else axis for axis in ((axes,) if isinstance(axes, int) else axes))


def role(path: str) -> str | None:
    """What a parameter's path names: "head", "embedding", or neither."""
    words = path.split("/")
    patterns = (("head", HEAD), ("embedding", EMBEDDING))
    return next((role for role, pattern in patterns if any(map(pattern.search, words))), None)


def _is_matrix(path: str, leaf: Leaf, head: bool) -> bool:
    if not _has_sides(leaf) or VECTORS.search(path):
        return False
    return role(path) is None or (head and role(path) == "head")


def _has_sides(leaf: Leaf) -> bool:
    return jnp.ndim(leaf) >= 2 and 0 not in jnp.shape(leaf)


def _is_axes(x: Any) -> bool:
    return x is None or isinstance(x, Axes | optax.contrib.MuonDimensionNumbers)


def _is_routed(x: Any) -> bool:
    if isinstance(x, str):
        return x in (METHOD, OTHERS)
    return isinstance(x, bool) or getattr(x, "dtype", None) == jnp.dtype(bool)


def _routing(call: str, route: Rule | str | PyTree | None, head: bool) -> Rule:
    """Whether a leaf is the method's."""
    if route is None:
        return lambda path, leaf: _is_matrix(path, leaf, head)
    if isinstance(route, str):
        try:
            pattern = re.compile(route)
        except re.error as error:
            raise ValueError(f"{call}: route {route!r} is no regular expression: {error}.") from error
        return lambda path, leaf: _has_sides(leaf) and bool(pattern.search(path))
    expected = f'route says of each leaf True or "{METHOD}", or False or "{OTHERS}"'
    said = _said(call, route, _is_routed, expected)

    def is_methods(path: str, leaf: Leaf) -> bool:
        answer = said(path, leaf)
        return answer == METHOD if isinstance(answer, str) else bool(answer)

    return is_methods


def _viewing(axes: Axes | Rule | PyTree | None) -> Rule:
    """The axes of a leaf, or None."""
    if _is_axes(axes):
        return lambda path, leaf: axes if jnp.ndim(leaf) >= 2 else None
    return _said("as_matrix", axes, _is_axes, "axes are None or fl.Axes(reduction, output), such as fl.Axes(0, (1, 2))")


def _said(call: str, given: Rule | PyTree, is_answer: Callable[[Any], bool], expected: str) -> Rule:
    """What is said of each leaf: by a function, or by a tree, looked up by path."""

    def checked(answer: Any) -> Any:
        if not is_answer(answer):
            raise ValueError(f"{call}: {expected}; got {answer!r}.")
        return answer

    if callable(given) and jax.tree_util.all_leaves([given]):  # a module of answers is a tree that may be callable
        return lambda path, leaf: checked(given(path, leaf))
    said = {path_name(path): checked(x) for path, x in jax.tree_util.tree_leaves_with_path(given, is_leaf=is_answer)}

    def look_up(path: str, leaf: Leaf) -> Any:
        if path not in said:
            raise ValueError(f"{call}: the tree that was given says nothing of parameter {path!r}, only of {sorted(said)}.")
        return said[path]

    return look_up

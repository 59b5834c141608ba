"""Which leaves of a tree of parameters go to a method for matrices, and which to another optimizer."""

import re
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from fimlens._validate import path_name, require_own_names, require_transform
from fimlens.transforms.as_matrix import LeafView, Views, per_layout, through_views, unknown_axes, view_of
from fimlens.transforms.axes import Axes, axes_rule
from fimlens.transforms.evidence import UNKNOWN, VECTORS, recognise
from fimlens.transforms.leaf_rules import Leaf, Rule, leaf_rule
from fimlens.transforms.momentum import adam_with_guards

METHOD, OTHERS = "method", "others"


# Tables of vectors, one for each token or position.
EMBEDDING = re.compile(
    r"embed|(^|_)emb$|^wte$|^wpe$|(^|_)(cls|tokens?|table)$|(^|_)pos(ition(s|al)?)?(_(enc|encodings?|ids?))?$", re.IGNORECASE
)


HEAD = re.compile(
    r"^((lm|mlm|cls|output|readout|classifier)_?)?head$|^(logits|unembed\w*|lm_output|classifier)$", re.IGNORECASE
)


# Names that mean the output head at the top of a model, and something else within its blocks.
TOP_HEAD = re.compile(
    r"^(params/)?(heads/(kernel|w|weight)|(score|final|output_projection)(/(kernel|w|weight))?)(/value)?$", re.IGNORECASE
)


def matrices(
    tx: optax.GradientTransformation,
    others: optax.GradientTransformation | None = None,
    *,
    route: Rule | str | PyTree | None = None,
    head: bool = False,
    axes: Axes | Rule | PyTree | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Give matrices to `tx` and all other leaves to `others`, by default Adam. Use it to build a chain from a direction.

    Both are directions, without a learning rate or a sign; the rate follows them in the chain, as in the example. A full chain,
    such as `fl.racs(0.02)`, routes its leaves itself. Do not give one as `tx`: it would descend while the default `others`
    moves up the gradient, unscaled.

    By default a leaf of two axes or more is a matrix, with four exceptions:

    - Its path names an embedding ("embed", "tok_emb", "wte", "pos", "positional_encoding", "cls_token").
    - Its path names vectors that may be stacked: a last "bias", "b_q", "scale", "gain", "shift", "gamma" or "alpha", or the
      leaf of a norm, such as "attention_norm" or "LayerNorm_0/w".
    - Unless `head` is True, its path names the output head ("head", "lm_head", "classifier", "logits", "unembed"). At the top
      of the tree also "heads/kernel", "score", "final" and "output_projection" do.
    - It is a vector for each of the layers that it stacks.

    Empty leaves go to the others.

    `tx` sees leaves of three axes or more as matrices, by the evidence that `fl.as_matrix` describes. One for which there is no
    evidence goes to the others, and `init` warns once for all of these. `fl.routes` shows where each leaf goes.

    Args:
        tx: the direction for matrices.
        others: the direction for all other leaves. Default: Optax's Adam on gradients clipped where squares would overflow.
        route: your own rule in place of the default one. A regular expression takes every matrix whose path it matches, such as
            "attention|mlp". A function of path and leaf, or a tree like the parameters, answers True or "method", and False or
            "others". Default: None, the rule above.
        head: whether the output head goes to `tx`, under the default rule. Default: False.
        axes: which axes of a leaf are a matrix; see `fl.as_matrix`. Default: None, by the evidence described there.

    Raises:
        TypeError: `tx` or `others` is no transform.
        ValueError: the route is not a regular expression, or its answer for a leaf is missing or of another kind, or the axes
            of a leaf are not all named once. Also: two leaves have one name.

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
    others = adam_with_guards() if others is None else others
    require_transform("matrices", "tx", tx)
    require_transform("matrices", "others", others)
    views_of = leaf_views("matrices", route, head, axes)

    def partitioned(tree: PyTree) -> optax.GradientTransformation:
        views = views_of(tree)
        labels = leaf_labels(tree, views)  # given as a function: a tree of them may be a module of Equinox, which is callable
        return optax.partition({METHOD: through_views(tx, views), OTHERS: others}, lambda _: labels)

    return per_layout(partitioned, lambda params: views_of(params, warn=True))


def leaf_views(
    call: str,
    route: Rule | str | PyTree | None,
    head: bool,
    axes: Axes | Rule | PyTree | None,
    fate: str = "Until then the other optimizer, Adam by default, has them.",
) -> Callable[..., Views]:
    """The function from parameters to the views of their leaves, which can warn of those whose axes are unknown.

    The arguments are those of `matrices`; `call` is named in messages, and `fate` says what becomes of the unknown.
    """
    is_method, rule = _is_method_rule(call, route, head), axes_rule(axes)
    takes_matrices_alone = route is None or isinstance(route, str)

    def views_of(params: PyTree, warn: bool = False) -> Views:
        known, views, unknown = recognise(params), {}, {}
        named = [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
        require_own_names(call, (path for path, _ in named))
        for path, leaf in named:
            shape = jnp.shape(leaf)
            chosen = is_method(path, leaf)
            view = view_of(path, leaf, rule, known[path]) if chosen else None
            if chosen and view is None and known[path] == UNKNOWN:
                unknown[path] = shape
            elif chosen and view is None and not takes_matrices_alone:
                view = LeafView(shape)
            views[path] = view
        if unknown and warn:
            warnings.warn(f"{call}: {unknown_axes(unknown)} {fate}", stacklevel=4)
        return views

    return views_of


def leaf_labels(tree: PyTree, views: Views) -> PyTree:
    """The labels of the leaves, METHOD or OTHERS, for `optax.partition`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: METHOD if views[path_name(path)] else OTHERS, tree)


def routes(
    params: PyTree, *, route: Rule | str | PyTree | None = None, head: bool = False, axes: Axes | Rule | PyTree | None = None
) -> dict[str, tuple[int, ...] | None]:
    """Show where each leaf goes before you train: by path, the shape in which the method sees it, or None for the others.

    Args:
        params: arrays or jax.ShapeDtypeStructs.
        route: as in `matrices` and in every full chain.
        head: as in `matrices` and in every full chain.
        axes: as in `matrices` and in every full chain.

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
    views = leaf_views("routes", route, head, axes)(params)
    return {path: view and view.matrix for path, view in views.items()}


def role(path: str) -> str | None:
    """The role that a parameter's path names: "head", "embedding" or None."""
    words = path.split("/")
    if TOP_HEAD.search(path) or any(map(HEAD.search, words)):  # before embeddings: "unembed" is a head
        return "head"
    return "embedding" if any(map(EMBEDDING.search, words)) else None


def _is_matrix(path: str, leaf: Leaf, head: bool) -> bool:
    """The default rule of `matrices`."""
    return _has_sides(leaf) and not VECTORS.search(path) and role(path) in ((None, "head") if head else (None,))


def _has_sides(leaf: Leaf) -> bool:
    return jnp.ndim(leaf) >= 2 and 0 not in jnp.shape(leaf)


def _is_answer(x: Any) -> bool:
    if isinstance(x, str):
        return x in (METHOD, OTHERS)
    return isinstance(x, bool) or getattr(x, "dtype", None) == jnp.dtype(bool)


def _is_method_rule(call: str, route: Rule | str | PyTree | None, head: bool) -> Rule:
    """The rule that decides whether a leaf goes to the method."""
    if route is None:
        return partial(_is_matrix, head=head)
    if isinstance(route, str):
        try:
            pattern = re.compile(route)
        except re.error as error:
            raise ValueError(f"{call}: route {route!r} is not a regular expression: {error}.") from error
        return lambda path, leaf: _has_sides(leaf) and bool(pattern.search(path))
    expected = f'route answers for each leaf True or "{METHOD}", or False or "{OTHERS}"'
    answer_of = leaf_rule(call, route, _is_answer, expected)

    def is_method(path: str, leaf: Leaf) -> bool:
        answer = answer_of(path, leaf)
        return answer == METHOD if isinstance(answer, str) else bool(answer)

    return is_method

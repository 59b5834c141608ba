"""From any tree of parameters to matrices: which leaves a method takes, and how each is seen as a matrix."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from fimlens._validate import path_name
from fimlens.transforms.as_matrix import Axes, _View, _viewing
from fimlens.transforms.leaf_rules import Leaf, Rule, _said
from fimlens.transforms.momentum import guarded_adam

METHOD, OTHERS = "method", "others"


EMBEDDING = re.compile(r"embed|(^|_)emb$|^wte$|^wpe$", re.IGNORECASE)


HEAD = re.compile(r"^((lm|output|readout|classifier)_?)?head$|^(logits|unembed\w*|lm_output)$", re.IGNORECASE)


# Flax NNX ends paths with "value". A norm ends a word, as in LayerNorm_0, rms_norm, norms and ln_1, not as in normformer, and
# is the leaf or holds it, unless that is a kernel: a block may be named after the norm that it begins with.
NORM = r"([^/]*(?i:norm)s?(_?\d+|_?[a-z])?|NormLayer[^/]*|[^/]*(?i:normali[sz]ation)[^/]*|ln(_?\w)?)"


VECTORS = re.compile(rf"(^|/)((?i:bias|scale)|{NORM}(/(?!kernel)[^/]*)?)(/value)?$")


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

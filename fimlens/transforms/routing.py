"""Which leaves of a tree of parameters go to a method for matrices, and which to another optimizer."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from fimlens._validate import path_name
from fimlens.transforms.as_matrix import Axes, axes_rule, view_of
from fimlens.transforms.leaf_rules import Leaf, Rule, leaf_rule
from fimlens.transforms.momentum import adam_with_guards

METHOD, OTHERS = "method", "others"


EMBEDDING = re.compile(r"embed|(^|_)emb$|^wte$|^wpe$", re.IGNORECASE)


HEAD = re.compile(r"^((lm|output|readout|classifier)_?)?head$|^(logits|unembed\w*|lm_output)$", re.IGNORECASE)


# A norm ends a word, as in LayerNorm_0, rms_norm, norms and ln_1; "normformer" is none. It names the leaf or its parent, unless
# the leaf is a kernel: a block may be named after the norm that it begins with.
NORM = r"([^/]*(?i:norm)s?(_?\d+|_?[a-z])?|NormLayer[^/]*|[^/]*(?i:normali[sz]ation)[^/]*|ln(_?\w)?)"


# Flax NNX ends every path with "value".
VECTORS = re.compile(rf"(^|/)((?i:bias|scale)|{NORM}(/(?!kernel)[^/]*)?)(/value)?$")


def matrices(
    tx: optax.GradientTransformation,
    others: optax.GradientTransformation | None = None,
    *,
    route: Rule | str | PyTree | None = None,
    head: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Give matrices to `tx` and all other leaves to `others`, by default Adam. Use it to build a chain from a direction.

    Both are directions, without a learning rate or a sign; the rate follows them in the chain, as in the example. A full chain,
    such as `fl.racs(0.02)`, routes its leaves itself. Do not give one as `tx`: it would descend while the default `others`
    moves up the gradient, unscaled.

    By default a leaf of two axes or more is a matrix, with three exceptions. Its path names an embedding ("embed", "tok_emb",
    "wte", "wpe"); or vectors that may be stacked (a last "bias" or "scale", or the leaf of a norm, such as "attention_norm" or
    "LayerNorm_0/w"); or, unless `head` is True, the output head ("head", "lm_head", "logits", "unembed"). Empty leaves go to
    the others. `fl.routes` shows where each leaf goes.

    Args:
        tx: the direction for matrices.
        others: the direction for all other leaves. Default: Optax's Adam on gradients clipped where squares would overflow.
        route: your own rule in place of the default one. A regular expression takes every matrix whose path it matches, such
            as "attention|mlp"; a function of path and leaf, or a tree like the parameters, answers True or "method", and False
            or "others". Default: None, the rule above.
        head: whether the output head goes to `tx`, under the default rule. Default: False.

    Raises:
        ValueError: the route is not a regular expression, or its answer for a leaf is missing or of another kind.

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
    return optax.partition({METHOD: tx, OTHERS: adam_with_guards() if others is None else others}, leaf_labels(route, head))


def leaf_labels(route: Rule | str | PyTree | None, head: bool) -> Callable[[PyTree], PyTree]:
    """The function from parameters to their labels, METHOD or OTHERS, for `optax.partition`; arguments as in `matrices`."""
    is_method = _is_method_rule("matrices", route, head)

    def label(path: Any, leaf: Leaf) -> str:
        return METHOD if is_method(path_name(path), leaf) else OTHERS

    return partial(jax.tree_util.tree_map_with_path, label)


def routes(
    params: PyTree, *, route: Rule | str | PyTree | None = None, head: bool = False, axes: Axes | Rule | PyTree | None = None
) -> dict[str, tuple[int, ...] | None]:
    """Show where each leaf goes before you train: by path, the shape in which the method sees it, or None for the others.

    Args:
        params: arrays or jax.ShapeDtypeStructs.
        route: as in `matrices` and in every full chain.
        head: as in `matrices` and in every full chain.
        axes: as in `as_matrix` and in every full chain.

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
    is_method, rule = _is_method_rule("routes", route, head), axes_rule(axes)
    leaves = [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
    return {path: view_of(path, leaf, rule).matrix if is_method(path, leaf) else None for path, leaf in leaves}


def role(path: str) -> str | None:
    """The role that a parameter's path names: "head", "embedding" or None."""
    words = path.split("/")
    if any(map(HEAD.search, words)):  # before embeddings: "unembed" is a head
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

"""Rules that give an answer for each leaf of the parameters: a function of path and leaf, or a tree of answers."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import ArrayLike, PyTree

from fimlens._validate import path_name

Leaf = ArrayLike | jax.ShapeDtypeStruct


Rule = Callable[[str, Leaf], Any]


def leaf_rule(call: str, given: Rule | PyTree, is_answer: Callable[[Any], bool], expected: str) -> Rule:
    """The rule that a caller gave as a function or as a tree, with its answers checked by `is_answer`.

    Raises:
        ValueError: an answer fails the check: at once for a tree, and when the rule is called for a function. The rule also
            raises it where the tree has no entry for a leaf. The message starts with `call` and states what was `expected`.
    """

    def checked(answer: Any) -> Any:
        if not is_answer(answer):
            raise ValueError(f"{call}: {expected}; got {answer!r}.")
        return answer

    # Modules of Equinox are callable trees: a callable with leaves of its own is taken as a tree.
    if callable(given) and jax.tree_util.all_leaves([given]):
        return lambda path, leaf: checked(given(path, leaf))
    answers = {path_name(path): checked(x) for path, x in jax.tree_util.tree_leaves_with_path(given, is_leaf=is_answer)}

    def look_up(path: str, leaf: Leaf) -> Any:
        if path not in answers:
            raise ValueError(f"{call}: the given tree has no entry for parameter {path!r}; it has {sorted(answers)}.")
        return answers[path]

    return look_up

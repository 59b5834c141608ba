"""Rules that give an answer per leaf of the parameters: a function, or a tree of answers."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import ArrayLike, PyTree

from fimlens._validate import path_name

Leaf = ArrayLike | jax.ShapeDtypeStruct


Rule = Callable[[str, Leaf], Any]


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

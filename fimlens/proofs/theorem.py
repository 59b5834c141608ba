"""What a derivation is written with: symbols that quantify, the shipped functions evaluated on them, and steps decided exactly.

A derivation (a file of fimlens/derivations) states a theorem in its docstring and yields steps. A step is an identity of
expressions that the shipped functions made, decided over the rational functions (and roots) of its symbols; nothing is sampled,
except to refute: one exact rational point where a difference is not zero is a proof that it is not.
"""

import importlib
import pkgutil
import time
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import NamedTuple

import jax
import numpy as np
import sympy as sp

from fimlens.interpreter.identity import is_zero, refuted
from fimlens.proofs.evaluate import hessian
from fimlens.proofs.symbols import entries_of
from fimlens.structure import Tree

# --- steps ------------------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """A sentence, whether it holds, and an entry of the difference that is not zero where it does not."""

    says: str
    holds: bool
    residue: sp.Expr


def vanishes(says: str, *trees: Tree) -> Step:
    """Every entry is identically zero."""
    entries = entries_of(trees)
    if not entries:
        raise ValueError(f"{says}: there is nothing to decide")
    residue = next((e for e in entries if not is_zero(e)), sp.Integer(0))
    return Step(says, residue == 0, residue)


def equal(says: str, a: Tree, b: Tree) -> Step:
    """Two trees agree, entry by entry, identically."""
    left, right = entries_of(a), entries_of(b)
    shapes = [[np.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in (a, b)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{says}: shapes {shapes[0]} against {shapes[1]}")
    return vanishes(says, [x - y for x, y in zip(left, right, strict=True)])


def differs(says: str, a: Tree, b: Tree = None) -> Step:
    """Two trees (a tree and zero) are not identical: at one rational point an entry is apart, which is a proof.

    Of polynomials of a symmetric F the point need not be a Fisher: those that vanish on all positive definite matrices, an
    open set, vanish identically.
    """
    left = entries_of(a)
    right = [sp.Integer(0)] * len(left) if b is None else entries_of(b)
    return Step(says, any(refuted(x - y) for x, y in zip(left, right, strict=True)), sp.Integer(0))


def convex(says: str, expression: sp.Expr, variables: Tree) -> Step:
    """A quadratic whose Hessian is constant and positive semi-definite: where its gradient vanishes is its global minimum."""
    H = hessian(expression, variables).applyfunc(lambda e: sp.cancel(sp.together(e)))
    constant = not H.free_symbols
    return Step(says, bool(constant and H.is_positive_semidefinite), sp.Integer(0) if constant else H[0])


# --- derivations ------------------------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """What became of one derivation at one size (m, n)."""

    name: str
    size: tuple[int, int]
    steps: list[Step]
    seconds: float

    @property
    def proved(self) -> bool:
        return bool(self.steps) and all(step.holds for step in self.steps)


@cache
def derivations() -> dict[str, ModuleType]:
    """Every derivation, by name: the modules of fimlens.derivations."""
    package = importlib.import_module("fimlens.derivations")
    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    return {name: importlib.import_module(f"fimlens.derivations.{name}") for name in names}


def prove(derivation: ModuleType, size: tuple[int, int], told: Callable[[Step], None] = lambda step: None) -> Verdict:
    """All steps of a derivation at one size; those after one that fails are left out."""
    start, steps = time.perf_counter(), []
    for step in derivation.steps(*size):
        steps.append(step)
        told(step)
        if not step.holds:
            break
    return Verdict(derivation.__name__.rpartition(".")[2], size, steps, time.perf_counter() - start)

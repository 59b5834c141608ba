"""State a theorem as steps that SymPy decides, and run them.

A derivation is a module that states one theorem. Its docstring has the statement and the argument for every matrix size.
`SIZES` lists the sizes (m, n) at which the theorem is decided, and `steps(m, n)` yields a `Step` for each of its claims. A step
compares expressions that the shipped functions return for symbolic input. It is decided exactly, as an identity between
rational functions (and roots) of the symbols. Numbers are used only to refute: one rational point at which a difference is not
zero proves that it is not identically zero.
"""

import importlib
import pkgutil
import time
from collections.abc import Callable
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
    """One claim of a theorem: its description, whether it holds, and the residue.

    The residue is the first entry that should be zero and is not. It is 0 if the step holds, or fails without such an entry.
    """

    description: str
    holds: bool
    residue: sp.Expr

    @property
    def residue_text(self) -> str:
        """The first 200 characters of the residue; empty if it is zero."""
        return f"{self.residue!s:.200}" if self.residue else ""


def vanishes(description: str, *trees: Tree) -> Step:
    """Claim that every entry of the trees is identically zero.

    Raises:
        ValueError: the trees have no entries.
    """
    entries = entries_of(trees)
    if not entries:
        raise ValueError(f"{description}: the step has no entries to decide.")
    residue = next((e for e in entries if not is_zero(e)), sp.Integer(0))
    return Step(description, residue == 0, residue)


def equal(description: str, a: Tree, b: Tree) -> Step:
    """Claim that two trees are identical, entry by entry.

    Raises:
        ValueError: the trees have leaves of different shapes, or no entries.
    """
    left, right = entries_of(a), entries_of(b)
    # Broadcasting would hide a wrong shape, so compare the shapes before the entries.
    shapes = [[np.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in (a, b)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{description}: the two sides have different shapes, {shapes[0]} and {shapes[1]}.")
    return vanishes(description, [x - y for x, y in zip(left, right, strict=True)])


def differs(description: str, a: Tree, b: Tree = None) -> Step:
    """Claim that two trees (or, without `b`, one tree and zero) are not identical.

    The proof is one rational point at which an entry differs. The symmetric matrix F at that point need not be positive
    definite: a polynomial that vanishes on all positive definite matrices, which form an open set, vanishes identically.
    """
    left = entries_of(a)
    right = [sp.Integer(0)] * len(left) if b is None else entries_of(b)
    return Step(description, any(refuted(x - y) for x, y in zip(left, right, strict=True)), sp.Integer(0))


def convex(description: str, expression: sp.Expr, variables: Tree) -> Step:
    """Claim that the expression is a convex quadratic of the variables: its Hessian is constant and positive semi-definite.

    Every point at which the gradient of such a function vanishes is a global minimum.
    """
    H = hessian(expression, variables).applyfunc(lambda e: sp.cancel(sp.together(e)))
    constant = not H.free_symbols
    return Step(description, bool(constant and H.is_positive_semidefinite), sp.Integer(0) if constant else H[0])


# --- derivations ------------------------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """The steps of one derivation at one size (m, n), up to the first that fails, and the time that they took."""

    name: str
    size: tuple[int, int]
    steps: list[Step]
    seconds: float

    @property
    def proved(self) -> bool:
        """Whether there is a step, and every step holds."""
        return bool(self.steps) and all(step.holds for step in self.steps)


def load_derivations(package: ModuleType) -> dict[str, ModuleType]:
    """Import every derivation of a package, by name.

    Args:
        package: an imported package whose modules are derivations, such as `fimlens.derivations`.

    Raises:
        ImportError: the package has no modules. An empty folder fimlens/derivations, left over from an older checkout, hides
            the package that stands in derivations/ at the top of the repository.
    """
    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    if not names:
        places = ", ".join(package.__path__)
        raise ImportError(
            f"{package.__name__} has no derivations: {places} holds no modules. If that folder is left over from an older "
            "checkout, delete it: derivations stand in derivations/ at the top of the repository."
        )
    return {name: importlib.import_module(f"{package.__name__}.{name}") for name in names}


def prove(derivation: ModuleType, size: tuple[int, int], callback: Callable[[Step], None] = lambda step: None) -> Verdict:
    """Decide the steps of a derivation at one size, and stop after the first step that fails.

    Args:
        derivation: the module.
        size: m and n.
        callback: is called with each step as soon as it is decided.

    Raises:
        Exception: whatever a step raises; `verdicts.try_to_prove` reports it as a failed step instead.
    """
    start, steps = time.perf_counter(), []
    for step in derivation.steps(*size):
        if not isinstance(step, Step):
            raise TypeError(f"a step is what vanishes, equal, differs or convex returns; got {step!r}")
        steps.append(step)
        callback(step)
        if not step.holds:
            break
    return Verdict(derivation.__name__.rpartition(".")[2], size, steps, time.perf_counter() - start)

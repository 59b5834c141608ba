"""Collect the verdicts of a derivation at all its sizes, and report an error as a failed step."""

import inspect
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import sympy as sp

from fimlens.proofs.theorem import Step, Verdict, prove


@dataclass(frozen=True)
class Proof:
    """A derivation and its verdict at each of its sizes."""

    derivation: ModuleType
    verdicts: Sequence[Verdict]

    @property
    def name(self) -> str:
        """The name of the derivation's module."""
        return self.derivation.__name__.rpartition(".")[2]

    @property
    def paragraphs(self) -> list[str]:
        """The paragraphs of the derivation's docstring: the title, then the statement and its argument."""
        return inspect.cleandoc(self.derivation.__doc__ or self.name).split("\n\n")

    @property
    def proved(self) -> bool:
        """Whether there is a verdict, and every verdict is "proved"."""
        return bool(self.verdicts) and all(verdict.proved for verdict in self.verdicts)

    @property
    def seconds(self) -> float:
        """The time that all sizes took together."""
        return sum((verdict.seconds for verdict in self.verdicts), 0.0)

    @property
    def failures(self) -> list[tuple[Verdict, Step]]:
        """Each step that failed, with the verdict that it belongs to."""
        return [(verdict, step) for verdict in self.verdicts for step in verdict.steps if not step.holds]

    def to_json(self) -> dict[str, Any]:
        """The proof as a dictionary of strings, numbers and booleans."""
        return {
            "name": self.name,
            "title": self.paragraphs[0],
            "proved": self.proved,
            "sizes": [
                {
                    "m": verdict.size[0],
                    "n": verdict.size[1],
                    "proved": verdict.proved,
                    "seconds": verdict.seconds,
                    "steps": [step._asdict() | {"residue": str(step.residue)} for step in verdict.steps],
                }
                for verdict in self.verdicts
            ],
        }


def try_to_prove(derivation: ModuleType, size: tuple[int, int]) -> Verdict:
    """Run `prove`, and turn an exception, or the absence of any step, into a last step that fails and says why."""
    steps: list[Step] = []
    start = time.perf_counter()
    try:
        verdict = prove(derivation, size, steps.append)
        if not steps:
            raise ValueError("the derivation has no steps")
    except Exception as error:  # every kind of error: one broken derivation must not keep the others from being decided
        failed = Step(f"{type(error).__name__}: {error}", False, sp.Integer(0))
        return Verdict(derivation.__name__.rpartition(".")[2], size, [*steps, failed], time.perf_counter() - start)
    return verdict

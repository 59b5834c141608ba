"""A derivation's verdicts at all its sizes: one proof, or what stands in its way."""

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
    """A derivation, and what became of it at each of its sizes."""

    derivation: ModuleType
    verdicts: Sequence[Verdict]

    @property
    def name(self) -> str:
        return self.derivation.__name__.rpartition(".")[2]

    @property
    def paragraphs(self) -> list[str]:
        """The title, and then the statement with its argument."""
        return inspect.cleandoc(self.derivation.__doc__ or self.name).split("\n\n")

    @property
    def proved(self) -> bool:
        return bool(self.verdicts) and all(verdict.proved for verdict in self.verdicts)

    @property
    def seconds(self) -> float:
        return sum((verdict.seconds for verdict in self.verdicts), 0.0)

    @property
    def failures(self) -> list[tuple[Verdict, Step]]:
        return [(verdict, step) for verdict in self.verdicts for step in verdict.steps if not step.holds]

    def to_json(self) -> dict[str, Any]:
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


def attempt(derivation: ModuleType, size: tuple[int, int]) -> Verdict:
    """Its verdict at one size; where an error ends it, or no step is there, the last step says so and does not hold."""
    steps: list[Step] = []
    start = time.perf_counter()
    try:
        verdict = prove(derivation, size, steps.append)
        if not steps:
            raise ValueError("there is no step to decide")
    except Exception as error:  # of whatever kind: other derivations go on
        stopped = Step(f"{type(error).__name__}: {error}", False, sp.Integer(0))
        return Verdict(derivation.__name__.rpartition(".")[2], size, [*steps, stopped], time.perf_counter() - start)
    return verdict


def remainder(step: Step) -> str:
    """The beginning of what a failing step leaves over; nothing where it is known by name alone."""
    return f"{step.residue!s:.200}" if step.residue else ""

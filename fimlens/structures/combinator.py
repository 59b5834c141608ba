"""What structures have in common that take another structure: its divergence, the reach of its claim, its bases."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax

from fimlens.divergence import Divergence
from fimlens.structure import BasisStep, Structure
from fimlens.structures.move import Turn, change_of_basis
from fimlens.structures.trackers import Average, Basis, Side, SideAverages, Tracker


class Combinator(Structure):
    """Base of `Rotated`, `LowRank` and `Blocks`."""

    inner: Structure

    @property
    def divergence(self) -> Divergence:
        return self.inner.divergence

    @property
    def holds_in_every_divergence(self) -> bool:
        return self.inner.holds_in_every_divergence


def observed(tracker: Tracker, bases: Sequence[Any], sides: Sequence[Side]) -> list[Average]:
    """What is averaged for both bases (None where a side has none)."""
    pairs = zip(bases[:2], sides, strict=True)
    return [None if U is None else tracker.observe(side, partial(side.projected, U)) for U, side in pairs]


def moved_bases(
    tracker: Tracker, averages: SideAverages, bases: Sequence[Any], sides: Sequence[Side], step: BasisStep
) -> tuple[list[Basis | None], list[Turn], SideAverages]:
    """Both bases after a step of the tracker (None where a side has none), how they turned, and the averages for them, measured
    in them."""
    moved, turns, carried = [], [], []
    for C, U, side, key in zip(averages[:2], bases[:2], sides, jax.random.split(step.key), strict=True):
        new = U if U is None else tracker.basis(tracker.update(C, U, side, step._replace(key=key)), *U.shape)
        moved.append(new)
        turns.append(None if U is None else change_of_basis(U, new))
        carried.append(C if C is None else tracker.transport(turns[-1], C))
    return moved, turns, SideAverages(*carried, averages.inner)

"""Trackers: how the eigenbasis of one side of a matrix is started and followed.

`covariance` is the average of GG^T (of G^T G for the right side) where the tracker asks for one, else None; `singular`
gives the singular vectors of the samples at hand, which in training are the current gradient alone.
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Array, Float

from fimlens.linalg.bases import eigenbasis, power_step, unit_of

Basis = Float[Array, "m m"]


@dataclass(frozen=True)
class Tracker(abc.ABC):
    """Frozen and without state of its own: the basis and the average it follows live in frame and statistics."""

    averages: ClassVar[bool] = True  # whether it follows an average of GG^T

    @abc.abstractmethod
    def start(self, covariance: Basis | None, U: Basis, singular: Callable[[], Basis]) -> Basis:
        """The first basis, and the one at rest; U is that of the frame so far."""

    def update_basis(self, covariance: Basis | None, U: Basis, singular: Callable[[], Basis]) -> Basis:
        """The basis that follows U."""
        return self.start(covariance, U, singular)


@dataclass(frozen=True)
class Eigen(Tracker):
    """The eigenvectors of the averaged covariance, anew at each turn.

    Examples:
        >>> import fimlens as fl
        >>> fl.Rotated(fl.Diagonal(), "L") == fl.Rotated(fl.Diagonal(), "L", fl.Eigen())  # the default
        True
        >>> fl.state_size(fl.Rotated(fl.Diagonal(), "L", fl.Eigen()), (3, 4))  # a basis and a covariance, 9 each, and 12
        30
    """

    def start(self, covariance: Basis, U: Basis, singular: Callable[[], Basis]) -> Basis:
        return eigenbasis(covariance)


@dataclass(frozen=True)
class PowerStep(Tracker):
    """Eigenvectors at first, then one QR power step a turn: U <- QR(C U). [Vyas et al., SOAP, 2024, Algorithm 4].

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> soap = fl.scale_by_structure(fl.Rotated(fl.Diagonal(), "LR", fl.PowerStep()), update_interval=10)
        >>> C, U = jnp.diag(jnp.array([9.0, 1.0])), jnp.array([[0.8, -0.6], [0.6, 0.8]])
        >>> turned = fl.PowerStep().update_basis(C, U, lambda: U)
        >>> print(f"{abs(turned[0, 0]):.3f}")  # from 0.8 towards 1, an eigenvector of C
        0.997
    """

    def start(self, covariance: Basis, U: Basis, singular: Callable[[], Basis]) -> Basis:
        return eigenbasis(covariance)

    def update_basis(self, covariance: Basis, U: Basis, singular: Callable[[], Basis]) -> Basis:
        return power_step(covariance / unit_of(covariance) @ U, U)


@dataclass(frozen=True)
class Singular(Tracker):
    """The singular vectors of the current gradient; nothing is averaged. AdaDiag ([D]), GaLore.

    Examples:
        >>> import fimlens as fl
        >>> fl.state_size(fl.Rotated(fl.Diagonal(), "L", fl.Singular()), (3, 4))  # a basis, 9, and 12; no covariance
        21
    """

    averages: ClassVar[bool] = False

    def start(self, covariance: None, U: Basis, singular: Callable[[], Basis]) -> Basis:
        return singular()

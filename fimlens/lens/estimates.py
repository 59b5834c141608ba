"""The answer of `estimate`: one estimate for each structure, with its error, and differences between them."""

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from fimlens._validate import as_json, read_number
from fimlens.lens.folds import standard_error
from fimlens.optimizers.mixture import kept_size
from fimlens.structure import Structure

HEAVY = 0.25  # a larger share of one sample in the sum of ||g||^4 means heavy tails: of Gaussian ones it is some 3 / N


class Estimate(NamedTuple):
    """How near fits of one structure are to the Fisher of the population, estimated from samples that they have not seen.

    In the Frobenius norm an error is ||F~ - F||^2 / ||F||^2. In another divergence it is D(F, F~) - D(F, c I), with the best
    multiple c I of the identity. It is per entry: in nats under LogDet, and relative to the mean eigenvalue under von Neumann.
    It may be negative, by noise, or where F~ is nearer than c I. It is infinite where samples lie outside the range of F~.
    Under LogDet it is -inf, and says nothing, where F~ is zero in directions in which no sample has a part either.

    Attributes:
        relative: the mean error of the fits, of which each was tested on the fold that it was not fitted to.
        se: the standard error of `relative`.
        basis: what the best eigenvalues in those bases would leave; None where it cannot be estimated: the error is infinite,
            or a fold has one sampling unit.
        spectrum: what the eigenvalues add; None where `basis` is.
        plug_in: the error of the fit of all samples, measured on the same samples. It flatters large families.
        fitted_on: how many samples a fit has seen.
        low: lower end of the interval that covers the mean error with a probability of about 0.95.
        high: upper end.
        total: the error in the units of D, not divided by the size of F.
        shrinkage: the mean rho of (1 - rho) F~ + rho c I; None where it was not asked for.
        pseudo: the jackknife's pseudo-values of `relative`, one a fold.

    Examples:
        >>> import jax, fimlens as fl
        >>> row = fl.estimate({"adam": fl.Diagonal()}, jax.random.normal(jax.random.key(0), (64, 3, 4))).rows["adam"]
        >>> print(f"{row.relative:.2f} +- {row.se:.2f}; on its own samples {row.plug_in:.2f}")  # in truth about 0
        0.02 +- 0.02; on its own samples 0.12
    """

    relative: float
    se: float
    basis: float | None
    spectrum: float | None
    plug_in: float
    fitted_on: int
    low: float
    high: float
    total: float
    shrinkage: float | None
    pseudo: tuple[float, ...]


def make_estimate(
    pseudo: np.ndarray, basis: np.ndarray, total: float, plug_in: float, fitted_on: int, shrinkage: float | None
) -> Estimate:
    """Make an estimate from pseudo-values of the error and of its basis part."""
    relative, of_basis = float(np.mean(pseudo)), float(np.mean(basis))
    known = math.isfinite(of_basis) and math.isfinite(relative)
    parts = (of_basis, relative - of_basis) if known else (None, None)
    se = standard_error(pseudo)
    reach = _quantile(len(pseudo)) * se
    values = tuple(map(float, pseudo))
    return Estimate(relative, se, *parts, plug_in, fitted_on, relative - reach, relative + reach, total, shrinkage, values)


def _quantile(folds: int) -> float:
    """Return how many standard errors an interval of 95 % reaches to each side: 2.4 for eight folds, but 12.7 for two."""
    return float(stdtrit(folds - 1, 0.975))  # Student's t; scipy.stats would double the time of `import fimlens`


@dataclass(frozen=True)
class Estimates:
    """The answer of `estimate`.

    Attributes:
        rows: an `Estimate` by the name of each structure that has a fit.
        unsuited: the reason why a structure has no fit, by its name.
        structures: the structures, by name.
        divergence: the divergence, as it prints.
        shape: (m, n) of the matrix.
        samples: the number of samples.
        folds: the number of folds.
        norm_squared: ||F||^2 and its standard error.
        largest_share: the share of the largest sample in the sum of ||g||^4; 0 where it is not known.

    Examples:
        >>> import jax, fimlens as fl
        >>> fisher = fl.Fisher.from_gradients(jax.random.normal(jax.random.key(0), (64, 3, 4)))
        >>> estimates = fl.estimate({"adam": fl.Diagonal(), "sgd": fl.Scalar()}, fisher)
        >>> row = estimates.rows["sgd"]
        >>> print(f"{row.relative:.2f} +- {row.se:.2f}, of which basis {row.basis:.2f}; fitted on {row.fitted_on}")
        -0.01 +- 0.03, of which basis 0.03; fitted on 56
        >>> difference, se = estimates.difference("adam", "sgd")  # both share ||F||^2, so it is known far better
        >>> print(f"{difference:.3f} +- {se:.3f}")
        0.027 +- 0.011
        >>> print(estimates)
        Frobenius() error on a 3 x 4 matrix, 64 samples, 8 folds
        sgd   -0.008 +- 0.032
        adam  0.020 +- 0.025
    """

    rows: Mapping[str, Estimate]
    unsuited: Mapping[str, str]
    structures: Mapping[str, Structure]
    divergence: str
    shape: tuple[int, int]
    samples: int
    folds: int
    norm_squared: tuple[float, float]
    largest_share: float = 0.0

    @property
    def reliable(self) -> bool:
        """Whether ||F||^2 is known to half of itself, and no sample holds a quarter of the sum of ||g||^4.

        The errors of the Frobenius norm are divided by ||F||^2, whose standard error is itself too small where tails are heavy.
        """
        value, se = self.norm_squared
        return se <= value / 2 and self.largest_share <= HEAVY

    @property
    def doubt(self) -> str:
        """What `reliable` looks at, in words."""
        value, se = self.norm_squared
        share = f"the largest sample has {self.largest_share:.2g} of the sum of ||g||^4"
        return f"||F||^2 is {value:.2g} with a standard error of {se:.2g}, and {share}"

    def difference(self, first: str, second: str) -> tuple[float, float]:
        """Return the error of one structure less that of another, and the standard error of this difference.

        Errors on the same samples move together, so that their difference is known better than either. It is not a number if
        either is infinite. Where fits differ by noise alone, the standard error is too small by up to a factor of sqrt(2), as
        fits without different folds share samples.

        Args:
            first: the name of a structure.
            second: the name of the structure to subtract.

        Raises:
            KeyError: there is no estimate of that name.
        """
        for name in (first, second):
            if name not in self.rows:
                raise KeyError(f"difference: there is no estimate of {name!r}; there are {', '.join(self.rows)}")
        pairs = zip(self.rows[first].pseudo, self.rows[second].pseudo, strict=True)
        pseudo = np.array([math.nan if math.isinf(a) or math.isinf(b) else a - b for a, b in pairs])
        return float(np.mean(pseudo)), standard_error(pseudo)

    def clearly_nearer(self, first: str, second: str) -> bool:
        """Return whether the 95 % interval of the difference says that one structure is nearer than another.

        A finite error is clearly below an infinite one, whose fit gives no probability to some sample.

        Args:
            first: the name of a structure.
            second: the name of the structure that may be farther.

        Raises:
            KeyError: there is no estimate of that name.
        """
        value, se = self.difference(first, second)
        if self.error(second) == math.inf:
            return math.isfinite(self.error(first))
        return value < -_quantile(self.folds) * se

    def ranked(self) -> list[str]:
        """Return the names in the order of their errors, the nearest first and what is infinite last."""
        return sorted(self.rows, key=lambda name: (not math.isfinite(self.error(name)), self.error(name)))

    def error(self, name: str) -> float:
        """Return the error of a structure, `rows[name].relative`."""
        return self.rows[name].relative

    def kept(self, name: str) -> int:
        """Return how many numbers the optimizer of a structure keeps beside its momentum (`fl.scale_by_recommended`)."""
        return kept_size(self.structures[name], self.shape)

    def __str__(self) -> str:
        """Return a line for each structure, the nearest first."""
        width = max(map(len, self.rows), default=0)
        about = (
            f"{self.divergence} error on a {self.shape[0]} x {self.shape[1]} matrix, {self.samples} samples, {self.folds} folds"
        )
        lines = [f"{name:{width}}  {self.rows[name].relative:.3f} +- {self.rows[name].se:.3f}" for name in self.ranked()]
        return "\n".join([about, *lines, *(f"{name}  has no fit: {reason}" for name, reason in self.unsuited.items())])

    def to_json(self) -> dict[str, Any]:
        """Return every number as plain data, ready for `json.dump`: "inf" for what is infinite, and None for NaN."""
        plain = {name: getattr(self, name) for name in ("divergence", "samples", "folds", "largest_share", "reliable")}
        rows = {name: as_json(row) | {"pseudo": [as_json(x) for x in row.pseudo]} for name, row in self.rows.items()}
        lists = {"shape": list(self.shape), "norm_squared": list(self.norm_squared)}
        structures = {name: repr(structure) for name, structure in self.structures.items()}
        return plain | lists | {"structures": structures, "rows": rows, "unsuited": dict(self.unsuited)}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any], structures: Mapping[str, Structure]) -> "Estimates":
        """Undo `to_json`, for the structures that are given.

        Args:
            plain: what `to_json` returned.
            structures: by name; others of `plain` are left out.

        Raises:
            KeyError: a number is missing.
            TypeError: one is of another type.
            ValueError: there are too few or too many.
        """
        rows = {}
        for name, row in plain["rows"].items():
            if name in structures:
                none = ("basis", "spectrum", "shrinkage")
                fields = {key: x if key in none else read_number(x) for key, x in row.items() if key != "pseudo"}
                rows[name] = Estimate(**fields, pseudo=tuple(map(read_number, row["pseudo"])))
        unsuited = {name: reason for name, reason in plain["unsuited"].items() if name in structures}
        samples, folds, *shape = map(operator.index, (plain["samples"], plain["folds"], *plain["shape"]))
        if len(shape) != 2 or any(len(row.pseudo) != folds for row in rows.values()):
            raise ValueError(f"from_json: expected two sides and {folds} pseudo-values a structure")
        norm, share = tuple(map(read_number, plain["norm_squared"])), read_number(plain.get("largest_share", 0.0))
        return cls(rows, unsuited, dict(structures), plain["divergence"], tuple(shape), samples, folds, norm, share)

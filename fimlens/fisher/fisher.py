"""The Fisher F = E[g g^T] of one weight matrix, with g = Vec(G) and G an (m, n) gradient: what structures approximate.

One interface has two forms: *samples* (N, m, n), which never build anything mn x mn, and the *dense* matrix (mn, mn), for small
sizes. Every question that a structure, a gap or the solver asks is quadratic in G, so it is an expectation, and both forms can
answer it.
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Shaped

from fimlens.fisher.limits import DENSE_BYTES, require_dense, require_finite, require_positive_semidefinite, require_real_array

Linear = Callable[[Float[Array, "m n"]], Any]  # a linear map of one matrix, to a matrix or to a tree of arrays


def vec(G: Shaped[Array, "m n"]) -> Shaped[Array, " mn"]:
    """Stack the columns of G, so that (A (x) B) vec(C) = vec(B C A^T)."""
    return G.T.reshape(-1)


def unvec(g: Float[Array, " mn"], shape: tuple[int, int]) -> Float[Array, "m n"]:
    """Undo `vec`."""
    m, n = shape
    return g.reshape(n, m).T


@dataclass(frozen=True)
class Fisher(abc.ABC):
    """The Fisher F = E[g g^T] of one (m, n) weight matrix, g = Vec(G) a gradient with its columns stacked.

    Every question of fimlens (`fit`, `gap`, `solve`, `compare`) is asked of one. Make it with `Fisher.from_gradients` or
    `Fisher.from_dense`, or from a model with `empirical_fisher`, `minibatch_fisher` or `model_fisher`. Two Fishers can be
    compared only if their kinds and normalisations agree, so `print(fisher)` states both. Such Fishers of one matrix add up:
    `f + g` is that of the gradients of both.

    Args:
        kind: a few words on what the gradients are gradients of.
        normalisation: a few words on what the expectation is a mean or a sum over.

    Examples:
        >>> import jax, fimlens as fl
        >>> G = jax.random.normal(jax.random.key(0), (8, 3, 4))
        >>> fl.Fisher.from_gradients(G)
        Fisher of a 3 x 4 matrix from 8 samples: given gradients, mean over 8 gradients
    """

    kind: str = field(metadata={"static": True})
    normalisation: str = field(metadata={"static": True})

    @staticmethod
    def from_gradients(gradients: ArrayLike, *, kind: str = "given gradients", normalisation: str | None = None) -> "Fisher":
        """Make the Fisher of gradients that you have: the mean of g g^T over them.

        Computations are in float32, or in float64 if the gradients are float64 and `jax_enable_x64` is on.

        Args:
            gradients: (N, m, n), one (m, n) gradient for each of N examples or batches.
            kind: what to print as the kind.
            normalisation: what to print as the normalisation; by default "mean over N gradients".

        Raises:
            TypeError: the array is complex.
            ValueError: the array is not (N, m, n), is empty, or is not finite.
        """
        from fimlens.fisher.sample_form import SampleFisher  # here, as it is a subclass of this class

        G = jnp.asarray(gradients)
        if G.ndim != 3 or 0 in G.shape:
            raise ValueError(
                "Fisher.from_gradients: expected N > 0 gradients of one m x n matrix, an array (N, m, n); "
                f"got shape {G.shape}. "
                "One gradient is G[None]; gradients of a vector are G[:, :, None]."
            )
        require_real_array("Fisher.from_gradients", G)
        G = G.astype(jnp.promote_types(G.dtype, jnp.float32))
        if not isinstance(G, jax.core.Tracer):
            require_finite(G)
        return SampleFisher(kind, normalisation or f"mean over {len(G)} gradients", G)

    @staticmethod
    def of_one(G: Float[Array, "m n"]) -> "Fisher":
        """Make g g^T of the current gradient, as an optimizer sees it. Unchecked: NaN in G must reach the statistics."""
        from fimlens.fisher.sample_form import SampleFisher

        return SampleFisher("current gradient", "one gradient", G[None])

    @staticmethod
    def from_dense(
        F: ArrayLike,
        shape: tuple[int, int],
        *,
        kind: str = "given matrix",
        normalisation: str = "as given",
        max_bytes: int = DENSE_BYTES,
    ) -> "Fisher":
        """Make a Fisher from the matrix F itself, for small sizes: a covariance that you computed, or a test case.

        Args:
            F: (mn, mn), symmetric and positive semi-definite, with rows and columns ordered as Vec(G): columns stacked.
            shape: (m, n) of the weight matrix.
            kind: what to print as the kind.
            normalisation: what to print as the normalisation.
            max_bytes: bound on the size of F.

        Raises:
            TypeError: the matrix is complex.
            ValueError: the shapes disagree, or F is over `max_bytes`, not finite, not symmetric or indefinite.
        """
        from fimlens.fisher.dense_form import DenseFisher  # here, as it is a subclass of this class

        m, n = shape
        F = jnp.asarray(F)
        if F.shape != (m * n, m * n):
            raise ValueError(
                f"Fisher.from_dense: a {m} x {n} matrix has an F of shape {(m * n, m * n)}; got {F.shape}. "
                "Give the shape of the weight matrix, as in from_dense(F, shape=(m, n))."
            )
        require_real_array("Fisher.from_dense", F)
        F = F.astype(jnp.promote_types(F.dtype, jnp.float32))
        remedy = "Give gradients instead, by Fisher.from_gradients, or raise max_bytes."
        require_dense("Fisher.from_dense", remedy, (m, n), F.dtype.itemsize, max_bytes)
        if not isinstance(F, jax.core.Tracer):
            require_positive_semidefinite(np.asarray(F))
        return DenseFisher(kind, normalisation, F, (m, n))

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int]:
        """(m, n) of the weight matrix."""

    @property
    @abc.abstractmethod
    def dtype(self) -> jnp.dtype:
        """float32 or float64."""

    @abc.abstractmethod
    def second_moment(self, into: Linear = lambda G: G) -> Any:
        """Return E[into(G)^2], entry by entry, for a linear map `into` any tree of arrays."""

    @abc.abstractmethod
    def left(self, A: Float[Array, "n n"] | Float[Array, " n"] | None = None) -> Float[Array, "m m"]:
        """Return E[G A G^T], with A = I by default; of a diagonal A its diagonal is enough."""

    @abc.abstractmethod
    def right(self, B: Float[Array, "m m"] | None = None) -> Float[Array, "n n"]:
        """Return E[G^T B G], with B = I by default."""

    @abc.abstractmethod
    def right_diagonal(self, B: Float[Array, "m m"]) -> Float[Array, " n"]:
        """Return the diagonal of E[G^T B G], without the rest of it."""

    @abc.abstractmethod
    def left_singular(self) -> Float[Array, "m m"]:
        """Return the left singular vectors of the samples side by side, leading first: the eigenvectors of `left()`.

        For a single sample they belong to the same decomposition as `right_singular()`: only then is U_L^T G U_R diagonal
        to rounding.
        """

    @abc.abstractmethod
    def right_singular(self) -> Float[Array, "n n"]:
        """Return the right singular vectors of the samples on top of each other: the eigenvectors of `right()`."""

    @abc.abstractmethod
    def inner(self, operator: Linear) -> Float[Array, ""]:
        """Return <F, T> = E<G, T(G)> for a linear operator T on (m, n) matrices."""

    @abc.abstractmethod
    def map(self, linear: Linear) -> "Fisher":
        """Return the Fisher of linear(G), for a linear map to matrices of any shape."""

    @abc.abstractmethod
    def scaled(self, factor: Float[ArrayLike, ""]) -> "Fisher":
        """Return factor * F, for a non-negative factor. Its normalisation says so, and it adds up with no other Fisher."""

    @abc.abstractmethod
    def dense(self, *, max_bytes: int = DENSE_BYTES) -> Float[Array, "mn mn"]:
        """Return F as a matrix; raise ValueError if that takes more than `max_bytes`."""

    @abc.abstractmethod
    def _norm_squared(self, unit: Float[Array, ""]) -> Float[Array, ""]:
        """Return ||F / unit||_F^2."""

    def __add__(self, other: "Fisher") -> "Fisher":
        """Return the Fisher of the gradients of both; raise ValueError where shapes, kinds or normalisations differ."""
        from fimlens.fisher.addition import add  # here, as it needs the subclasses of this class

        return add(self, other) if isinstance(other, Fisher) else NotImplemented

    def __radd__(self, other: int) -> "Fisher":
        """Return the Fisher itself for 0, with which Python's `sum` begins."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    @abc.abstractmethod
    def _spectrum(self) -> Float[Array, " k"]:
        """Return the eigenvalues of F that can differ from zero."""

    # The four below are cached. A jitted caller would cache one of its tracers, so they are evaluated at compile time.

    @cached_property
    def unit(self) -> Float[Array, ""]:
        """The largest second moment, which is the largest entry of F; 1 if F is zero."""
        with jax.ensure_compile_time_eval():
            return _largest(self)

    @cached_property
    def spectrum(self) -> Float[Array, " k"]:
        """The eigenvalues of F, ascending: of N samples the largest N, as the others are zero. Rounding is set to zero."""
        with jax.ensure_compile_time_eval():
            return _without_rounding(self)

    @cached_property
    def norm_squared_in_units(self) -> Float[Array, ""]:
        """||F / unit||_F^2, which float32 holds at every scale of the gradients, as it may not hold ||F||_F^2."""
        with jax.ensure_compile_time_eval():
            return self._norm_squared(self.unit)

    @cached_property
    def norm_squared(self) -> Float[Array, ""]:
        """||F||_F^2."""
        with jax.ensure_compile_time_eval():
            return self.unit * (self.unit * self.norm_squared_in_units)

    @abc.abstractmethod
    def _form(self) -> str:
        """Return the form in words, for printing."""

    def __repr__(self) -> str:
        m, n = self.shape
        return f"Fisher of a {m} x {n} matrix {self._form()}: {self.kind}, {self.normalisation}"


@jax.jit  # eagerly, each operation would be a program of its own
def _largest(fisher: Fisher) -> Float[Array, ""]:
    largest = fisher.second_moment().max()
    return jnp.where(largest > 0, largest, 1)


@jax.jit
def _without_rounding(fisher: Fisher) -> Float[Array, " k"]:
    values = fisher._spectrum()
    return jnp.where(values > len(values) * jnp.finfo(values.dtype).eps * values[-1], values, 0)

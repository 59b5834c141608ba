"""The thing approximated: the Fisher F = E[g g^T] of one matrix, g = Vec(G), G an (m, n) gradient.

Two forms stand behind one interface: *samples* (N, m, n), which never build anything mn x mn, and
*dense* (mn, mn), the small-scale oracle. Every question a structure, a gap or a solver asks is quadratic
in G, so it is an expectation, and both forms can answer it.
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Shaped

from fimlens.fisher.limits import DENSE_BYTES, _require_positive, _require_real, require_dense
from fimlens.linalg.bases import eigenbasis, singular_bases

CHUNK_BYTES = 2**26  # samples pushed through a linear map at a time


Linear = Callable[[Float[Array, "m n"]], Any]  # a linear map of one matrix; to a tree, or to a matrix


def vec(G: Shaped[Array, "m n"]) -> Shaped[Array, " mn"]:
    """Stack the columns of G, so that (A (x) B) vec(C) = vec(B C A^T)."""
    return G.T.reshape(-1)


def unvec(g: Float[Array, " mn"], shape: tuple[int, int]) -> Float[Array, "m n"]:
    """Undo `vec`."""
    m, n = shape
    return g.reshape(n, m).T


@dataclass(frozen=True)
class Fisher(abc.ABC):
    """F = E[g g^T] of one (m, n) matrix, with its kind and its normalisation.

    Make one with `Fisher.from_gradients`, `Fisher.from_dense`, or from a model with `empirical_fisher`,
    `model_fisher` and `minibatch_fisher`. Two Fishers compare only if kind and normalisation agree, so `print(fisher)`
    states both.

    Examples:
        >>> import jax, fimlens as fl
        >>> G = jax.random.normal(jax.random.key(0), (8, 3, 4))
        >>> fl.Fisher.from_gradients(G)
        Fisher of a 3 x 4 matrix from 8 samples: given gradients, mean over 8 gradients
    """

    kind: str = field(metadata={"static": True})
    normalisation: str = field(metadata={"static": True})

    @staticmethod
    def from_gradients(
        gradients: ArrayLike, *, kind: str = "given gradients", normalisation: str | None = None
    ) -> "SampleFisher":
        """The mean of g g^T over the N gradients of an (N, m, n) array, in float32; in float64 where they are given so and
        jax_enable_x64 is on.

        Raises:
            TypeError: the array is complex.
            ValueError: the array is not (N, m, n), is empty, or is not finite.
        """
        G = jnp.asarray(gradients)
        if G.ndim != 3 or 0 in G.shape:
            raise ValueError(
                "Fisher.from_gradients: expected N > 0 gradients of one m x n matrix, an array (N, m, n); "
                f"got shape {G.shape}. "
                "One gradient is G[None]; gradients of a vector are G[:, :, None]."
            )
        _require_real("Fisher.from_gradients", G)
        G = G.astype(jnp.promote_types(G.dtype, jnp.float32))
        if not isinstance(G, jax.core.Tracer) and not bool(jnp.isfinite(G).all()):
            bad = np.flatnonzero(~np.isfinite(np.asarray(G)).all(axis=(1, 2)))
            raise ValueError(
                f"Fisher.from_gradients: {bad.size} of {len(G)} gradients are not finite (the first: number {bad[0]}). "
                "Drop them, or find the batch that made them: one would make every statistic NaN."
            )
        return SampleFisher(kind, normalisation or f"mean over {len(G)} gradients", G)

    @staticmethod
    def of_one(G: Float[Array, "m n"]) -> "SampleFisher":
        """g g^T of one gradient, as an optimizer sees it: unchecked, so that what is not a number stays none."""
        return SampleFisher("current gradient", "one gradient", G[None])

    @staticmethod
    def from_dense(
        F: ArrayLike,
        shape: tuple[int, int],
        *,
        kind: str = "given matrix",
        normalisation: str = "as given",
        max_bytes: int = DENSE_BYTES,
    ) -> "DenseFisher":
        """The Fisher that an (mn, mn) matrix states outright, of a matrix of this shape, columns stacked.

        Raises:
            TypeError: the matrix is complex.
            ValueError: the shapes disagree, or F is over `max_bytes`, not finite, not symmetric or indefinite.
        """
        m, n = shape
        F = jnp.asarray(F)
        if F.shape != (m * n, m * n):
            raise ValueError(
                f"Fisher.from_dense: a {m} x {n} matrix has an F of shape {(m * n, m * n)}; got {F.shape}. "
                "Give the shape of the weight matrix, as in from_dense(F, shape=(m, n))."
            )
        _require_real("Fisher.from_dense", F)
        F = F.astype(jnp.promote_types(F.dtype, jnp.float32))
        remedy = "Give gradients instead, by Fisher.from_gradients, or raise max_bytes."
        require_dense("Fisher.from_dense", remedy, (m, n), F.dtype.itemsize, max_bytes)
        if not isinstance(F, jax.core.Tracer):
            _require_positive(np.asarray(F))
        return DenseFisher(kind, normalisation, F, (m, n))

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int]:
        """(m, n) of the weight matrix."""

    @property
    @abc.abstractmethod
    def dtype(self) -> jnp.dtype:
        """float32, or float64 where it was given so with jax_enable_x64 on."""

    @abc.abstractmethod
    def second_moment(self, into: Linear = lambda G: G) -> Any:
        """E[into(G)^2], element by element, for a linear map into any tree of arrays."""

    @abc.abstractmethod
    def left(self, A: Float[Array, "n n"] | None = None) -> Float[Array, "m m"]:
        """E[G A G^T], with A = I by default."""

    @abc.abstractmethod
    def right(self, B: Float[Array, "m m"] | None = None) -> Float[Array, "n n"]:
        """E[G^T B G], with B = I by default."""

    @abc.abstractmethod
    def left_singular(self) -> Float[Array, "m m"]:
        """The left singular vectors of the samples side by side, leading first: the eigenvectors of `left()`.

        They and the right ones of a single sample are of the same decomposition: only so is U_L^T G U_R diagonal to rounding.
        """

    @abc.abstractmethod
    def right_singular(self) -> Float[Array, "n n"]:
        """The right singular vectors of the samples, one above the other: the eigenvectors of `right()`."""

    @abc.abstractmethod
    def inner(self, operator: Linear) -> Float[Array, ""]:
        """<F, T> = E<G, T(G)> for a linear operator T on (m, n) matrices."""

    @abc.abstractmethod
    def map(self, linear: Linear) -> "Fisher":
        """The Fisher of linear(G), for a linear map to matrices of any shape."""

    @abc.abstractmethod
    def scaled(self, factor: Float[ArrayLike, ""]) -> "Fisher":
        """factor * F, for a non-negative factor."""

    @abc.abstractmethod
    def dense(self, *, max_bytes: int = DENSE_BYTES) -> Float[Array, "mn mn"]:
        """F written out; a ValueError where that would take more than `max_bytes`."""

    @abc.abstractmethod
    def _norm_squared(self, unit: Float[Array, ""]) -> Float[Array, ""]:
        """||F / unit||_F^2."""

    @cached_property
    def unit(self) -> Float[Array, ""]:
        """The largest second moment, and so the largest entry of F; 1 where F is zero."""
        with jax.ensure_compile_time_eval():  # so that a jitted caller never caches one of its tracers here
            largest = self.second_moment().max()
            return jnp.where(largest > 0, largest, 1)

    @cached_property
    def norm_squared_in_units(self) -> Float[Array, ""]:
        """||F / unit||_F^2, computed once: unlike ||F||_F^2, it leaves float32 at no scale of the gradients."""
        with jax.ensure_compile_time_eval():
            return self._norm_squared(self.unit)

    @cached_property
    def norm_squared(self) -> Float[Array, ""]:
        """||F||_F^2, computed once."""
        with jax.ensure_compile_time_eval():
            return self.unit * (self.unit * self.norm_squared_in_units)

    def _form(self) -> str:
        raise NotImplementedError

    def __repr__(self) -> str:
        m, n = self.shape
        return f"Fisher of a {m} x {n} matrix {self._form()}: {self.kind}, {self.normalisation}"


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class SampleFisher(Fisher):
    """F = (1/N) sum of g g^T over the samples: linear in N, except for ||F||^2, a Gram sum made once."""

    samples: Float[Array, "*stack N m n"] | Any  # a node of a tree holds any leaf: shapes, specs, symbols

    @property
    def shape(self) -> tuple[int, int]:
        return self.samples.shape[-2:]

    @property
    def dtype(self) -> jnp.dtype:
        return self.samples.dtype

    def _form(self) -> str:
        return f"from {len(self.samples)} samples"

    @property
    def _chunk(self) -> int:
        m, n = self.shape
        return max(1, min(len(self.samples), CHUNK_BYTES // (m * n * self.dtype.itemsize)))

    def _mean(self, total: Callable[[Float[Array, "k m n"]], Any]) -> Any:
        """1/N of the sum of total(G) over chunks G, for a quadratic total; so nothing grows with N but the samples."""
        N = len(self.samples)
        if self._chunk == N:
            return jax.tree.map(lambda x: x / N, total(self.samples))
        # Padding with zero samples adds nothing to a quadratic.
        padded = jnp.pad(self.samples, [(0, -N % self._chunk), (0, 0), (0, 0)])
        chunks = padded.reshape(-1, self._chunk, *self.shape)

        def add(sum_so_far: Any, G: Float[Array, "k m n"]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sum_so_far, total(G)), None

        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(total, chunks[0]))
        return jax.tree.map(lambda x: x / N, jax.lax.scan(add, zero, chunks)[0])

    def second_moment(self, into: Linear = lambda G: G) -> Any:
        return self._mean(lambda G: jax.tree.map(lambda x: jnp.sum(x**2, 0), jax.vmap(into)(G)))

    def left(self, A: Float[Array, "n n"] | None = None) -> Float[Array, "m m"]:
        return self._mean(lambda G: jnp.einsum("kij,klj->il", G if A is None else G @ A, G))

    def right(self, B: Float[Array, "m m"] | None = None) -> Float[Array, "n n"]:
        return self._mean(lambda G: jnp.einsum("kji,kjl->il", G if B is None else B.T @ G, G))

    def left_singular(self) -> Float[Array, "m m"]:
        return singular_bases(self.samples.swapaxes(0, 1).reshape(self.shape[0], -1))[0]

    def right_singular(self) -> Float[Array, "n n"]:
        return singular_bases(self.samples.reshape(-1, self.shape[1]))[1]

    def inner(self, operator: Linear) -> Float[Array, ""]:
        return self._mean(lambda G: jnp.sum(G * jax.vmap(operator)(G)))

    def map(self, linear: Linear) -> "SampleFisher":
        if self._chunk == len(self.samples):
            return replace(self, samples=jax.vmap(linear)(self.samples))
        return replace(self, samples=jax.lax.map(linear, self.samples, batch_size=self._chunk))

    def scaled(self, factor: Float[ArrayLike, ""]) -> "SampleFisher":
        return replace(self, samples=self.samples * jnp.sqrt(factor))

    def dense(self, *, max_bytes: int = DENSE_BYTES) -> Float[Array, "mn mn"]:
        remedy = "Stay in the sample form (fit and gap never need the dense one), or raise max_bytes."
        require_dense("Fisher.dense", remedy, self.shape, self.samples.dtype.itemsize, max_bytes)
        g = jax.vmap(vec)(self.samples)
        return g.T @ g / len(g)

    def _norm_squared(self, unit: Float[Array, ""]) -> Float[Array, ""]:
        return _gram_norm_squared(self.samples, unit)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class DenseFisher(Fisher):
    """F as a matrix: the small-scale oracle."""

    matrix: Float[Array, "*stack mn mn"] | Any
    sides: tuple[int, int] = field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, int]:
        return self.sides

    @property
    def dtype(self) -> jnp.dtype:
        return self.matrix.dtype

    def _form(self) -> str:
        return "in dense form"

    @property
    def _tensor(self) -> Float[Array, "n m n m"]:
        m, n = self.shape
        return self.matrix.reshape(n, m, n, m)  # [j, i, l, k] = E[G_ij G_kl]

    def _rows(self, linear: Linear, rows: Float[Array, "k mn"]) -> Any:
        return jax.vmap(lambda row: linear(unvec(row, self.shape)))(rows)

    def second_moment(self, into: Linear = lambda G: G) -> Any:
        T = self._rows(into, jnp.eye(len(self.matrix), dtype=self.matrix.dtype))
        return jax.tree.map(lambda t, tf: jnp.sum(t * tf, 0), T, self._rows(into, self.matrix))

    def left(self, A: Float[Array, "n n"] | None = None) -> Float[Array, "m m"]:
        return jnp.einsum("jijk->ik", self._tensor) if A is None else jnp.einsum("jilk,jl->ik", self._tensor, A)

    def right(self, B: Float[Array, "m m"] | None = None) -> Float[Array, "n n"]:
        return jnp.einsum("jili->jl", self._tensor) if B is None else jnp.einsum("jilk,ik->jl", self._tensor, B)

    def left_singular(self) -> Float[Array, "m m"]:
        return eigenbasis(self.left())

    def right_singular(self) -> Float[Array, "n n"]:
        return eigenbasis(self.right())

    def inner(self, operator: Linear) -> Float[Array, ""]:
        return jnp.trace(self._rows(lambda G: vec(operator(G)), self.matrix))

    def map(self, linear: Linear) -> "DenseFisher":
        sides = jax.eval_shape(linear, jax.ShapeDtypeStruct(self.shape, self.matrix.dtype)).shape
        T = self._rows(lambda G: vec(linear(G)), jnp.eye(len(self.matrix), dtype=self.matrix.dtype)).T
        return replace(self, matrix=T @ self.matrix @ T.T, sides=sides)

    def scaled(self, factor: Float[ArrayLike, ""]) -> "DenseFisher":
        return replace(self, matrix=self.matrix * factor)

    def dense(self, *, max_bytes: int = DENSE_BYTES) -> Float[Array, "mn mn"]:
        require_dense("Fisher.dense", "Raise max_bytes.", self.shape, self.matrix.dtype.itemsize, max_bytes)
        return self.matrix

    def _norm_squared(self, unit: Float[Array, ""]) -> Float[Array, ""]:
        return jnp.sum((self.matrix / unit) ** 2)


@jax.jit
def _gram_norm_squared(samples: Float[Array, "N m n"], unit: Float[Array, ""]) -> Float[Array, ""]:
    with jax.default_matmul_precision("highest"):
        g = samples.reshape(len(samples), -1)
        gram = g @ g.T if g.shape[0] <= g.shape[1] else g.T @ g  # the smaller has the same norm
        return jnp.sum(jnp.square(gram / (len(samples) * unit)))

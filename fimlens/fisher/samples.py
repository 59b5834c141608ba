"""A Fisher of samples, wherever they are: what a mean over samples answers, and what only samples can say."""

import abc
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fimlens.fisher.fisher import Fisher, Linear


@dataclass(frozen=True, repr=False)
class Samples(Fisher):
    """F = (1/N) sum of g g^T over N samples g = Vec(G). Its `covariances` are `left()` and `right()`, where they are known."""

    covariances: tuple[Any, Any] | None = field(default=None, kw_only=True)

    @abc.abstractmethod
    def __len__(self) -> int:
        """N."""

    @abc.abstractmethod
    def _mean(self, total: Callable[[Float[Array, "k m n"]], Any]) -> Any:
        """Return 1/N of the sum of total(chunk) over chunks of samples; `total` must be quadratic in its samples."""

    @abc.abstractmethod
    def take(self, chosen: Int[np.ndarray, " k"]) -> "Samples":
        """Return the Fisher of some of the samples, by their numbers."""

    @abc.abstractmethod
    def scan(self, step: Callable[[Any, Float[Array, "m n"], Any], Any], carry: Any, beside: Array) -> Any:
        """Return carry after carry = step(carry, sample, entry) for each sample and its entry of the array `beside`."""

    @abc.abstractmethod
    def gram(self) -> Float[Array, "N N"]:
        """Return <g, g'> of all pairs of samples."""

    @abc.abstractmethod
    def mean_squares(self) -> Float[Array, " N"]:
        """Return the mean square of the entries of each sample."""

    def second_moment(self, into: Linear = lambda G: G) -> Any:
        return self._mean(lambda G: jax.tree.map(lambda x: jnp.sum(x**2, 0), jax.vmap(into)(G)))

    def left(self, A: Float[Array, "n n"] | Float[Array, " n"] | None = None) -> Float[Array, "m m"]:
        if A is None and self.covariances is not None:
            return self.covariances[0]

        def weighted(G: Float[Array, "k m n"]) -> Float[Array, "k m n"]:
            if A is None:
                return G
            return G * A if A.ndim == 1 else G @ A

        return self._mean(lambda G: jnp.einsum("kij,klj->il", weighted(G), G))

    def right(self, B: Float[Array, "m m"] | None = None) -> Float[Array, "n n"]:
        if B is None and self.covariances is not None:
            return self.covariances[1]
        return self._mean(lambda G: jnp.einsum("kji,kjl->il", G if B is None else B.T @ G, G))

    def right_diagonal(self, B: Float[Array, "m m"]) -> Float[Array, " n"]:
        return self._mean(lambda G: jnp.sum((B.T @ G) * G, (0, 1)))

    def inner(self, operator: Linear) -> Float[Array, ""]:
        return self._mean(lambda G: jnp.sum(G * jax.vmap(operator)(G)))

    def changed(self, **changes: Any) -> "Samples":
        """Return a copy of other samples, whose covariances are not known."""
        return replace(self, covariances=None, **changes)


def mean_over(chunks: Array, total: Callable[[Any], Any], count: int) -> Any:
    """Return the sum of total(chunk) over the leading axis of `chunks`, divided by `count`, one chunk after the other."""

    def add(sums: Any, chunk: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, total(chunk)), None

    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(total, chunks[0]))
    return jax.tree.map(lambda x: x / count, jax.lax.scan(add, zero, chunks)[0])

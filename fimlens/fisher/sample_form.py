"""The Fisher as samples: gradients (N, m, n), from which every question is answered without building mn x mn."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from fimlens.fisher.fisher import Linear, vec
from fimlens.fisher.limits import DENSE_BYTES, require_dense
from fimlens.fisher.samples import Samples, mean_over
from fimlens.linalg.decompositions import eigh, singular_basis

CHUNK_BYTES = 2**22  # bound on the samples that a linear map is applied to at once: those stay in the cache of a processor


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class SampleFisher(Samples):
    """F = (1/N) sum of g g^T over N samples g = Vec(G).

    Time and memory of every question are linear in N, except ||F||^2, which needs the Gram matrix of the samples.
    """

    samples: Float[Array, "*stack N m n"] | Any  # Any: as a pytree it also holds shapes, sharding specs or symbols

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
        N = len(self.samples)
        if N == 1:  # in training: one gradient
            return total(self.samples)
        if self._chunk == N:
            return jax.tree.map(lambda x: x / N, total(self.samples))
        # The last chunk is filled with zero samples, to which a quadratic total gives zero.
        padded = jnp.pad(self.samples, [(0, -N % self._chunk), (0, 0), (0, 0)])
        return mean_over(padded.reshape(-1, self._chunk, *self.shape), total, N)

    def scan(self, step: Callable[[Any, Float[Array, "m n"], Any], Any], carry: Any, beside: Array) -> Any:
        return jax.lax.scan(lambda carry, pair: (step(carry, *pair), None), carry, (self.samples, beside))[0]

    def take(self, chosen: Int[np.ndarray, " k"]) -> "SampleFisher":
        return self.changed(samples=_rows(self.samples, chosen), normalisation=f"mean over {len(chosen)} gradients")

    def mean_squares(self) -> Float[Array, " N"]:
        return jnp.mean(jnp.square(self.samples), (1, 2))

    def gram(self) -> Float[Array, "N N"]:
        return _inner_products(self.samples)

    def __len__(self) -> int:
        return len(self.samples)

    def left_singular(self) -> Float[Array, "m m"]:
        return singular_basis(self.samples.swapaxes(0, 1).reshape(self.shape[0], -1), self.shape[0])

    def right_singular(self) -> Float[Array, "n n"]:
        return singular_basis(self.samples.reshape(-1, self.shape[1]), self.shape[1], right=True)

    def map(self, linear: Linear) -> "SampleFisher":
        if len(self.samples) == 1 or self._chunk == len(self.samples):
            return self.changed(samples=jax.vmap(linear)(self.samples))
        return self.changed(samples=jax.lax.map(linear, self.samples, batch_size=self._chunk))

    def scaled(self, factor: Float[ArrayLike, ""]) -> "SampleFisher":
        samples = self.samples * jnp.sqrt(factor)  # F is quadratic in the samples
        return self.changed(samples=samples, normalisation=f"{self.normalisation}, scaled")

    def dense(self, *, max_bytes: int = DENSE_BYTES) -> Float[Array, "mn mn"]:
        remedy = "Stay in the sample form (fit and gap never need the dense one), or raise max_bytes."
        require_dense("Fisher.dense", remedy, self.shape, self.samples.dtype.itemsize, max_bytes)
        g = jax.vmap(vec)(self.samples)
        return g.T @ g / len(g)

    def _norm_squared(self, unit: Float[Array, ""]) -> Float[Array, ""]:
        return _gram_norm_squared(self.samples, unit)

    def _spectrum(self) -> Float[Array, " k"]:
        return _gram_spectrum(self.samples)


@jax.jit  # eagerly, an index takes as long as a small fit
def _rows(samples: Float[Array, "N m n"], chosen: Int[Array, " k"]) -> Float[Array, "k m n"]:
    return samples[chosen]


@jax.jit
def _gram_norm_squared(samples: Float[Array, "N m n"], unit: Float[Array, ""]) -> Float[Array, ""]:
    """Return ||F / unit||^2 as that of the Gram matrix, which has the eigenvalues of N F."""
    return jnp.sum(jnp.square(_gram(samples) / (len(samples) * unit)))


@jax.jit
def _gram_spectrum(samples: Float[Array, "N m n"]) -> Float[Array, " k"]:
    return eigh(_gram(samples) / len(samples))[0]


@jax.jit
def _inner_products(samples: Float[Array, "N m n"]) -> Float[Array, "N N"]:
    g = samples.reshape(len(samples), -1)
    return jnp.matmul(g, g.T, precision="highest")


def _gram(samples: Float[Array, "N m n"]) -> Float[Array, "k k"]:
    """The smaller of g g^T and g^T g, whose eigenvalues differ in zeros only."""
    with jax.default_matmul_precision("highest"):
        g = samples.reshape(len(samples), -1)
        return g @ g.T if g.shape[0] <= g.shape[1] else g.T @ g

"""The Fisher as a matrix (mn, mn): the small-scale oracle that the sample form is checked against."""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from fimlens.fisher.fisher import Fisher, Linear, unvec, vec
from fimlens.fisher.limits import DENSE_BYTES, require_dense
from fimlens.linalg.decompositions import eigenbasis, eigh


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class DenseFisher(Fisher):
    """F written out. `sides` is the shape (m, n) of the weight matrix, which F alone does not tell."""

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

    def _map_rows(self, linear: Linear, rows: Float[Array, "k mn"]) -> Any:
        """Apply a linear map of (m, n) matrices to each row, read as Vec of one."""
        return jax.vmap(lambda row: linear(unvec(row, self.shape)))(rows)

    def second_moment(self, into: Linear = lambda G: G) -> Any:
        # With T the matrix of `into`, E[into(G)^2] is the diagonal of T F T^T, which is the row sums of T * (T F).
        T = self._map_rows(into, jnp.eye(len(self.matrix), dtype=self.matrix.dtype))
        return jax.tree.map(lambda t, tf: jnp.sum(t * tf, 0), T, self._map_rows(into, self.matrix))

    def left(self, A: Float[Array, "n n"] | Float[Array, " n"] | None = None) -> Float[Array, "m m"]:
        A = jnp.diag(A) if A is not None and A.ndim == 1 else A
        return jnp.einsum("jijk->ik", self._tensor) if A is None else jnp.einsum("jilk,jl->ik", self._tensor, A)

    def right(self, B: Float[Array, "m m"] | None = None) -> Float[Array, "n n"]:
        return jnp.einsum("jili->jl", self._tensor) if B is None else jnp.einsum("jilk,ik->jl", self._tensor, B)

    def right_diagonal(self, B: Float[Array, "m m"]) -> Float[Array, " n"]:
        return jnp.diagonal(self.right(B))

    def left_singular(self) -> Float[Array, "m m"]:
        return eigenbasis(self.left())

    def right_singular(self) -> Float[Array, "n n"]:
        return eigenbasis(self.right())

    def inner(self, operator: Linear) -> Float[Array, ""]:
        return jnp.trace(self._map_rows(lambda G: vec(operator(G)), self.matrix))

    def map(self, linear: Linear) -> "DenseFisher":
        sides = jax.eval_shape(linear, jax.ShapeDtypeStruct(self.shape, self.matrix.dtype)).shape
        T = self._map_rows(lambda G: vec(linear(G)), jnp.eye(len(self.matrix), dtype=self.matrix.dtype)).T
        return replace(self, matrix=T @ self.matrix @ T.T, sides=sides)

    def scaled(self, factor: Float[ArrayLike, ""]) -> "DenseFisher":
        return replace(self, matrix=self.matrix * factor, normalisation=f"{self.normalisation}, scaled")

    def dense(self, *, max_bytes: int = DENSE_BYTES) -> Float[Array, "mn mn"]:
        require_dense("Fisher.dense", "Raise max_bytes.", self.shape, self.matrix.dtype.itemsize, max_bytes)
        return self.matrix

    def _norm_squared(self, unit: Float[Array, ""]) -> Float[Array, ""]:
        return jnp.sum((self.matrix / unit) ** 2)

    def _spectrum(self) -> Float[Array, " k"]:
        return eigh(self.matrix)[0]

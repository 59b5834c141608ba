"""Kronecker products: A (x) B with B full, and A full or diagonal, nearest to F in a divergence of degree b."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from fimlens.fisher.fisher import Fisher
from fimlens.linalg.decompositions import spectral
from fimlens.structure import Claim, Frame, Symmetry
from fimlens.structures.product import Bases, Product, unit


@dataclass(frozen=True)
class Kronecker(Product):
    """A (x) B, both full: the nearest Kronecker product, from samples without building anything mn x mn.

    Args:
        divergence: the sense in which it is nearest, of degree 0 to 2. Default: Frobenius. VonNeumann: Shampoo squared. LogDet:
            KL-Shampoo's fixed point.
        sweeps: how many half steps of both factors a fit makes at most, for matrices so large that each is a pass over samples
            on disk. Default: None, until they stand still.

    Raises:
        ValueError: the divergence has no degree between 0 and 2, or there are no sweeps.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> A, B = jnp.array([[2.0, 1.0], [1.0, 2.0]]), jnp.array([[5.0, 3.0], [3.0, 5.0]])
        >>> fisher = fl.Fisher.from_dense(jnp.kron(A, B), (2, 2))
        >>> params = fl.fit(fl.Kronecker(), fisher)
        >>> bool(fl.gap(fl.Kronecker(), params, fisher).relative < 1e-6)  # a Kronecker product is found
        True
    """

    @property
    def rotated_claim(self) -> Claim:
        return self.claim

    @property
    def symmetry(self) -> tuple[Symmetry, Symmetry]:
        return "orthogonal", "orthogonal"

    def frame(self, m: int, n: int) -> Frame:
        b, a = (unit(self.divergence, jnp.ones(size)) for size in (m, n))
        return Frame(Bases(jnp.eye(m), b, jnp.eye(n), a), (m, n))

    def _right(self, fisher: Fisher, B: Float[Array, "m m"]) -> Float[Array, "n n"]:
        return fisher.right(B)

    def _least(self, m: int, n: int) -> int:
        # Derksen and Makam, 2021: more than m / n + n / m, or N m n = m^2 + n^2 - 1, such as N = n for 1 x n.
        return next(N for N in range(1, m * n + 2) if (spare := N * m * n - m**2 - n**2) > 0 or spare == -1)

    def _split(self, A: Float[Array, "n n"]) -> tuple[Float[Array, "n n"], Float[Array, " n"]]:
        return spectral(A)


@dataclass(frozen=True)
class DiagonalKronecker(Product):
    """S (x) M, S diagonal: s_j = (E[G^T M G])_jj / ||M||^2, M = E[G S G^T] / ||S||^2. [G] Theorem D.1.

    Args:
        divergence: the sense in which it is nearest, of degree 0 to 2. Default: Frobenius, as in [G].
        sweeps: how many half steps of both factors a fit makes at most, for matrices so large that each is a pass over samples
            on disk. Default: None, until they stand still.

    Raises:
        ValueError: the divergence has no degree between 0 and 2, or there are no sweeps.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> S, M = jnp.diag(jnp.array([1.0, 3.0])), jnp.array([[2.0, 1.0], [1.0, 2.0]])
        >>> fisher = fl.Fisher.from_dense(jnp.kron(S, M), (2, 2))
        >>> family = fl.DiagonalKronecker()
        >>> print(family.eigenvalues(fl.fit(family, fisher)).round())  # of M, 3 and 1, times those of S
        [[3. 9.]
         [1. 3.]]
    """

    @property
    def symmetry(self) -> tuple[Symmetry, Symmetry]:
        return "orthogonal", "permutation"

    def frame(self, m: int, n: int) -> Frame:
        b, a = (unit(self.divergence, jnp.ones(size)) for size in (m, n))
        return Frame(Bases(jnp.eye(m), b, None, a), (m, n))

    def _right(self, fisher: Fisher, B: Float[Array, "m m"]) -> Float[Array, " n"]:
        return fisher.right_diagonal(B)

    def _least(self, m: int, n: int) -> int:
        return m // n + (n > 1)  # so that no subspace holds more than its share of the columns

    def _split(self, A: Float[Array, " n"]) -> tuple[None, Float[Array, " n"]]:
        return None, A

"""Derivatives of matrix decompositions, from what they return: a loss may depend on a basis, as in d loss / d learning rate.

JAX has these rules, but not for decompositions with a rule of their own for batches (`decompositions`). Where eigenvalues or
singular values tie, their vectors have no derivative: the rules leave out what would be divided by zero.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def eigh_derivative(out: tuple[Array, Array], dA: Float[Array, "m m"]) -> tuple[Array, Array]:
    """d values = diag(U^T dA U) and dU = U (K * U^T dA U), with K_ij = 1 / (value_j - value_i)."""
    values, U = out
    dC = U.T @ dA @ U
    return jnp.diagonal(dC), U @ (_over_differences(values) * dC)


def qr_derivative(out: tuple[Array, Array], dA: Float[Array, "m n"]) -> tuple[Array, Array]:
    """dQ = Q Omega + (I - Q Q^T) dA R^-1 with the skew Omega whose lower part is that of Q^T dA R^-1."""
    Q, R = out
    dA_over_R = jax.scipy.linalg.solve_triangular(R.T, dA.T, lower=True).T
    C = Q.T @ dA_over_R
    lower = jnp.tril(C, -1)
    omega = lower - lower.T
    return Q @ (omega - C) + dA_over_R, (C - omega) @ R


def svd_derivative(out: tuple[Array, Array, Array], dA: Float[Array, "m n"]) -> tuple[Array, Array, Array]:
    """Of the thin decomposition: d s = diag(U^T dA V), and the vectors turn by K_ij = 1 / (s_j^2 - s_i^2), as in eigh."""
    U, s, Vt = out
    C, K = U.T @ dA @ Vt.T, _over_differences(s**2)
    over_s = jnp.where(s == 0, 0, 1 / jnp.where(s == 0, 1, s))
    dU = U @ (K * (C * s + s[:, None] * C.T)) + (dA @ Vt.T - U @ C) * over_s
    dV = Vt.T @ (K * (s[:, None] * C + C.T * s)) + (dA.T @ U - Vt.T @ C.T) * over_s
    return dU, jnp.diagonal(C), dV.T


def _over_differences(x: Float[Array, " k"]) -> Float[Array, "k k"]:
    """1 / (x_j - x_i), and 0 where the two are equal."""
    differences = x[None] - x[:, None]
    return jnp.where(differences == 0, 0, 1 / jnp.where(differences == 0, 1, differences))

"""Orthonormal bases: the eigenbasis of a covariance, and how a basis moves."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def eigenbasis(covariance: Float[Array, "m m"], rank: int | None = None) -> Float[Array, "m r"]:
    """Eigenvectors, leading first (the first `rank` of them).

    The gauge is fixed, the largest entry of each vector positive, so that what is measured in the basis survives a
    refresh that finds the same vectors with other signs.
    """
    return spectral(covariance)[0][:, :rank]


def spectral(covariance: Float[Array, "m m"]) -> tuple[Float[Array, "m m"], Float[Array, " m"]]:
    """Eigenvectors, in the gauge of `eigenbasis`, and eigenvalues, leading first."""
    values, U = jnp.linalg.eigh(covariance)
    values, U = values[::-1], U[:, ::-1]
    largest = jnp.take_along_axis(U, jnp.abs(U).argmax(0)[None], 0)
    return U * jnp.where(largest < 0, -1, 1).astype(U.dtype), values


def cayley(U: Float[Array, "m r"], z: Float[Array, "m r"]) -> Float[Array, "m r"]:
    """An orthonormal basis for any z, U itself for z = 0: the Cayley transform of the skew part of z U^T."""
    S = (z @ U.T - U @ z.T) / 2
    eye = jnp.eye(len(U), dtype=U.dtype)
    return jnp.linalg.solve(eye - S, U + S @ U)

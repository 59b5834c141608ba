"""The leading singular pair of a linear map that preserves a cone (Perron; Krein and Rutman).

The best rank-one spectrum and the best Kronecker product are such pairs: of non-negative arrays, and of the map
A -> E[G A G^T] on positive semi-definite matrices. Power iteration that starts in the cone stays in it, so its limit is a
leading pair in the cone even where singular values tie. The locally optimal conjugate-gradient iteration (Knyazev, SIAM J.
Sci. Comput. 23, 2001) searches the same Krylov space from the same start, so it has the same limit, after about the square
root of the number of steps.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fimlens.linalg.decompositions import eigh

PATIENCE = 4  # steps near rounding without progress, before the search stops


def perron(
    forward: Callable[[Array], Array], backward: Callable[[Array], Array], start: Float[Array, "..."], steps: int = 1000
) -> Float[Array, "..."]:
    """Return the leading right singular direction of `forward`, with norm 1.

    Each step maximises the Rayleigh quotient over span{x, residual, last move}. The search stops when the residual is
    rounding, or is near rounding and no longer falls. The singular value is no criterion: near a tie it settles long before
    the vector does.

    Args:
        forward: the linear map.
        backward: its adjoint.
        start: a point of the cone, not orthogonal to the limit, such as ones or the identity.
        steps: bound on the number of steps.
    """
    eps = jnp.finfo(start.dtype).eps
    largest = jnp.abs(forward(start)).max()
    factor = 1 / jnp.where(largest > 0, largest, 1)  # the map is rescaled, so that no square leaves float32

    def unit(x: Array) -> Array:
        norm = jnp.sqrt(jnp.vdot(x, x))
        return x / jnp.where(norm > 0, norm, 1)

    def residual(x: Array, image: Array) -> tuple[Array, Array]:
        energy = jnp.vdot(image, image)  # of unit x: the squared singular value
        return factor * backward(image) - energy * x, energy

    def unconverged(state: tuple[Any, ...]) -> Array:
        *_, r, energy, _, idle, step = state
        return (step < steps) & (idle < PATIENCE) & (jnp.sqrt(jnp.vdot(r, r)) > 4 * eps * energy)

    def search(state: tuple[Any, ...]) -> tuple[Any, ...]:
        x, image, move, r, _, least, idle, step = state
        basis = [x]
        for direction in (r, move):
            direction = unit(direction)
            for _ in range(2):  # near convergence the residual nearly cancels: one pass would leave it oblique
                for b in basis:
                    direction = direction - jnp.vdot(b, direction) * b
                direction = unit(direction)
            basis.append(direction)
        S = jnp.stack(basis)
        # The image of x follows by linearity. The others are computed anew: what orthogonalisation left may be tiny.
        images = jnp.stack([image, factor * forward(S[1]), factor * forward(S[2])])
        flat = images.reshape(3, -1)
        c = eigh(flat @ flat.T)[1][:, -1]
        c = jnp.where(c[0] < 0, -c, c)  # eigh may flip the sign, and -x lies outside the cone
        x, image = (jnp.tensordot(c, T, 1) for T in (S, images))
        norm = jnp.sqrt(jnp.vdot(x, x))
        x, image = x / norm, image / norm  # the recurrence for the image drifts if x is not a unit vector
        r, energy = residual(x, image)
        size = jnp.sqrt(jnp.vdot(r, r)) / jnp.where(energy > 0, energy, 1)
        falling = size <= least / 2
        # Below 64 eps, where rounding shows, steps that do not halve the residual are counted.
        idle = jnp.where(falling | (size > 64 * eps), 0, idle + 1)
        return x, image, jnp.tensordot(c[1:], S[1:], 1), r, energy, jnp.where(falling, size, least), idle, step + 1

    x = unit(start)
    image = factor * forward(x)
    state = (x, image, jnp.zeros_like(x), *residual(x, image), jnp.asarray(jnp.inf, start.dtype), 0, 0)
    return jax.lax.while_loop(unconverged, search, state)[0]

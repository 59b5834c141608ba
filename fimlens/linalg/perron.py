"""The leading singular pair of a linear map that keeps a cone of positive things (Perron, Krein-Rutman).

Non-negative arrays under P, PSD matrices under A -> E[G A G^T]: in both, power iteration from the identity
stays in the cone, so its limit is a leading pair in the cone even where singular values tie. The locally
optimal conjugate-gradient iteration (Knyazev, SIAM J. Sci. Comput. 23, 2001) searches the same Krylov
space from the same start, so it has the same limit, in about the square root of the number of steps.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fimlens.linalg.decompositions import eigh

PATIENCE = 4


def perron(
    forward: Callable[[Array], Array], backward: Callable[[Array], Array], start: Float[Array, "..."], steps: int = 1000
) -> Float[Array, "..."]:
    """The leading right singular direction, of norm 1, of `forward`, whose adjoint is `backward`.

    Search on span{x, residual, last move}. The image of x follows by linearity; those of the other two are taken anew,
    for what orthogonalisation leaves of them may be tiny. Stops when the residual is rounding, or near it and no longer
    falling. (The singular value says nothing: near a tie it stands still long before the vector does.)
    """
    eps = jnp.finfo(start.dtype).eps
    largest = jnp.abs(forward(start)).max()
    factor = 1 / jnp.where(largest > 0, largest, 1)  # so that no square leaves float32

    def unit(x: Array) -> Array:
        norm = jnp.sqrt(jnp.vdot(x, x))
        return x / jnp.where(norm > 0, norm, 1)

    def residual(x: Array, image: Array) -> tuple[Array, Array]:
        energy = jnp.vdot(image, image)  # of unit x: the squared singular value
        return factor * backward(image) - energy * x, energy

    def restless(state: tuple[Any, ...]) -> Array:
        *_, r, energy, _, idle, step = state
        return (step < steps) & (idle < PATIENCE) & (jnp.sqrt(jnp.vdot(r, r)) > 4 * eps * energy)

    def search(state: tuple[Any, ...]) -> tuple[Any, ...]:
        x, image, move, r, _, least, idle, step = state
        basis = [x]
        for direction in (r, move):
            direction = unit(direction)
            for _ in range(2):  # twice is enough, for orthogonality to rounding
                for b in basis:
                    direction = direction - jnp.vdot(b, direction) * b
                direction = unit(direction)
            basis.append(direction)
        S = jnp.stack(basis)
        images = jnp.stack([image, factor * forward(S[1]), factor * forward(S[2])])
        flat = images.reshape(3, -1)
        c = eigh(flat @ flat.T)[1][:, -1]
        c = jnp.where(c[0] < 0, -c, c)
        x, image = (jnp.tensordot(c, T, 1) for T in (S, images))
        norm = jnp.sqrt(jnp.vdot(x, x))
        x, image = x / norm, image / norm
        r, energy = residual(x, image)
        size = jnp.sqrt(jnp.vdot(r, r)) / jnp.where(energy > 0, energy, 1)
        falling = size <= least / 2
        idle = jnp.where(falling | (size > 64 * eps), 0, idle + 1)
        return x, image, jnp.tensordot(c[1:], S[1:], 1), r, energy, jnp.where(falling, size, least), idle, step + 1

    x = unit(start)
    image = factor * forward(x)
    state = (x, image, jnp.zeros_like(x), *residual(x, image), jnp.asarray(jnp.inf, start.dtype), 0, 0)
    return jax.lax.while_loop(restless, search, state)[0]

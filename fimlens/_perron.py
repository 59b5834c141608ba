"""The leading singular pair of a linear map that keeps a cone of positive things (Perron, Krein-Rutman).

Non-negative arrays under P, PSD matrices under A -> E[G A G^T]: in both, power iteration from the identity
stays in the cone, so its limit is a leading pair in the cone even where singular values tie. The locally
optimal conjugate-gradient iteration (Knyazev, SIAM J. Sci. Comput. 23, 2001) searches the same Krylov
space from the same start, so it has the same limit, in about the square root of the number of steps.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

PATIENCE = 8


def perron(
    forward: Callable[[Array], Array], backward: Callable[[Array], Array], start: Float[Array, "..."], steps: int = 1000
) -> Float[Array, "..."]:
    """The leading right singular direction, of norm 1, of `forward`, whose adjoint is `backward`.

    Search on span{x, residual, last move}: `forward` and `backward` are applied once a step, and
    everything else follows by linearity. Stops when the residual is rounding, or when the singular value has stood still for
    some steps, as it does in float32 before a residual of many entries can be that small.
    """
    eps = jnp.finfo(start.dtype).eps

    def unit(x: Array) -> Array:
        norm = jnp.sqrt(jnp.vdot(x, x))
        return x / jnp.where(norm > 0, norm, 1)

    def residual(x: Array, image: Array) -> tuple[Array, Array]:
        energy = jnp.vdot(image, image)  # of unit x: the squared singular value
        return backward(image) - energy * x, energy

    def restless(state: tuple[Array, ...]) -> Array:
        *_, r, energy, idle, step = state
        return (step < steps) & (idle < PATIENCE) & (jnp.sqrt(jnp.vdot(r, r)) > 4 * eps * energy)

    def search(state: tuple[Array, ...]) -> tuple[Array, ...]:
        x, image, move, r, energy, idle, step = state
        w = unit(r)
        basis = [x]
        for direction in (w, move):
            for _ in range(2):  # twice is enough, for orthogonality to rounding
                for b in basis:
                    direction = direction - jnp.vdot(b, direction) * b
                direction = unit(direction)
            basis.append(direction)
        S = jnp.stack(basis)
        images = jnp.stack([image, forward(S[1]), forward(S[2])])
        flat = images.reshape(3, -1)
        c = jnp.linalg.eigh(flat @ flat.T)[1][:, -1]
        c = jnp.where(c[0] < 0, -c, c)
        new, new_image = (jnp.tensordot(c, T, 1) for T in (S, images))
        norm = jnp.sqrt(jnp.vdot(new, new))
        new, new_image = new / norm, new_image / norm
        r, grown = residual(new, new_image)
        idle = jnp.where(grown > (1 + 4 * eps) * energy, 0, idle + 1)
        return new, new_image, jnp.tensordot(c[1:], S[1:], 1), r, grown, idle, step + 1

    x = unit(start)
    image = forward(x)
    state = (x, image, jnp.zeros_like(x), *residual(x, image), 0, 0)
    return jax.lax.while_loop(restless, search, state)[0]

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

PATIENCE = 4


def perron(
    forward: Callable[[Array], Array], backward: Callable[[Array], Array], start: Float[Array, "..."], steps: int = 1000
) -> Float[Array, "..."]:
    """The leading right singular direction, of norm 1, of `forward`, whose adjoint is `backward`.

    Search on span{x, residual, last move}: `forward` and `backward` are applied once a step, and
    everything else follows by linearity. Stops when the residual is rounding, or near it and no longer falling. (The singular
    value says nothing: near a tie it stands still long before the vector does.)
    """
    eps = jnp.finfo(start.dtype).eps

    def unit(*pair: Array) -> tuple[Array, ...]:
        """A vector of norm 1, and its image along with it."""
        norm = jnp.sqrt(jnp.vdot(pair[0], pair[0]))
        return tuple(x / jnp.where(norm > 0, norm, 1) for x in pair)

    def residual(x: Array, image: Array) -> tuple[Array, Array]:
        energy = jnp.vdot(image, image)  # of unit x: the squared singular value
        return backward(image) - energy * x, energy

    def restless(state: tuple[Any, ...]) -> Array:
        *_, r, energy, _, idle, step = state
        return (step < steps) & (idle < PATIENCE) & (jnp.sqrt(jnp.vdot(r, r)) > 4 * eps * energy)

    def search(state: tuple[Any, ...]) -> tuple[Any, ...]:
        x, move, r, _, least, idle, step = state
        (w,) = unit(r)
        basis = [x]
        for direction in ((w, forward(w)), move):
            for _ in range(2):  # twice is enough, for orthogonality to rounding
                for b in basis:
                    along = jnp.vdot(b[0], direction[0])
                    direction = tuple(d - along * e for d, e in zip(direction, b, strict=True))
                direction = unit(*direction)
            basis.append(direction)
        S, images = (jnp.stack(parts) for parts in zip(*basis, strict=True))
        flat = images.reshape(3, -1)
        c = jnp.linalg.eigh(flat @ flat.T)[1][:, -1]
        c = jnp.where(c[0] < 0, -c, c)
        x = unit(*(jnp.tensordot(c, T, 1) for T in (S, images)))
        move = tuple(jnp.tensordot(c[1:], T[1:], 1) for T in (S, images))
        r, energy = residual(*x)
        size = jnp.sqrt(jnp.vdot(r, r)) / jnp.where(energy > 0, energy, 1)
        falling = size <= least / 2
        idle = jnp.where(falling | (size > 64 * eps), 0, idle + 1)
        return x, move, r, energy, jnp.where(falling, size, least), idle, step + 1

    (x,) = unit(start)
    x = (x, forward(x))
    state = (x, jax.tree.map(jnp.zeros_like, x), *residual(*x), jnp.asarray(jnp.inf, start.dtype), 0, 0)
    return jax.lax.while_loop(restless, search, state)[0][0]

"""The best bases by Jacobi sweeps: simultaneous diagonalisation, one plane rotation at a time.

This is a second way to the optimum over bases, independent of Newton's: it uses no chart and no derivative. While the other
planes are fixed, the second moments V are trigonometric polynomials of degree 2 in the angle of one. The part of ||F||^2 that a
linear spectrum explains is quadratic in V, so of degree 4, and a discrete Fourier transform gives it exactly.
"""

from collections.abc import Callable
from functools import partial
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fimlens.divergence import FROBENIUS
from fimlens.fisher.sample_form import SampleFisher
from fimlens.linalg.bases import short_side_first
from fimlens.structure import Claim, Frame, Params, Structure
from fimlens.structures import LowRank, Rotated
from fimlens.structures.spectra import Spectrum

Samples = Float[Array, "N m n"]


def rotated_sides(structure: Structure, shape: tuple[int, int]) -> tuple[bool, bool] | None:
    """Return whether a sweep rotates the left and the right side; None if sweeps do not suit the family (see above)."""
    if not isinstance(structure, Rotated | LowRank) or not isinstance(structure.inner, Spectrum):
        return None
    if structure.inner.claim_in(FROBENIUS) is not Claim.EXACT:
        return None
    if isinstance(structure, LowRank) and structure.sides == "LR":  # what it ties depends on both bases at once
        return None
    bases = jax.eval_shape(lambda: structure.frame(*shape)).bases
    return bases.left is not None, bases.right is not None


@partial(jax.jit, static_argnums=(0, 3))
def jacobi(structure: Structure, fisher: SampleFisher, start: tuple[Array, Array], sweeps: int = 60) -> Params:
    """Return the member at a joint optimum of both bases, found by sweeps from a pair of orthogonal matrices (m, m), (n, n)."""
    empty = structure.frame(*fisher.shape)
    low_rank = isinstance(structure, LowRank)
    G = short_side_first(fisher.samples) if low_rank else fisher.samples
    turn_left, turn_right = rotated_sides(structure, fisher.shape)
    score = _score(structure, *G.shape[1:])
    eye_left, eye_right = (jnp.eye(k, dtype=G.dtype) for k in G.shape[1:])
    left, right = start[0] if turn_left else eye_left, start[1] if turn_right else eye_right

    def sweep(_: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        left, right = state
        if turn_left:
            left = left @ _sweep(jnp.einsum("ji,kjl,lp->kip", left, G, right), score)
        if turn_right:
            right = right @ _sweep(jnp.einsum("ij,kil,lp->kpj", left, G, right), lambda V: score(V.T))
        return left, right

    # A fixed number of sweeps, which is more than small matrices need.
    left, right = jax.lax.fori_loop(0, sweeps, sweep, (left, right))
    left = left[:, : structure.rank] if low_rank else left
    bases = empty.bases._replace(left=left if turn_left else None, right=right if turn_right else None)
    frame = Frame(bases, empty.shape)
    return structure.fit(structure.stats(fisher, Params(frame, None)), frame)


def _score(structure: Structure, m: int, n: int) -> Callable[[Array], Array]:
    """Return a function of V, the second moments in a complete basis: how much of ||F||^2 the best eigenvalues explain."""

    def explained(spectrum: Spectrum, V: Array) -> Array:
        L = spectrum.expand(spectrum.project(spectrum.moments(V)), V.shape)
        return jnp.zeros([], V.dtype) if L is None else jnp.sum(2 * L * V - L**2)

    if isinstance(structure, Rotated):
        return lambda V: explained(structure.inner, V)
    r = structure.rank
    if r == m:
        return lambda V: explained(structure.inner, V)
    return lambda V: explained(structure.inner, V[:r]) + explained(structure.complement, V[r:])


def _sweep(G: Samples, score: Callable[[Array], Array]) -> Float[Array, "m m"]:
    """Return the product of the best rotations of all pairs of rows, each seeing those before it."""
    m = G.shape[1]
    pairs = np.array(list(combinations(range(m), 2)), dtype=np.int32).reshape(-1, 2)
    angles = jnp.arange(8) * jnp.pi / 8  # half a turn is one period, as the sign of a direction does not matter
    fine = jnp.linspace(-jnp.pi / 2, jnp.pi / 2, 65)[:-1]

    # One pair after the other, as each rotation changes the second moments that the next one sees.
    def best_pair(state: tuple[Samples, Array], pair: Array) -> tuple[tuple[Samples, Array], None]:
        G, U = state
        p, q = pair
        V = jnp.mean(G**2, 0)
        cross = jnp.mean(G[:, p] * G[:, q], 0)

        def rotated(angle: Array) -> Array:
            c, s = jnp.cos(angle), jnp.sin(angle)
            # The trace over the plane is invariant, so one of the two new rows gives the other.
            upper = c**2 * V[p] + 2 * c * s * cross + s**2 * V[q]
            return score(V.at[p].set(upper).at[q].set(V[p] + V[q] - upper))

        a2, a4 = (jnp.fft.fft(jax.vmap(rotated)(angles)) / 4)[1:3]  # harmonics 2 and 4 of the angle, without the constant

        def value(angle: Array) -> Array:
            return jnp.real(a2 * jnp.exp(2j * angle) + a4 * jnp.exp(4j * angle))

        angle = fine[jnp.argmax(value(fine) - 1e-12 * jnp.abs(fine))]  # the smallest of equally good angles
        for _ in range(4):  # Newton's method polishes the best point of the grid
            e2, e4 = a2 * jnp.exp(2j * angle), a4 * jnp.exp(4j * angle)
            slope, curvature = jnp.real(2j * e2 + 4j * e4), jnp.real(-4 * e2 - 16 * e4)
            angle = angle - jnp.where(curvature < 0, slope / jnp.where(curvature < 0, curvature, 1), 0)
        angle = jnp.where(value(angle) > value(jnp.zeros_like(angle)), angle, 0)  # never turn without gain, or sweeps drift
        c, s = jnp.cos(angle), jnp.sin(angle)
        plane = jnp.array([[c, -s], [s, c]])
        U = U.at[:, pair].set(U[:, pair] @ plane)
        return (G.at[:, pair].set(jnp.einsum("ij,kil->kjl", plane, G[:, pair])), U), None

    return jax.lax.scan(best_pair, (G, jnp.eye(m, dtype=G.dtype)), jnp.asarray(pairs))[0][1]

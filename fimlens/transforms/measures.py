"""What `fl.monitor` measures of stacks of matrices: each function gives one number a matrix, at any scale, and 0 for 0/0.

Arrays are of float32 at least. `axes` are those of one matrix, and results keep them with length 1.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from fimlens.linalg.bases import short_side_first
from fimlens.linalg.decompositions import unit_of
from fimlens.transforms.norms import of_unit_norm
from fimlens.transforms.stacked_bases import Side
from fimlens.transforms.stacking import Matrices, Stack

Axes = tuple[int, ...]
SIDES = (-2, -1)
Numbers = Float[Array, "..."]


def size(x: Array, axes: Axes = SIDES) -> Numbers:
    """||x||, the Frobenius norm."""
    unit = unit_of(x, axes)  # squares of x / unit stay within float32
    return unit * jnp.sqrt(jnp.sum((x / unit) ** 2, axes, keepdims=True))


def rms(x: Array, axes: Axes = SIDES) -> Numbers:
    """The root mean square of the entries of x."""
    unit = unit_of(x, axes)
    return unit * jnp.sqrt(jnp.mean((x / unit) ** 2, axes, keepdims=True))


def ratio(a: Numbers, b: Numbers) -> Numbers:
    """a / b, and 0 where b is 0."""
    return jnp.where(b == 0, 0, a / jnp.where(b == 0, 1, b))


def cosine(x: Array, y: Array, axes: Axes = SIDES) -> Numbers:
    """<x, y> / (||x|| ||y||)."""
    return jnp.sum(of_unit_norm(x, axes) * of_unit_norm(y, axes), axes, keepdims=True)


def gram(G: Matrices) -> Float[Array, "*stack s s"]:
    """G G^T of the shorter side, over its trace ||G||^2."""
    G = short_side_first(of_unit_norm(G))
    return G @ G.mT


def stable_rank(gram: Float[Array, "k s s"]) -> Numbers:
    """||G||_F^2 / ||G||_2^2, too large by a factor of at most s^(1/512): 1.6 % for s = 4096.

    For the Gram matrix A, tr A^(q+1) / tr A^q lies between s^(-1/q) ||A||_2 and ||A||_2. Nine squarings give q = 512, and cost
    less than a decomposition on any device.
    """
    power = gram
    for _ in range(9):
        power = power @ power
        power = ratio(power, _trace(power))  # so that nothing underflows
    return ratio(_trace(gram) * _trace(power), jnp.sum(gram * power, SIDES, keepdims=True))


def _trace(A: Float[Array, "k s s"]) -> Numbers:
    return jnp.trace(A, axis1=-2, axis2=-1)[..., None, None]


def outside(G: Stack, left: Side | None, right: Side | None) -> Numbers | None:
    """||G - P G Q||^2 / ||G||^2 for the projections P = U U^T and Q = V V^T; None if no side is projected."""
    U, V = (
        side.basis.astype(G.dtype) if side and side.basis.shape[1] > side.basis.shape[2] else None for side in (left, right)
    )
    if U is None and V is None:
        return None
    G = of_unit_norm(G)
    within = G if U is None else U @ (U.mT @ G)
    within = within if V is None else (within @ V) @ V.mT
    return size(G - within) ** 2


def off_diagonal(G: Stack, side: Side) -> Numbers:
    """||D - diag(D)|| / ||D|| for D = U^T C U, the covariance in the basis; C = G G^T where none is averaged.

    G has this side first.
    """
    U = side.basis.astype(G.dtype)
    if side.covariance is None:
        X = U.mT @ of_unit_norm(G)
        D = X @ X.mT
    else:
        C = side.covariance.astype(G.dtype)
        D = U.mT @ (C / unit_of(C, SIDES)) @ U
    return ratio(size(D - D * jnp.eye(D.shape[-1])), size(D))

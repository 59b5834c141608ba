"""Transforms that surround a structure in an optimizer's chain: they limit, clip or rescale the update of each matrix.

A matrix is the last two axes of a leaf; each index of the leading axes is a matrix of its own, and a vector is one matrix.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from fimlens._validate import require_number
from fimlens.linalg.decompositions import unit_of
from fimlens.linalg.spectral_functions import root
from fimlens.transforms.drop_in import PLACEHOLDER, drop_in
from fimlens.transforms.stacking import sides

Matrix = Float[Array, "*stack m n"]


class NormGrowthState(NamedTuple):
    """What a limiter keeps: four numbers for each matrix, all zero before the first update that is not zero.

    `norms` are phi, the norms of the last updates. `peaks` are the norms from which they fell, and `faded` are those peaks as
    they fade. A peak that has faded to the present norm is forgotten: the norm takes its place. `counts` are the updates seen.
    """

    norms: PyTree
    peaks: PyTree
    faded: PyTree
    counts: PyTree


def init_growth(norms: PyTree) -> NormGrowthState:
    """The state before the first update, for norms of these shapes and dtypes."""
    return NormGrowthState(*(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), norms) for _ in NormGrowthState._fields))


def limit_growth(norms: PyTree, kept: NormGrowthState, gamma: Float[ArrayLike, ""]) -> tuple[PyTree, NormGrowthState]:
    """Return eta for each matrix, the scale factor of its update, and the state after it: `limit_norm_growth` says the rule.

    A norm that is zero or not finite leaves the state as it was.
    """
    if not jax.tree.leaves(norms):
        return norms, kept
    # From below kappa, growth by gamma a step needs more than 20 steps to half the peak.
    kappa = gamma**-20.0 / 2

    def limited(norm: Array, *old: Array) -> tuple[Array, ...]:
        phi, peak, faded, count = old
        returns = (phi < kappa * faded) & (kappa * norm > gamma * phi)
        # The first update has no norm before it. A limit of 1 in its place keeps 0/0 out of derivatives.
        limit = gamma * jnp.where(returns, peak, jnp.where(phi == 0, 1, phi))
        eta = jnp.where(phi == 0, 1, limit / jnp.maximum(norm, limit))
        norm = norm * eta
        # Averages without bias correction make the first updates too large, by about 1 / count. Those peaks fade as fast.
        faded = faded / jnp.maximum(gamma, 1 + 1 / jnp.maximum(count, 1))
        new = norm, jnp.where(norm >= faded, norm, peak), jnp.maximum(norm, faded), count + 1
        seen = (norm > 0) & (norm < jnp.inf)
        return eta.astype(phi.dtype), *(jnp.where(seen, now, x).astype(x.dtype) for now, x in zip(new, old, strict=True))

    found = jax.tree.map(limited, norms, *kept)
    etas, *state = jax.tree.transpose(jax.tree.structure(norms), jax.tree.structure((0,) * (1 + len(kept))), found)
    return etas, NormGrowthState(*state)


def limit_norm_growth(gamma: Float[ArrayLike, ""] = 1.01) -> optax.GradientTransformation:
    """Limit how much the norm of each matrix's update grows in one step. Use it against spikes of the loss.

    The update U is scaled by eta = gamma / max(||U|| / phi, gamma), and then phi <- eta ||U||. [G] Algorithm 1 limits RACS in
    this way, after Fira (Chen et al., 2024). There one tiny update freezes a matrix, because its norm takes hundreds of steps
    to grow again; and a zero freezes it for ever. Here a norm may return to where it was, by three rules:

    - The peak is the norm from which the norms fell. It fades by gamma a step, and by 1 + 1/t at step t if that is more. It is
      forgotten when it has faded to the present norm. It counts where the last norm is below kappa = gamma^-20 / 2 of the faded
      peak. There a norm over gamma phi / kappa is limited to gamma times the peak, in place of gamma phi. All other steps are
      those of [G].
    - An update of zero leaves the state as it was.
    - An update whose norm is not finite leaves the state as it was, and what is not finite in it stays so.

    Args:
        gamma: largest ratio of one update's norm to the norm of the update before it. Default: 1.01, as in [G] and Fira.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> tx = fl.limit_norm_growth(gamma=1.25)
        >>> state = tx.init(jnp.ones((2, 2)))
        >>> for scale in (1.0, 9.0, 1e-9, 9.0):  # the last one returns to the second, and grows from there
        ...     update, state = tx.update(jnp.full((2, 2), scale), state)
        ...     print(f"{jnp.linalg.norm(update):.3g}")
        2
        2.5
        2e-09
        3.12
    """

    return drop_in(_init_limiter, _limited, gamma)


def _init_limiter(gamma: Float[ArrayLike, ""], params: PyTree) -> NormGrowthState:
    del gamma
    if isinstance(params, PLACEHOLDER):
        return NormGrowthState(*jnp.zeros(4))  # norms are no parameters
    return init_growth(jax.eval_shape(lambda tree: jax.tree.map(matrix_norm, tree), params))


def _limited(gamma: Float[ArrayLike, ""], updates: PyTree, state: NormGrowthState) -> tuple[PyTree, NormGrowthState]:
    etas, state = limit_growth(jax.tree.map(matrix_norm, updates), state, gamma)
    return jax.tree.map(lambda x, e: (x * e).astype(x.dtype), updates, etas), state


def scale_by_trust_ratio(coefficient: Float[ArrayLike, ""] = 1.0) -> optax.GradientTransformation:
    """Scale each matrix's update U by coefficient * ||W|| / ||U||, and by 1 where either norm is zero.

    LARS and LAMB (You et al., 2017, 2020). `optax.scale_by_trust_ratio` takes one ratio for each leaf; this takes one for each
    matrix.
    """

    def ratio(U: Array, W: ArrayLike) -> Array:
        weight_norm, update_norm = matrix_norm(W), matrix_norm(U)
        unscaled = (weight_norm == 0) | (update_norm == 0)
        # The inner `where` keeps 0/0 out of the branch that is not taken: its NaN would reach derivatives.
        r = jnp.where(unscaled, 1, coefficient * weight_norm / jnp.where(unscaled, 1, update_norm))
        return (U * r).astype(U.dtype)

    return optax.stateless(lambda updates, params: jax.tree.map(ratio, updates, _required("scale_by_trust_ratio", params)))


def clip_by_rms(threshold: Float[ArrayLike, ""]) -> optax.GradientTransformation:
    """Scale each matrix's update down to a root mean square of at most `threshold`.

    `optax.clip_by_block_rms` clips each leaf; this clips each matrix.
    """

    def clipped(U: Array) -> Array:
        return (U / jnp.maximum(1, _rms(U) / threshold)).astype(U.dtype)

    return optax.stateless(lambda updates, params: jax.tree.map(clipped, updates))


def match_rms(rms: Float[ArrayLike, ""] = 0.2) -> optax.GradientTransformation:
    """Scale each matrix's update to one root mean square. Use it after a direction to keep AdamW's learning rate and decay.

    AdamW's updates have a root mean square of about 0.2 while a model trains (Liu et al., 2025). A direction of that size can
    take the rate and the weight decay that were tuned for AdamW. Each index of leading axes is a matrix of its own, and a
    vector is one matrix. An update of zero stays zero.

    Args:
        rms: root mean square of each matrix's update. Default: 0.2, as in Liu et al.

    Raises:
        ValueError: `rms` is negative.

    Examples:
        >>> import jax.numpy as jnp, optax, fimlens as fl
        >>> direction = optax.chain(fl.scale_by_racs(), fl.match_rms(0.2))
        >>> G = jnp.array([[1.0, -20.0], [300.0, 4.0]])
        >>> updates, _ = direction.update(G, direction.init(G))
        >>> print(f"{jnp.sqrt(jnp.mean(updates**2)):.4f}")
        0.2000
    """

    require_number("match_rms", "rms", rms, 0)

    def matched(U: Array) -> Array:
        return (of_unit_norm(U) * (rms * math.prod(sides(U.shape)) ** 0.5)).astype(U.dtype)

    return optax.stateless(lambda updates, params: jax.tree.map(matched, updates))


def with_norms_kept(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx`, whose update of each matrix is brought to the norm of what `tx` was given."""

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        moved, state = tx.update(updates, state, params)
        return jax.tree.map(lambda U, G: (of_unit_norm(U) * matrix_norm(G)).astype(U.dtype), moved, updates), state

    return optax.GradientTransformation(tx.init, update)


def scale_by_weight_rms(least: Float[ArrayLike, ""] = 1e-3) -> optax.GradientTransformation:
    """Scale each matrix's update by the root mean square of its weights, or by `least` if that is larger.

    `optax.scale_by_param_block_rms` scales each leaf; this scales each matrix.
    """

    def scaled(U: Array, W: ArrayLike) -> Array:
        return (U * jnp.maximum(_rms(W), least)).astype(U.dtype)

    return optax.stateless(lambda updates, params: jax.tree.map(scaled, updates, _required("scale_by_weight_rms", params)))


def standardize_rows(eps: Float[ArrayLike, ""] = 1e-8) -> optax.GradientTransformation:
    """Subtract from each row its mean and divide it by its standard deviation: the first half of SWAN (Ma et al., 2024)."""

    def standardized(G: Array) -> Array:
        x = at_least_float32(jnp.atleast_2d(G))
        x = x / unit_of(x, -1)  # the squares below stay in range for rows of any scale
        x = x - x.mean(-1, keepdims=True)
        spread = jnp.sqrt(jnp.mean(x**2, -1, keepdims=True)) + eps
        return (x / jnp.where(spread == 0, 1, spread)).astype(G.dtype).reshape(G.shape)

    return optax.stateless(lambda updates, params: jax.tree.map(standardized, updates))


def at_least_float32(x: ArrayLike) -> Array:
    """The array in float32, or in its own dtype if that is wider: statistics and norms are computed so."""
    return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))


def matrix_norm(x: ArrayLike) -> Array:
    """Frobenius norms over the last two axes, which stay with length 1."""
    x = at_least_float32(x)
    return root(jnp.sum(_squared(x), axis=(-2, -1) if x.ndim >= 2 else None, keepdims=True))


def of_unit_norm(x: ArrayLike, axes: tuple[int, ...] = (-2, -1)) -> Array:
    """Each matrix over its Frobenius norm, whatever its scale; zero where it is zero. A matrix is along `axes`."""
    matrices = jnp.atleast_2d(at_least_float32(x))
    matrices = matrices / unit_of(matrices, axes)  # before the norm, whose squares would leave float32
    size = root(jnp.sum(_squared(matrices), axes, keepdims=True))
    return (matrices / jnp.where(size == 0, 1, size)).reshape(jnp.shape(x))


def _squared(x: Array) -> Array:
    """|x|^2 of each entry: Optax's directions also take complex leaves."""
    return jnp.real(x) ** 2 + jnp.imag(x) ** 2 if jnp.iscomplexobj(x) else x**2


def _rms(x: ArrayLike) -> Array:
    """Root mean squares of the matrices, shaped as `matrix_norm`; 0 for empty ones."""
    return matrix_norm(x) / max(1, math.prod(sides(jnp.shape(x)))) ** 0.5


def _required(call: str, params: PyTree) -> PyTree:
    if params is None:
        raise ValueError(f"{call}: needs the parameters. Call tx.update(gradients, state, params).")
    return params

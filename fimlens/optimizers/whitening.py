"""Muon, SWAN and exact whitening: every singular value of the update becomes one."""

import optax
from jax.typing import DTypeLike

from fimlens._validate import require_number
from fimlens.optimizers.eigenbasis import Whole
from fimlens.optimizers.full_chain import Number, Transform, full_chain
from fimlens.structures import Rotated, Rows, Singular
from fimlens.transforms.momentum import adam_with_guards, average_updates
from fimlens.transforms.norms import standardize_rows
from fimlens.transforms.orthogonalize import orthogonalize, over_longer_side, scale_by_shape, with_short_side_first
from fimlens.transforms.structure_transform import scale_by_structure

# --- of matrices ----------------------------------------------------------------------------------------------


def scale_by_muon(
    *,
    beta: Number = 0.95,
    nesterov: bool = True,
    root: str = "newton-schulz",
    steps: Whole = 5,
    scale: str = "width",
    eps: Number = 1e-8,
    momentum_dtype: DTypeLike | None = None,
) -> Transform:
    """Muon (Jordan, 2024): H = {I (x) M}, EXACT for the momentum alone, M = E[GG^T] / n ([G] Proposition 2).

    State: m n, the momentum. `root` is "newton-schulz", as in `optax.contrib.muon`, whose trajectory this follows, and only
    near that root; or "exact", the polar factor itself, which is the one that the lens judges, and has no use for `steps` and
    `eps`. `scale`: see `scale_by_shape`.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> tx = fl.scale_by_muon(scale="rms", momentum_dtype=jnp.bfloat16)  # updates about as large as Adam's
        >>> momentum = tx.init(jnp.ones((3, 4)))[0].momentum  # all that is kept
        >>> momentum.shape, momentum.dtype.name
        ((3, 4), 'bfloat16')
    """
    require_number("muon", "beta", beta, 0, below=1)
    require_number("muon", "steps", steps, 1, whole=True)
    require_number("muon", "eps", eps, 0)
    roots = {"newton-schulz": orthogonalize(steps, eps=eps), "exact": optax.chain(whiten(), over_longer_side())}
    if root not in roots:
        raise ValueError(f"muon: root is one of {', '.join(map(repr, roots))}; got {root!r}")
    return optax.chain(average_updates(beta, nesterov=nesterov, dtype=momentum_dtype), roots[root], scale_by_shape(scale))


def scale_by_swan(*, eps: Number = 1e-8) -> Transform:
    """SWAN (Ma et al., 2024): rows standardised, then whitened: H = {I (x) M}, EXACT for what the standardisation leaves.

    State: nothing. Rows are those of the matrix as given (of x @ W one for each input); only the whitening has the shorter
    side first. It is the exact root, with [G]'s factor, the root of the longer side. eps, of the standardisation, is relative
    to the largest entry of its row.

    Examples:
        >>> import jax, jax.numpy as jnp, optax, fimlens as fl
        >>> tx = optax.chain(fl.matrices(fl.scale_by_swan()), optax.scale_by_learning_rate(1e-3))
        >>> jax.tree.leaves(tx.init({"kernel": jnp.ones((3, 4))})[0].inner_states["method"])  # nothing is kept
        []
    """
    return optax.chain(standardize_rows(eps), whiten())


def whiten() -> Transform:
    """The longer side's root times the polar factor: Mat(F~^{-1/2} Vec(G)), F~ nearest to the current gradient's Fisher.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> tx, G = fl.whiten(), jnp.array([[3.0, 0.0, 0.0, 0.0], [0.0, 5.0, 0.0, 0.0]])
        >>> updates, _ = tx.update(G, tx.init(G))
        >>> print(jnp.abs(updates).round())  # the root of the longer side, and singular values of 1 for 3 and 5
        [[2. 0. 0. 0.]
         [0. 2. 0. 0.]]
    """
    return with_short_side_first(scale_by_structure(Rotated(Rows(), "L", Singular()), b1=None, b2=None, eps=0.0))


# --- the full chains of those ---------------------------------------------------------------------------------

muon = full_chain(scale_by_muon, adam=adam_with_guards(nesterov=True))  # as Optax's Muon


swan = full_chain(scale_by_swan)

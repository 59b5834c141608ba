"""Muon, SWAN and exact whitening: every singular value of the update becomes one."""

import optax
from jax.typing import DTypeLike

from fimlens._validate import require_number
from fimlens.optimizers.full_chain import Number, Transform, Whole, full_chain
from fimlens.structures import Rotated, Rows, Singular
from fimlens.transforms.dtypes import StateDtypes, state_dtypes
from fimlens.transforms.momentum import average_updates, compute_in_float32
from fimlens.transforms.norms import standardize_rows
from fimlens.transforms.orthogonalize import (
    Coefficients,
    orthogonalize,
    over_longer_side,
    scale_by_shape,
    with_short_side_first,
)
from fimlens.transforms.structure_transform import scale_by_structure


def scale_by_muon(
    *,
    beta: Number = 0.95,
    nesterov: bool = True,
    root: str = "newton-schulz",
    steps: Whole = 5,
    coefficients: Coefficients = "jordan",
    scale: str = "width",
    eps: Number = 1e-8,
    dtypes: StateDtypes | DTypeLike | None = None,
) -> Transform:
    """Muon (Jordan, 2024): the polar factor of the momentum. Use it for the lowest loss at one moment of state.

    H = {I (x) M}, EXACT for the momentum's own outer product, M = E[GG^T] / n ([G] Proposition 2). State: m n, the momentum.
    It follows `optax.contrib.muon` step by step.

    Args:
        beta: decay of the momentum. Default: 0.95, as in Jordan.
        nesterov: whether the momentum looks one step ahead. Default: True, as in Jordan.
        root: "newton-schulz" is the iteration of Jordan and Optax, which brings singular values from 1e-3 to 1 between 0.47 and
            1.2. "exact" is the polar factor itself, which `fl.compare` judges and which ignores `steps`, `coefficients` and
            `eps`. Default: "newton-schulz".
        steps: number of Newton-Schulz iterations. Default: 5, as in Jordan.
        coefficients: those of the iterations: "jordan", "polar-express" or numbers; see `fl.orthogonalize`. Default:
            "jordan", as in Optax; in training "polar-express" was not better (benchmarks/README.md).
        scale: scale by the matrix's shape: "width", "fisher" or "rms", the last for updates as large as Adam's (Liu et al.,
            2025). Default: "width", sqrt(max(1, n/m)), as in Jordan.
        eps: number added to the norm that the iteration divides by. Default: 1e-8, as in Optax.
        dtypes: `fl.StateDtypes` of the stored state, or one dtype; here of the momentum. Default: None, the weights' dtype.

    Raises:
        TypeError: (at init) a parameter is not of real floating point.
        ValueError: an option is out of its range.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> tx = fl.scale_by_muon(scale="rms", dtypes=jnp.bfloat16)  # updates about as large as Adam's
        >>> momentum = tx.init(jnp.ones((3, 4)))[0].momentum  # the whole state
        >>> momentum.shape, momentum.dtype.name
        ((3, 4), 'bfloat16')
    """
    require_number("muon", "beta", beta, 0, below=1)
    require_number("muon", "steps", steps, 1, whole=True)
    require_number("muon", "eps", eps, 0)
    roots = {"newton-schulz": orthogonalize(steps, coefficients, eps), "exact": optax.chain(whiten(), over_longer_side())}
    if root not in roots:
        raise ValueError(f"muon: root is one of {', '.join(map(repr, roots))}; got {root!r}")
    momentum = average_updates(beta, nesterov=nesterov, dtype=state_dtypes(dtypes).momentum)
    return compute_in_float32(optax.chain(momentum, roots[root], scale_by_shape(scale)))


def scale_by_swan(*, eps: Number = 1e-8) -> Transform:
    """SWAN (Ma et al., 2024): standardised rows, then whitening, without any state. Use it where memory allows none.

    H = {I (x) M}, EXACT for the standardised gradient. State: nothing. Rows are those of the given matrix, one for each input
    in x @ W; only the whitening transposes a matrix to put its shorter side first. The root is exact, and the update has [G]'s
    factor, the root of the longer side.

    Args:
        eps: number added to the standard deviation of a row, relative to the row's largest entry. Default: 1e-8.

    Raises:
        TypeError: (at update) a gradient is not of real floating point.

    Examples:
        >>> import jax, jax.numpy as jnp, optax, fimlens as fl
        >>> tx = optax.chain(fl.matrices(fl.scale_by_swan()), optax.scale_by_learning_rate(1e-3))
        >>> jax.tree.leaves(tx.init({"kernel": jnp.ones((3, 4))})[0].inner_states["method"])  # no state
        []
    """
    return compute_in_float32(optax.chain(standardize_rows(eps), whiten()))


def whiten() -> Transform:
    """Whiten each gradient exactly: the building block of SWAN, and of Muon with root="exact".

    The update is Mat(F~^{-1/2} Vec(G)), F~ nearest to the current gradient's Fisher in H = {I (x) M}: the polar factor times
    the root of the longer side ([G] Proposition 2). State: nothing.

    Raises:
        TypeError: (at update) a gradient is not of real floating point.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> tx, G = fl.whiten(), jnp.array([[3.0, 0.0, 0.0, 0.0], [0.0, 5.0, 0.0, 0.0]])
        >>> updates, _ = tx.update(G, tx.init(G))
        >>> print(jnp.abs(updates).round())  # the root of the longer side, and singular values of 1 for 3 and 5
        [[2. 0. 0. 0.]
         [0. 2. 0. 0.]]
    """
    return with_short_side_first(scale_by_structure(Rotated(Rows(), "L", Singular()), b1=None, b2=None, eps=0.0))


# Optax's Muon gives the other leaves Nesterov's Adam, so this chain follows it for every leaf.
muon = full_chain(scale_by_muon, adam_nesterov=True)


swan = full_chain(scale_by_swan)

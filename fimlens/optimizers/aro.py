"""ARO: a direction without a state, taken in a basis that turns with the momentum and with what the direction makes of it."""

import optax
from jax.typing import DTypeLike

from fimlens._validate import require_number
from fimlens.divergence import LogDet
from fimlens.optimizers.full_chain import Number, Transform, Whole, full_chain
from fimlens.structure import Structure
from fimlens.structures import RowColumn
from fimlens.transforms.dtypes import StateDtypes, state_dtypes
from fimlens.transforms.momentum import average_updates, compute_in_float32
from fimlens.transforms.turning import scale_in_turning_basis

SINKGD = RowColumn(5, divergence=LogDet())


def scale_by_aro(
    *,
    b1: Number = 0.95,
    inner: Structure = SINKGD,
    update_interval: Whole = 1,
    nesterov: bool = False,
    eps: Number = 1e-8,
    scale: Number = 0.2,
    dtypes: StateDtypes | DTypeLike | None = None,
) -> Transform:
    """ARO (2602.09006): the momentum, scaled in a basis of its own that turns at every step. Use it where Muon is used.

    H = {R inner R^T}, of the momentum M alone: R <- QR( M f(R^T M)^T ), and the update is R f(R^T M). Here f scales by the
    inner structure's member nearest to R^T M alone (`fl.scale_in_turning_basis`). State: m n + r^2, the momentum and R. With
    `fl.Rows()` it is Muon at convergence, and with `fl.Diagonal()` f is the sign. The default, SinkGD's sweeps, is what its
    authors found best. This follows the description in the paper, not a code. Our choices: R is on the shorter side and starts
    at the identity, f has no average of its own, and vectors enter QR by their part of the gain.

    Args:
        b1: decay of the momentum. Default: 0.95, as in Muon.
        inner: the structure in the rotated coordinates, without bases of its own. Default: five sweeps of SinkGD.
        update_interval: steps between refreshes of R. Default: 1.
        nesterov: whether the momentum looks one step ahead. Default: False.
        eps: number added to the root of each eigenvalue. Default: 1e-8.
        scale: root mean square of an update before the rate, so that AdamW's rates fit. Default: 0.2.
        dtypes: `fl.StateDtypes` of the stored state, or one dtype; here of the momentum. Default: None, the weights' dtype.

    Raises:
        TypeError: `inner` is no structure, or (at init) a parameter is not of real floating point.
        ValueError: `inner` has bases, or an option is out of its range.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> tx = fl.scale_by_aro()
        >>> updates, state = tx.update(jnp.array([[3.0, 0.0, 1.0], [1.0, 2.0, 0.0]]), tx.init(jnp.ones((2, 3))))
        >>> print(jnp.sqrt(jnp.mean(updates**2)).round(3))
        0.2
    """
    require_number("aro", "b1", b1, 0, below=1)
    require_number("aro", "eps", eps, 0)
    require_number("aro", "scale", scale, 0)
    momentum = average_updates(b1, nesterov=nesterov, dtype=state_dtypes(dtypes).momentum)
    direction = scale_in_turning_basis(inner, eps=eps, update_interval=update_interval)
    return compute_in_float32(optax.chain(momentum, direction, optax.scale(scale)))


aro = full_chain(scale_by_aro)

"""LARS and LAMB: the norm of each matrix's update follows the norm of its weights."""

from typing import Any

import optax
from jax.typing import DTypeLike

from fimlens.optimizers.full_chain import Number, Rate, Transform, require_rate
from fimlens.optimizers.links import decay_weights, scale_by_adam
from fimlens.optimizers.signature import takes_optax_names
from fimlens.structures import Scalar
from fimlens.transforms.as_matrix import as_matrices
from fimlens.transforms.dtypes import StateDtypes, state_dtypes
from fimlens.transforms.momentum import compute_in_float32, keep_state_dtypes
from fimlens.transforms.norms import scale_by_trust_ratio
from fimlens.transforms.structure_transform import scale_by_structure


@takes_optax_names
def lars(
    learning_rate: Rate,
    *,
    momentum: Number = 0.9,
    nesterov: bool = False,
    trust_coefficient: Number = 0.001,
    eps: Number = 0.0,
    weight_decay: Rate = 0.0,
    mask: Any = None,
    axes: Any = None,
    dtypes: StateDtypes | DTypeLike | None = None,
) -> Transform:
    """LARS (You et al., 2017): momentum SGD for very large batches, with a step relative to each matrix's norm. `optax.lars`.

    H = {c I}, EXACT for the current gradient, c = ||G||^2 / (m n); the update is then scaled by ||W||. State: m n, the
    momentum. It differs from Optax in two ways. Optax takes one ratio for each leaf, and this one for each matrix. Where ||W||
    is zero the update is G in Optax, and G / sqrt(c) here.

    Args:
        learning_rate: step size: a number, an array or an Optax schedule.
        momentum: decay of the sum of scaled updates. Default: 0.9, as in You et al.
        nesterov: whether the momentum looks one step ahead. Default: False.
        trust_coefficient: norm of the update before the rate, relative to ||W||. Default: 0.001, as in You et al.
        eps: number added to sqrt(c). Default: 0, as in Optax.
        weight_decay: number or schedule times the weights that is added to the gradient before it is scaled. Default: 0.
        mask: the leaves that decay: a tree of bools, or a function from parameters to one. Default: None, all leaves.
        axes: which axes of a leaf are a matrix; see `fl.as_matrix`. Default: None, by evidence; a leaf of more than two axes
            without any is a stack of matrices, its last two axes, and `init` warns of it.
        dtypes: `fl.StateDtypes` of the stored state, or one dtype; here of the momentum. Default: None, the weights' dtype.

    Raises:
        TypeError: the learning rate is neither a number, an array nor a schedule, or (at init) a parameter is not of real
            floating point.
        ValueError: (at update) the parameters are not given.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> w = jnp.array([[3.0, 4.0]])
        >>> tx = fl.lars(2.0, trust_coefficient=0.001)
        >>> updates, _ = tx.update(jnp.array([[0.0, 100.0]]), tx.init(w), w)
        >>> print(f"{jnp.linalg.norm(updates):.4f}")  # 2 x 0.001 x ||w||, whatever the gradient's norm
        0.0100
    """
    require_rate("lars", "learning_rate", learning_rate)
    direction = scale_by_structure(Scalar(), b1=None, b2=None, eps=eps)
    steps = optax.chain(
        decay_weights(weight_decay, mask),
        as_matrices("lars", optax.chain(direction, scale_by_trust_ratio(trust_coefficient)), axes),
        # The rate stands before the momentum, as in You et al.: old steps keep the rate of their time.
        optax.scale_by_learning_rate(learning_rate),
        keep_state_dtypes(optax.trace(momentum, nesterov, state_dtypes(dtypes).momentum)),
    )
    return compute_in_float32(steps)


@takes_optax_names
def lamb(
    learning_rate: Rate,
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-6,
    eps_root: Number = 0.0,
    weight_decay: Rate = 0.0,
    mask: Any = None,
    *,
    axes: Any = None,
    dtypes: StateDtypes | DTypeLike | None = None,
) -> Transform:
    """LAMB (You et al., 2020): Adam for very large batches, with a step relative to each matrix's norm. `optax.lamb`.

    H = {Diag(v)}, EXACT, as in Adam; the update is then scaled by ||W|| / ||U||. State: 2 m n. Optax takes one ratio for each
    leaf, and this one for each matrix; for leaves of up to two axes the two agree.

    Args:
        learning_rate: step size: a number, an array or an Optax schedule.
        b1: decay of the momentum. Default: 0.9, as in You et al.
        b2: decay of the second moments. Default: 0.999, as in You et al.
        eps: number added to the root of each second moment. Default: 1e-6, as in You et al.
        eps_root: number added to each second moment under the root. Default: 0, as in Optax.
        weight_decay: number or schedule times the weights that is added to Adam's update before it is scaled. Default: 0.
        mask: the leaves that decay: a tree of bools, or a function from parameters to one. Default: None, all leaves.
        axes: which axes of a leaf are a matrix; see `fl.as_matrix`. Default: None, by evidence; a leaf of more than two axes
            without any is a stack of matrices, its last two axes, and `init` warns of it.
        dtypes: `fl.StateDtypes` of the stored state, or one dtype for all of it. Default: None, float32 at least.

    Raises:
        TypeError: the learning rate is neither a number, an array nor a schedule, or (at init) a parameter is not of real
            floating point.
        ValueError: (at update) the parameters are not given.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> w = jnp.array([[3.0, 4.0]])
        >>> tx = fl.lamb(0.01)
        >>> updates, _ = tx.update(jnp.array([[1.0, 100.0]]), tx.init(w), w)
        >>> print(f"{jnp.linalg.norm(updates):.4f}")  # the rate times ||w||
        0.0500
    """
    require_rate("lamb", "learning_rate", learning_rate)
    direction = scale_by_adam(b1, b2, eps, eps_root, dtypes=dtypes)
    rate = optax.scale_by_learning_rate(learning_rate)
    scaled = as_matrices("lamb", scale_by_trust_ratio(), axes)
    return compute_in_float32(optax.chain(direction, decay_weights(weight_decay, mask), scaled, rate))

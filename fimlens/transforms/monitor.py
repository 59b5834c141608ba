"""A wrapper that measures an optimizer while it trains, and keeps what it reads in the optimizer's state."""

from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from fimlens._validate import require_number, require_size, require_transform
from fimlens.transforms.axes import Axes
from fimlens.transforms.drop_in import PLACEHOLDER, compiled_once
from fimlens.transforms.leaf_rules import Rule
from fimlens.transforms.matrix_step import refresh_if_due
from fimlens.transforms.readings import Given, Readings, all_readings
from fimlens.transforms.ring import Ring, empty_ring, in_order, record
from fimlens.transforms.stacked_bases import Place, places_in_stacks, stacks_with_bases


class MonitorState(NamedTuple):
    """The state of `fl.monitor`: that of the transform within, the steps made, the readings, and the last gradients.

    `readings` holds for each reading the names of its matrices and one array of their values, in the order of the names. The
    names are the keys of a dict without leaves: they cost no buffer, and every checkpoint keeps them.

    Examples:
        >>> import jax.numpy as jnp, optax, fimlens as fl
        >>> state = fl.monitor(optax.sgd(0.1)).init({"b": jnp.ones(2), "c": jnp.ones(3)})
        >>> names, values = state.readings["cosine"]
        >>> list(names), values.shape
        (['b', 'c'], (2,))
    """

    inner: PyTree
    steps: Int[Array, ""]
    readings: Readings
    ring: Ring


def monitor(
    tx: optax.GradientTransformation,
    interval: Int[ArrayLike, ""] = 100,
    *,
    axes: Axes | Rule | PyTree | None = None,
    ring: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Measure the optimizer `tx` while it trains, without changing its updates. Use it to log what each matrix does.

    Wrap the whole optimizer: the gradient G is what `tx` is given, and the update U what it returns for the weights W. Every
    `interval` steps the monitor puts its readings, float32 numbers, into the state, where `fl.readings` finds them. Other steps
    only count. Each leaf has the readings

    - `update_rms`: the root mean square of U;
    - `relative_update`: ||U|| / ||W||;
    - `cosine`: <U, G> / (||U|| ||G||), which is -1 for gradient descent.

    A leaf of matrices, as `fl.routes` shows them, has these for each of its matrices, and also

    - `stable_rank`: ||G||_F^2 / ||G||_2^2, how many directions of the largest singular value would have the norm of G. It is at
      most 2 % too large, as it is found from powers of the Gram matrix of the shorter side.

    Where the state holds bases of a matrix, those that the step leaves:

    - `outside`: ||G - P G Q||^2 / ||G||^2, the share of G outside the subspaces of low rank that P and Q project on;
    - `staleness_left`, `staleness_right`: ||D - diag(D)|| / ||D||, where D is the covariance of that side in its basis. It is 0
      in an eigenbasis, and grows until the next refresh. The covariance is the average that the basis follows, or that of G
      alone where no such average is kept.

    If `update_interval` of `tx` divides `interval`, readings find the bases at their oldest: the next step refreshes them. Zero
    stands for 0/0 and for a division by zero weights. A gradient that is not finite has readings that are not.

    Args:
        tx: any optimizer or transform of Optax or fimlens.
        interval: steps between readings; the first is made at step `interval`.
        axes: which axes of a leaf are a matrix, as you gave it to `tx`; see `fl.matrices`. Default: None, by the evidence
            described there.
        ring: how many of the last gradients of each matrix to keep, for `fl.recent_gradients` and `fl.estimate`. Each takes
            as much memory as the matrices of the model. Default: 0.

    Raises:
        TypeError: `tx` is no transform, `ring` is no whole number or, at a step, the state is not a monitor's.
        ValueError: `interval` or `ring` is out of its range, or (at a step) no parameters are given.

    Examples:
        >>> import jax.numpy as jnp, fimlens as fl
        >>> tx, W = fl.monitor(fl.sgd(0.5), interval=1), {"w": jnp.array([[3.0, 0.0], [0.0, 4.0]])}
        >>> updates, state = tx.update({"w": jnp.eye(2)}, tx.init(W), W)
        >>> {name: round(value, 3) for name, value in fl.readings(state).items()}
        {'w/cosine': -1.0, 'w/relative_update': 0.141, 'w/stable_rank': 2.0, 'w/update_rms': 0.354}
    """
    require_transform("monitor", "tx", tx)
    require_number("monitor", "interval", interval, 1, whole=True)
    require_size("monitor", "ring", ring, least=0)
    tx = optax.with_extra_args_support(tx)

    @lru_cache(maxsize=8)  # a step outside `jax.jit` would trace tx.init each time
    def places_for(treedef: Any, *leaves: jax.ShapeDtypeStruct) -> tuple[Place, ...]:
        return places_in_stacks(tx.init, treedef.unflatten(leaves))

    def places(params: PyTree) -> tuple[Place, ...]:
        leaves, treedef = jax.tree.flatten(params)
        return places_for(treedef, *map(_shape, leaves))

    def init(params: PyTree) -> MonitorState:
        inner, steps = tx.init(params), jnp.zeros([], jnp.int32)
        if isinstance(params, PLACEHOLDER):
            return MonitorState(inner, steps, jnp.zeros([]), jnp.zeros([]))  # neither has the shape of a parameter
        # By shapes alone, as the types of arrays on meshes of explicit axes would ask how to shard each product.
        shapes = jax.tree.map(_shape, Given(params, params, params, stacks_with_bases(inner)))
        layout = jax.eval_shape(partial(all_readings, axes, places(params)), shapes)
        readings = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), layout)
        return MonitorState(inner, steps, readings, empty_ring(axes, params, ring) if ring else None)

    def update(updates: PyTree, state: Any, params: PyTree = None, **extra: Any) -> tuple[PyTree, MonitorState]:
        if params is None:
            raise ValueError("monitor: needs the parameters. Call tx.update(gradients, state, params).")
        if not isinstance(state, MonitorState):
            raise TypeError(f"monitor: expected the state that its own init makes; got one of type {type(state).__name__}.")
        moved, inner = tx.update(updates, state.inner, params, **extra)
        given = Given(updates, moved, params, stacks_with_bases(inner))
        step = compiled_once(_step, interval, axes, places(params))
        _, kept = step(given, (state.steps, state.readings, state.ring))
        return moved, MonitorState(inner, *kept)

    return optax.GradientTransformationExtraArgs(init, update)


def readings(state: PyTree) -> dict[str, float]:
    """The last readings of every `fl.monitor` in an optimizer's state, for any logger: a flat dict of floats.

    All are zero before the first are made. Asking for them waits for the device, so ask at steps that you log.

    Args:
        state: of `fl.monitor` itself, or of any chain, partition or wrapper around it, or a tree that holds one. Of a batch of
            states (`jax.vmap`), take one first: jax.tree.map(lambda x: x[0], state).

    Raises:
        ValueError: the state holds no monitor, or two with readings of one name, or is a batch of states.

    Examples:
        >>> import jax.numpy as jnp, optax, fimlens as fl
        >>> tx = optax.chain(optax.clip_by_global_norm(1.0), fl.monitor(fl.adam(0.1)))
        >>> fl.readings(tx.init({"bias": jnp.ones(3)}))
        {'bias/cosine': 0.0, 'bias/relative_update': 0.0, 'bias/update_rms': 0.0}
    """
    found = jax.device_get([own.readings for own in _monitors("readings", state)])
    named = [
        {
            "/".join(filter(None, (name, reading))): float(value)
            for reading, (names, values) in own.items()
            for name, value in zip(sorted(names), values, strict=True)
        }
        for own in found
    ]
    return dict(sorted(_joined("readings", named).items()))


def recent_gradients(state: PyTree) -> dict[str, Float[Array, "N m n"]]:
    """The last gradients of every matrix that an `fl.monitor` with a ring has seen: for `fl.estimate`, while a model trains.

    Each is a gradient of a batch of its own. The weights moved between them, which the estimate does not know: a long ring
    averages over more of the training.

    Args:
        state: as in `fl.readings`; of a batch of states too, take one.

    Returns:
        By the name of the matrix, at most `ring` gradients, the oldest first.

    Raises:
        ValueError: the state holds no monitor, none with a ring, or two with a matrix of one name, or is a batch of states.

    Examples:
        >>> import jax, jax.numpy as jnp, fimlens as fl
        >>> tx, W = fl.monitor(fl.sgd(0.1), ring=16), {"w": jnp.ones((3, 4))}
        >>> state = tx.init(W)
        >>> for key in jax.random.split(jax.random.key(0), 20):
        ...     _, state = tx.update({"w": jax.random.normal(key, (3, 4))}, state, W)
        >>> G = fl.recent_gradients(state)["w"]
        >>> G.shape, fl.estimate([fl.Scalar(), fl.Diagonal()], G).ranked()[0]
        ((16, 3, 4), 'Scalar()')
    """
    monitors = [own for own in _monitors("recent_gradients", state) if own.ring is not None]
    if not monitors:
        raise ValueError("recent_gradients: no monitor has a ring. Ask for one, as in fl.monitor(tx, ring=32).")
    return _joined("recent_gradients", [in_order(own.ring, int(own.steps)) for own in monitors])


def _monitors(call: str, state: PyTree) -> list[MonitorState]:
    """Every monitor's state in a tree."""
    is_monitor = lambda x: isinstance(x, MonitorState)  # noqa: E731
    monitors = list(filter(is_monitor, jax.tree.leaves(state, is_leaf=is_monitor)))
    if not monitors:
        raise ValueError(f"{call}: the state holds no monitor. Wrap the optimizer, as in fl.monitor(fl.soap(3e-3)).")
    if any(jnp.ndim(own.steps) for own in monitors):
        raise ValueError(f"{call}: the state is a batch of states. Take one, as in jax.tree.map(lambda x: x[0], state).")
    return monitors


def _joined(call: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Join what several monitors say; refuse names that two of them have."""
    joined: dict[str, Any] = {}
    for part in parts:
        if twice := joined.keys() & part.keys():
            raise ValueError(
                f"{call}: two monitors in this state have {min(twice)}. Ask each state by itself: that of a chain is a tuple "
                f"with one for each transform, as in fl.{call}(state[0])."
            )
        joined |= part
    return joined


def _step(
    interval: Int[ArrayLike, ""], axes: Any, places: tuple[Place, ...], given: Given, kept: tuple[Array, Readings, Ring]
) -> tuple[Given, tuple[Array, Readings, Ring]]:
    before, old, ring = kept
    steps = optax.safe_increment(before)
    # No reading needs a derivative, and roots of zero would make NaN of those of a training.
    seen = jax.lax.stop_gradient(given)
    new = refresh_if_due(steps, interval, old, lambda first: all_readings(axes, places, seen))
    ring = record(axes, ring, given.params, seen.gradients, before)
    return given, (steps, new, ring)  # `compiled_once` wants results like what it is given


def _shape(leaf: ArrayLike) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))

"""What lets a transform stand where one of Optax can: outside `jax.jit`, on sharded weights, in `optax.tree.map_params`."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from fimlens.transforms.sharding import state_partition_specs


def _placeholder_type() -> type:
    """The tree without leaves that `optax.tree.map_params` gives to `init`: it asks where parameters stand in a state."""
    given: list[PyTree] = []
    optax.tree.map_params(lambda params: given.append(params) or (), lambda leaf: leaf, ())
    return type(given[0])


PLACEHOLDER = _placeholder_type()


def drop_in(init: Callable[[PyTree], Any], update: Callable[[PyTree, Any], tuple[PyTree, Any]]) -> optax.GradientTransformation:
    """The transform of an `init`, which needs shapes and dtypes alone, and of an `update` that needs no parameters.

    A step outside `jax.jit` is compiled once, and inside it becomes part of the caller's program. The state of weights that
    are sharded is made where they are, as `state_partition_specs` says, and never whole on one device.
    """

    def init_beside(params: PyTree) -> Any:
        shardings = jax.tree.map(_sharding, params)
        if not any(jax.tree.leaves(shardings)):
            return init(params)
        mesh = jax.tree.leaves(shardings)[0].mesh
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
        specs = jax.tree.map(lambda _, own: own or PartitionSpec(), params, shardings)
        specs = state_partition_specs(optax.GradientTransformation(init, update), shapes, specs, mesh=mesh)
        if not isinstance(mesh, Mesh):  # the parameters are traced
            return jax.tree.map(lambda x, spec: jax.sharding.reshard(x, NamedSharding(mesh, spec)), init(shapes), specs)
        return jax.jit(lambda: init(shapes), out_shardings=jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs))()

    compiled = jax.jit(with_auto_axes(update))

    def update_alone(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        del params
        return compiled(updates, state)

    return optax.GradientTransformation(init_beside, update_alone)


def with_auto_axes(step: Callable[..., Any]) -> Callable[..., Any]:
    """`step` on meshes of explicit axes: XLA chooses within it, and its results are sharded by type as its arguments."""

    def chosen(*given: PyTree) -> Any:
        types = [jax.typeof(x).sharding for x in jax.tree.leaves(given)]
        # Arrays sharded by type name their mesh, which need not be the one in force (`jax.set_mesh`).
        mesh = next((t.mesh for t in types if not t.mesh.empty), jax.sharding.get_abstract_mesh())
        if AxisType.Explicit not in mesh.axis_types:
            return step(*given)
        types = jax.tree.map(lambda x: NamedSharding(mesh, jax.typeof(x).sharding.spec), given)
        with jax.sharding.use_abstract_mesh(mesh):
            return jax.sharding.auto_axes(step, out_sharding=types if len(given) > 1 else types[0])(*given)

    return chosen


def _sharding(leaf: Any) -> NamedSharding | None:
    """The sharding of an array that lies on several devices, or of a traced one whose type says that it does."""
    if not isinstance(leaf, jax.Array):
        return None
    sharding = jax.typeof(leaf).sharding if isinstance(leaf, jax.core.Tracer) else leaf.sharding
    return sharding if isinstance(sharding, NamedSharding) and any(sharding.spec) else None

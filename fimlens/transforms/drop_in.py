"""What lets a transform stand where one of Optax can: outside `jax.jit`, on sharded weights, in `optax.tree.map_params`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields
from functools import lru_cache, partial
from typing import Any

import jax
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from fimlens.structure import Structure
from fimlens.structures.trackers import Tracker
from fimlens.transforms.sharding import state_partition_specs


def _placeholder_type() -> type:
    """The tree without leaves that `optax.tree.map_params` gives to `init`: it asks where parameters stand in a state."""
    given: list[PyTree] = []
    optax.tree.map_params(lambda params: given.append(params) or (), lambda leaf: leaf, ())
    return type(given[0])


PLACEHOLDER = _placeholder_type()


_NOTES: ContextVar[list[tuple[Any, PyTree]] | None] = ContextVar("notes", default=None)


@contextmanager
def noted_inits() -> Iterator[list[tuple[Any, PyTree]]]:
    """Note each state that a transform made by `drop_in` starts within this context, beside the parameters that it sees.

    Those are what masks and routes leave of all parameters, as matrices: a state of stacks does not say it.
    """
    notes: list[tuple[Any, PyTree]] = []
    token = _NOTES.set(notes)
    try:
        yield notes
    finally:
        _NOTES.reset(token)


def drop_in(init: Callable[..., Any], update: Callable[..., tuple[PyTree, Any]], *options: Any) -> optax.GradientTransformation:
    """The transform of init(*options, params) and update(*options, updates, state), two functions of a module.

    `init` needs shapes and dtypes alone, and `update` no parameters. A step outside `jax.jit` is compiled once, and inside it
    becomes part of the caller's program. The state of weights that are sharded is made where they are, as
    `state_partition_specs` says, and never whole on one device.
    """
    init, compiled = partial(init, *options), compiled_once(update, *options)

    def init_beside(params: PyTree) -> Any:
        shardings = jax.tree.map(_sharding, params)
        if not any(jax.tree.leaves(shardings)):
            state, notes = init(params), _NOTES.get()
            if notes is not None:
                notes.append((state, params))
            return state
        mesh = jax.tree.leaves(shardings)[0].mesh
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
        specs = jax.tree.map(lambda _, own: own or PartitionSpec(), params, shardings)
        specs = state_partition_specs(optax.GradientTransformation(init, compiled), shapes, specs, mesh=mesh)
        if not isinstance(mesh, Mesh):  # the parameters are traced
            return jax.tree.map(lambda x, spec: jax.sharding.reshard(x, NamedSharding(mesh, spec)), init(shapes), specs)
        return jax.jit(lambda: init(shapes), out_shardings=jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs))()

    def update_alone(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        del params
        return compiled(updates, state)

    return optax.GradientTransformation(init_beside, update_alone)


def compiled_once(function: Callable[..., Any], *options: Any) -> Callable[..., Any]:
    """The function of a module at these options, compiled once for all that differ in the values of their arrays alone.

    `optax.inject_hyperparams` makes a transform anew at each step, with arrays as its numbers. They are arguments of the
    program here. Anything else in the options, such as a structure or a function, is a part of the program.
    """
    arrays: list[jax.Array] = []

    def without_arrays(x: Any) -> Any:
        if not isinstance(x, jax.Array):
            return x
        arrays.append(x)
        return _ARRAY

    form = _mapped(without_arrays, options)
    return partial(_program(function, form, repr(form)), arrays)


def remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which answers from memory where it was asked the same of late and all arguments have a hash."""
    answers = lru_cache(maxsize=128)(function)

    def answer(*arguments: Any) -> Any:
        try:
            return answers(*arguments)
        except TypeError:  # an argument without a hash, such as a traced number
            return function(*arguments)

    return answer


@remembered
def _program(function: Callable[..., Any], form: tuple[Any, ...], printed: str) -> Callable[..., Any]:
    del printed  # it tells 1, 1.0 and True apart, which are equal

    def run(arrays: list[jax.Array], *given: PyTree) -> Any:
        left = iter(arrays)
        options = _mapped(lambda x: next(left) if x is _ARRAY else x, form) if arrays else form
        return function(*options, *given)

    return jax.jit(_with_auto_axes(run))


_ARRAY = object()  # what stands for an array in the form of options


def _mapped(f: Callable[[Any], Any], x: Any) -> Any:
    """x with f of each value that its tuples, structures and trackers hold."""
    if isinstance(x, tuple):
        parts = [_mapped(f, part) for part in x]
        return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)
    if not isinstance(x, Structure | Tracker):
        return f(x)
    new = object.__new__(type(x))  # its fields were checked when it was made
    for field in fields(x):
        object.__setattr__(new, field.name, _mapped(f, getattr(x, field.name)))
    return new


def _with_auto_axes(step: Callable[..., Any]) -> Callable[..., Any]:
    """`step` on meshes of explicit axes: XLA chooses within it, and its results are sharded by type as what is given to it.

    Arrays among the options are arguments here too: a program may hold none of a mesh of explicit axes.
    """

    def chosen(options: list[jax.Array], *given: PyTree) -> Any:
        types = map(jax.typeof, jax.tree.leaves(given))
        # Arrays sharded by type name their mesh, which need not be the one in force (`jax.set_mesh`).
        mesh = next((t.sharding.mesh for t in types if not t.sharding.mesh.empty), jax.sharding.get_abstract_mesh())
        if AxisType.Explicit not in mesh.axis_types:
            return step(options, *given)
        types = jax.tree.map(lambda x: NamedSharding(mesh, jax.typeof(x).sharding.spec), given)
        with jax.sharding.use_abstract_mesh(mesh):
            return jax.sharding.auto_axes(step, out_sharding=types if len(given) > 1 else types[0])(options, *given)

    return chosen


def _sharding(leaf: Any) -> NamedSharding | None:
    """The sharding of an array that lies on several devices, or of a traced one whose type says that it does."""
    if not isinstance(leaf, jax.Array):
        return None
    sharding = jax.typeof(leaf).sharding if isinstance(leaf, jax.core.Tracer) else leaf.sharding
    return sharding if isinstance(sharding, NamedSharding) and any(sharding.spec) else None

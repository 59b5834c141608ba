"""What lets a transform stand where one of Optax can: outside `jax.jit`, on sharded weights, in `optax.tree.map_params`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields
from functools import lru_cache, partial
from typing import Any, NamedTuple

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
    form = _form(options, arrays)
    try:
        program = _program(function, form)
    except TypeError:  # an option that has no hash, which nothing can be looked up by
        program = _program.__wrapped__(function, form)
    return partial(program, arrays)


@lru_cache(maxsize=128)
def _program(function: Callable[..., Any], form: Any) -> Callable[..., Any]:
    def run(arrays: list[jax.Array], *given: PyTree) -> Any:
        return function(*_filled(form, iter(arrays)), *given)

    return jax.jit(_with_auto_axes(run))


class _Parts(NamedTuple):
    """The form of a tuple, a structure or a tracker: its type, and the forms of what it holds."""

    kind: type
    forms: tuple[Any, ...]


def _form(x: Any, arrays: list[jax.Array]) -> Any:
    """What a program depends on. Arrays are set aside; types are kept, because 1, 1.0 and True are equal."""
    if isinstance(x, jax.Array):
        arrays.append(x)
        return jax.Array
    if isinstance(x, Structure | Tracker):
        return _Parts(type(x), tuple(_form(getattr(x, f.name), arrays) for f in fields(x)))
    if isinstance(x, tuple):
        return _Parts(type(x), tuple(_form(part, arrays) for part in x))
    return type(x), x


def _filled(form: Any, arrays: Iterator[jax.Array]) -> Any:
    """What had this form, with other arrays."""
    if form is jax.Array:
        return next(arrays)
    if not isinstance(form, _Parts):
        return form[1]
    parts = [_filled(part, arrays) for part in form.forms]
    if issubclass(form.kind, Structure | Tracker):  # its fields were checked when it was made
        x = object.__new__(form.kind)
        for f, part in zip(fields(x), parts, strict=True):
            object.__setattr__(x, f.name, part)
        return x
    return form.kind(*parts) if hasattr(form.kind, "_fields") else form.kind(parts)


def _with_auto_axes(step: Callable[..., Any]) -> Callable[..., Any]:
    """`step` on meshes of explicit axes: XLA chooses within it, and its results are sharded by type as what is given to it.

    Arrays among the options are arguments here too: a program may hold none of a mesh of explicit axes.
    """

    def chosen(options: list[jax.Array], *given: PyTree) -> Any:
        types = [jax.typeof(x).sharding for x in jax.tree.leaves(given)]
        # Arrays sharded by type name their mesh, which need not be the one in force (`jax.set_mesh`).
        mesh = next((t.mesh for t in types if not t.mesh.empty), jax.sharding.get_abstract_mesh())
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

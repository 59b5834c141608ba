"""What a law is tried on: a structure at one shape, a Fisher, its closed form, a random member; and the distance of trees."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from fimlens.fisher.fisher import Fisher
from fimlens.fisher.sample_form import SampleFisher
from fimlens.solver.fit import fit
from fimlens.solver.sizes import isotropic
from fimlens.structure import Params, Structure

Deviation = Float[Array, ""] | float

TOLERANCE = 1e-8  # up to which a law holds


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Case:
    """A structure at one shape: a Fisher, its closed form, and a wide random member."""

    structure: Structure = field(metadata={"static": True})
    solved: bool = field(metadata={"static": True})  # whether the (slow) solver is called
    key: Any
    fisher: Any
    fitted: Any
    member: Any

    @property
    def shape(self) -> tuple[int, int]:
        return self.fisher.shape

    @property
    def gradients(self) -> Float[Array, "N m n"]:
        return self.fisher.samples

    def normal(self, stream: int, *shape: int) -> Array:
        return jax.random.normal(jax.random.fold_in(self.key, stream), shape)


def draw_case(structure: Structure, shape: tuple[int, int], seed: int, solved: bool) -> Case:
    """The case of a seed: the Fisher is the same for every structure of one shape."""
    key = jax.random.key(seed)
    fisher = _draw_fisher(shape, key)
    return Case(structure, solved, key, fisher, fit(structure, fisher), _draw_member(structure, shape, key))


@partial(jax.jit, static_argnums=0)
def _draw_fisher(shape: tuple[int, int], key: Array) -> SampleFisher:
    m, n = shape
    keys = [jax.random.fold_in(key, stream) for stream in range(3)]
    left, G, right = map(jax.random.normal, keys, ((m, m), (2 * m * n, m, n), (n, n)))
    return Fisher.from_gradients(left @ G @ right)


@partial(jax.jit, static_argnums=(0, 1))
def _draw_member(structure: Structure, shape: tuple[int, int], key: Array) -> Params:
    centre = isotropic(structure, shape)
    flat, unravel = ravel_pytree(centre)
    return structure.chart(unravel(0.3 * jax.random.normal(jax.random.fold_in(key, 3), flat.shape)), centre)


@jax.jit
def distance(a: Any, b: Any) -> Deviation:
    """The largest difference of two trees, relative to the largest entry; infinite where their layouts differ."""
    if jax.tree.structure(a) != jax.tree.structure(b):
        return jnp.inf
    flat_a, flat_b = (
        jnp.concatenate([jnp.ravel(x).astype(float) for x in jax.tree.leaves(tree)] or [jnp.zeros(0)]) for tree in (a, b)
    )
    if flat_a.shape != flat_b.shape:
        return jnp.inf
    size = jnp.maximum(jnp.abs(flat_a).max(initial=0), jnp.abs(flat_b).max(initial=0))
    difference = jnp.abs(flat_a - flat_b).max(initial=0) / jnp.maximum(size, 1e-300)
    return jnp.where(jnp.isfinite(difference), difference, jnp.inf)


@jax.jit
def worst(*deviations: Deviation) -> Deviation:
    """The largest of several deviations; NaN where one is NaN, so that `check` refuses it."""
    return jnp.stack([jnp.asarray(deviation, float) for deviation in deviations]).max()

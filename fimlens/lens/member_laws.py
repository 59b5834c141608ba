"""The laws of a single member: its chart, its eigenvalues, its eigenbasis, and what it makes of a gradient."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from fimlens.fisher.fisher import Fisher, unvec, vec
from fimlens.lens.case import TOLERANCE, Case, Deviation, distance, worst
from fimlens.linalg.spectral_functions import inverse_root
from fimlens.solver.fit import least_eigenvalue, unchecked_fit
from fimlens.solver.sizes import isotropic
from fimlens.structure import Frame
from fimlens.structures import LowRank
from fimlens.transforms.low_rank_update import low_rank_update_of


@jax.jit
def chart(case: Case) -> Deviation:
    """The identity is in the family (on its range), z = 0 names the member itself, and every z a PSD matrix. Each basis and
    each coordinate on which F~ depends moves with its z."""
    structure, centre = case.structure, isotropic(case.structure, case.shape)
    if jax.tree.map(jnp.shape, case.fitted) != jax.tree.map(jnp.shape, case.member):  # see `layout`
        return jnp.inf
    units = jax.vmap(lambda e: unvec(e, case.shape))(jnp.eye(case.fisher.samples[0].size))
    on_range = jax.vmap(lambda E: vec(structure.apply(centre, E, jnp.ones_like)))(units)
    (member, unravel), (fitted, _), (identity, _) = map(ravel_pytree, (case.member, case.fitted, centre))
    part = _parts(case)
    moves = jax.lax.map(
        lambda z: ravel_pytree(structure.chart(unravel(z), case.member))[0],
        jnp.concatenate([jnp.zeros((1, member.size)), jnp.where(part, case.normal(8, member.size), 0)]),
    )
    points = jnp.concatenate([jnp.stack([identity, member]), moves, jnp.where(part, fitted, member)])
    matrices = jax.lax.map(lambda point: structure.dense(unravel(point)), points)
    identity, F = matrices[0], matrices[1]
    changes = jax.vmap(distance, (0, None))(matrices[2:], F)
    still, moved, matters = changes[0], *jnp.split(changes[1:], 2)
    return worst(
        distance(identity, on_range),
        still,
        distance(F, F.T),
        -jnp.linalg.eigvalsh(F).min() / jnp.abs(F).max(),
        jnp.where(jnp.any((moved <= TOLERANCE) & (matters > TOLERANCE)), jnp.inf, 0.0),
    )


def _parts(case: Case) -> Bool[Array, "parts size"]:
    """The parts that a chart moves by themselves, as masks of the ravelled member: each basis, and each coordinate."""
    bases, coords = (jax.tree.leaves(part) for part in (case.member.frame, case.member.coords))
    sizes = [basis.size for basis in bases] + [1] * sum(c.size for c in coords)
    return jnp.repeat(jnp.eye(len(sizes), dtype=bool), jnp.array(sizes), axis=1, total_repeat_length=sum(sizes))


def cone(case: Case) -> Deviation:
    """Eigenvalues are non-negative, as every Fisher's are: the least of the fit, in units of the largest, on the ensemble, on
    one of its gradients and on one entry alone."""
    members = case.fitted, *(unchecked_fit(case.structure, fisher, case.key) for fisher in _harsher(case.gradients))
    return worst(0.0, *(-least_eigenvalue(case.structure, member) for member in members))


@jax.jit
def _harsher(gradients: Float[Array, "N m n"]) -> tuple[Fisher, Fisher]:
    nothing = jnp.zeros_like(gradients)  # of as many samples, so that no fit is compiled anew
    return Fisher.from_gradients(nothing.at[0].set(gradients[0])), Fisher.from_gradients(nothing.at[0, 0, 0].set(1))


@jax.jit
def isometry(case: Case) -> Deviation:
    """from_eigenbasis(to_eigenbasis(G)) == G, and to_eigenbasis keeps norms: in the first frame, the fit's and a random one."""
    structure, G = case.structure, case.gradients[0]

    def deviation(frame: Frame) -> Deviation:
        X = structure.to_eigenbasis(frame, G)
        norm = sum(jnp.sum(x**2) for x in jax.tree.leaves(X))
        return worst(distance(structure.from_eigenbasis(frame, X), G), distance(norm, jnp.sum(G**2)))

    return worst(*map(deviation, (structure.frame(*case.shape), case.fitted.frame, case.member.frame)))


@jax.jit
def application(case: Case) -> Deviation:
    """apply(member, G, f) == Mat(f(dense(member)) Vec(G)) for f = x, 1/(sqrt(x) + 0.1) and, on the range, 1/sqrt(x)."""
    fs = (lambda x: x, lambda x: 1 / (jnp.sqrt(x) + 0.1), inverse_root(0.0))
    return worst(*(distance(case.structure.apply(case.member, case.gradients[0], f), _applied_densely(case, f)) for f in fs))


@jax.jit
def update(case: Case) -> Deviation:
    """An optimizer's update is Mat(f(dense(member)) Vec(G)) with f = 1/(sqrt(x) + eps) and, on the range, 1/sqrt(x): the
    coordinates that `precondition` scales, and for a low-rank structure its products of thin bases."""
    structure, member, G = case.structure, case.member, case.gradients[0]
    X = structure.to_eigenbasis(member.frame, G)
    deviations = []
    for eps in (0.1, 0.0):
        expected = _applied_densely(case, inverse_root(eps))
        updates = [structure.from_eigenbasis(member.frame, structure.precondition(member, X, eps))]
        if isinstance(structure, LowRank):
            updates.append(low_rank_update_of(structure, member, G, eps))
        deviations += [distance(each, expected) for each in updates]
    return worst(*deviations)


def _applied_densely(case: Case, f: Callable[[Array], Array]) -> Array:
    """Mat(f(dense(member)) Vec(G)), zero outside the range."""
    values, Q = jnp.linalg.eigh(case.structure.dense(case.member))
    seen = values > 1e-12 * values.max()
    return unvec(Q @ (jnp.where(seen, f(jnp.where(seen, values, 1)), 0) * (Q.T @ vec(case.gradients[0]))), case.shape)

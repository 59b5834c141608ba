"""The laws: what must hold of every structure, ours or a user's, checked in float64 on small random ensembles.

A law is a function of a `Case` that returns how far the law is from holding, relative to the size of what it compares.
Each ties two independent statements about one object: `dense` and `apply`, samples and the dense form of the Fisher, the
closed form and the numeric optimum. Laws are jitted, because a law run eagerly compiles one program for each operation.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool

from fimlens.fisher.fisher import Fisher, unvec, vec
from fimlens.lens.basis_laws import rest, symmetry, trackers, tracking, transport
from fimlens.lens.case import Case, Deviation, distance, worst
from fimlens.linalg.spectral_functions import inverse_root
from fimlens.solver.fit import fit, least_eigenvalue, unchecked_gap
from fimlens.solver.newton import scale_coordinates
from fimlens.solver.sizes import isotropic
from fimlens.solver.solve import solve
from fimlens.solver.stationarity import stationarity
from fimlens.structure import Claim, Frame, Params
from fimlens.structures import LowRank
from fimlens.transforms.low_rank_update import low_rank_update_of
from fimlens.transforms.state import start_from
from fimlens.transforms.structure_transform import scale_by_structure

TOLERANCE = 1e-8


SHAPES = ((3, 4), (4, 3), (4, 6), (6, 6))


_dense = jax.jit(lambda structure, member: structure.dense(member), static_argnums=0)


_stats = jax.jit(lambda structure, fisher, member: structure.stats(fisher, member), static_argnums=0)


_least_eigenvalue = jax.jit(least_eigenvalue, static_argnums=0)


@jax.jit
def chart(case: Case) -> Deviation:
    """The identity is in the family (on its range), z = 0 names the member itself, and every z a PSD matrix. Each basis and
    each coordinate on which F~ depends moves with its z."""
    structure, centre = case.structure, isotropic(case.structure, case.shape)
    identity = structure.dense(centre)
    full = None not in jax.tree.leaves(structure.eigenvalues(centre), is_leaf=lambda x: x is None)
    if jax.tree.map(jnp.shape, case.fitted) != jax.tree.map(jnp.shape, case.member):  # see `layout`
        return jnp.inf
    F = structure.dense(case.member)
    (member, unravel), (fitted, _) = ravel_pytree(case.member), ravel_pytree(case.fitted)

    def changes(part: Array) -> tuple[Deviation, Deviation]:
        """How far F~ moves along z in a part of the chart, and how far it is from the member with that part of the fit."""
        along = structure.chart(unravel(jnp.where(part, case.normal(8, member.size), 0)), case.member)
        return distance(structure.dense(along), F), distance(structure.dense(unravel(jnp.where(part, fitted, member))), F)

    (still, *moves), (_, *needs) = jax.lax.map(changes, jnp.concatenate([jnp.zeros((1, member.size), bool), _parts(case)]))
    return worst(
        distance(identity, jnp.eye(len(identity)) if full else identity @ identity),
        still,
        distance(F, F.T),
        -jnp.linalg.eigvalsh(F).min() / jnp.abs(F).max(),
        *(jnp.where((need > TOLERANCE) & (move <= TOLERANCE), jnp.inf, 0.0) for move, need in zip(moves, needs, strict=True)),
    )


def _parts(case: Case) -> Bool[Array, "parts size"]:
    """The parts that a chart moves by themselves, as masks of the ravelled member: each basis, and each coordinate."""
    frames, coords = (jax.tree.leaves(part) for part in (case.member.frame, case.member.coords))
    sizes = [x.size for x in frames] + [1] * sum(x.size for x in coords)
    return jnp.repeat(jnp.eye(len(sizes), dtype=bool), jnp.array(sizes), axis=1, total_repeat_length=sum(sizes))


def cone(case: Case) -> Deviation:
    """Eigenvalues are non-negative, as every Fisher's are: the least of the fit, in units of the largest, on the ensemble, on
    one of its gradients and on one entry alone."""
    nothing = jnp.zeros_like(case.gradients)  # of as many samples, so that no fit is compiled anew
    harsher = nothing.at[0].set(case.gradients[0]), nothing.at[0, 0, 0].set(1)
    members = case.fitted, *(fit(case.structure, Fisher.from_gradients(G)) for G in harsher)
    return worst(0.0, *(-_least_eigenvalue(case.structure, member) for member in members))


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


def layout(case: Case) -> Deviation:
    """fit returns the tree, shapes and dtypes of chart, so that it can sit in scan and cond."""
    a, b = (jax.tree.map(lambda x: (x.shape, x.dtype), p) for p in (case.fitted, case.member))
    return 0.0 if a == b else float("inf")


def homogeneity(case: Case) -> Deviation:
    """Gradients times c give F~ times c^2."""
    scaled = fit(case.structure, Fisher.from_gradients(1000 * case.gradients))
    return distance(_dense(case.structure, scaled), 1e6 * _dense(case.structure, case.fitted))


def claim(case: Case) -> Deviation:
    """The claim holds: the structure's objective is stationary at the fit, and never lower.

    EXACT and LIMIT: over the whole chart, and the solver cannot beat the gap. Others: given the basis, against random
    eigenvalues.
    """
    deviation = stationarity(case.structure, case.fisher, case.fitted)
    if case.structure.claim not in (Claim.EXACT, Claim.LIMIT):
        return max(deviation, float(_lower(case)))
    return max(deviation, solve(case.structure, case.fisher, starts=2).certificate.excess if case.solved else 0.0)


@jax.jit
def _lower(case: Case) -> Deviation:
    """By how much random eigenvalues in the fitted basis have a lower objective than the fit, relative to ||F||^2."""
    structure, fisher, fitted = case.structure, case.fisher, case.fitted
    flat, unravel = ravel_pytree(jax.tree.map(jnp.zeros_like, fitted.coords))
    still = jax.tree.map(jnp.zeros_like, fitted.frame)

    def objective(width: Array) -> Array:
        z = scale_coordinates(fitted, Params(still, unravel(width * case.normal(4, flat.size))))
        return structure.objective(structure.chart(z, fitted), fisher)

    # The fit's own objective is the one of width 0: so the expression is compiled once.
    at_fit, *others = jax.lax.map(objective, jnp.array([0, 0.03, 0.3, 3.0]))
    return (at_fit - jnp.stack(others)).max() / fisher.norm_squared


@jax.jit
def objective(case: Case) -> Deviation:
    """The objective is ||F~ - F||^2, up to a constant, where the claim is about this norm. Otherwise it is lower at the fit
    than at random eigenvalues in the fit's basis."""
    structure, fisher, fitted, member = case.structure, case.fisher, case.fitted, case.member
    if structure.claim in (Claim.BOUND, Claim.OTHER):
        at_fit, at_random = (
            structure.objective(Params(fitted.frame, coords), fisher) for coords in (fitted.coords, member.coords)
        )
        return jnp.where(at_fit < at_random, 0.0, jnp.inf)
    F = fisher.dense()
    values, errors = zip(
        *((structure.objective(p, fisher), jnp.sum((structure.dense(p) - F) ** 2)) for p in (fitted, member)), strict=True
    )
    return jnp.abs(values[0] - values[1] - (errors[0] - errors[1])) / fisher.norm_squared


def compilation(case: Case) -> Deviation:
    """jit = eager, vmap = loop, bfloat16 in gives bfloat16 out, and a step of the transform compiles once."""
    structure, G = case.structure, case.gradients[:3]
    f = inverse_root(0.1)
    eager = [structure.apply(case.member, g, f) for g in G]  # the one law that must not be jitted as a whole
    batched = jax.jit(jax.vmap(lambda member, g: structure.apply(member, g, f), (None, 0)))(case.member, G)
    half = structure.apply(case.member, G[0].astype(jnp.bfloat16), f)
    tx, traces = scale_by_structure(structure), []

    @jax.jit
    def update(G: Array, state: Any) -> Any:
        traces.append(1)
        return tx.update(G, state)

    half_G = G.astype(jnp.bfloat16)
    state = jax.jit(tx.init)(half_G[0])
    for g in half_G:
        scaled, state = update(g, state)
    sound = half.dtype == scaled.dtype == jnp.bfloat16 and len(traces) == 1 and bool(jnp.isfinite(scaled).all())
    return distance(eager, list(batched)) if sound else float("inf")


@jax.jit
def streaming(case: Case) -> Deviation:
    """In a fixed frame, the transform's state holds the exponential average of `stats`, which are linear in F."""
    structure, G, b = case.structure, case.gradients[:5], 0.9
    tx = scale_by_structure(structure, b1=None, b2=b, update_interval=None)
    state = start_from(tx.init(G[0]), case.fitted.frame)
    state, _ = jax.lax.scan(lambda state, g: (tx.update(g, state)[1], None), state, G)
    weights = (1 - b) * b ** jnp.arange(len(G) - 1, -1, -1.0)
    weighted = Fisher.from_gradients(G * jnp.sqrt(len(G) * weights)[:, None, None])
    expected = jax.tree.leaves(structure.stats(weighted, case.fitted))
    kept = jax.tree.leaves((state.covariances, state.averaged))
    return distance([k.reshape(e.shape) for k, e in zip(kept, expected, strict=True)], expected)


def forms(case: Case) -> Deviation:
    """Samples and the dense form have the same statistics and the same F~."""
    structure = case.structure
    fishers = case.fisher, Fisher.from_dense(case.fisher.dense(), case.shape)
    return worst(
        distance(*(_stats(structure, fisher, case.fitted) for fisher in fishers)),
        distance(*(_dense(structure, fit(structure, fisher)) for fisher in fishers)),
    )


def split(case: Case) -> Deviation:
    """Basis error + spectrum error = gap, at a member that fits nothing, and neither part is negative."""
    total, basis, spectrum, _ = unchecked_gap(case.structure, case.member, case.fisher)
    size = case.fisher.norm_squared
    return worst(jnp.abs(basis + spectrum - total) / size, -basis / size, -spectrum / size)


def gaps(case: Case) -> Deviation:
    """The gap from samples is ||dense(member) - F||^2, written out."""
    F = _dense(case.structure, case.member)
    return distance(unchecked_gap(case.structure, case.member, case.fisher).total, jnp.sum((F - case.fisher.dense()) ** 2))


LAWS: dict[str, Callable[[Case], Deviation]] = {
    law.__name__: law
    for law in (
        chart, cone, isometry, application, update, layout, homogeneity, claim, objective, symmetry, compilation, streaming,
        forms, transport, rest, tracking, trackers, split, gaps,
    )
}  # fmt: skip

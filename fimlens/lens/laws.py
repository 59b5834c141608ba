"""The laws: what must hold of every structure, ours or a user's, checked in float64 on small random ensembles.

A law is a function of a `Case` that returns how far the law is from holding, relative to the size of what it compares.
Each ties two independent statements about one object: `dense` and `apply`, samples and the dense form of the Fisher, the
closed form and the numeric optimum. Laws are jitted, because a law run eagerly compiles one program for each operation.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from fimlens.divergence import Divergence
from fimlens.fisher.fisher import Fisher
from fimlens.lens.basis_laws import rest, symmetry, trackers, tracking, transport
from fimlens.lens.case import Case, Deviation, distance, worst
from fimlens.lens.member_laws import application, chart, cone, isometry, update
from fimlens.lens.nearness import DIVERGENCES
from fimlens.linalg.spectral_functions import inverse_root
from fimlens.solver.fit import Gap, fit, unchecked_gap
from fimlens.solver.newton import aim_at, scale_coordinates
from fimlens.solver.solve import solve
from fimlens.solver.stationarity import stationarity
from fimlens.structure import BasisStep, Claim, Params, Statistics
from fimlens.structures.move import Move
from fimlens.transforms.state import start_from
from fimlens.transforms.structure_transform import scale_by_structure, tracker_decay

SHAPES = ((3, 4), (4, 3), (4, 6), (6, 6))


_dense = jax.jit(lambda structure, member: structure.dense(member), static_argnums=0)


_stats = jax.jit(lambda structure, fisher, member: structure.stats(fisher, member), static_argnums=0)


def layout(case: Case) -> Deviation:
    """fit returns the tree, shapes and dtypes of chart, and `update_basis` and `transport` those of what they move, so that all
    can sit in scan and cond."""
    structure, frame = case.structure, case.fitted.frame
    stats = _stats(structure, case.fisher, case.fitted)
    moved = jax.eval_shape(lambda: structure.update_basis(stats, frame, case.fisher, BasisStep(case.key)))
    carried = jax.eval_shape(lambda: structure.transport(stats, Move(*map(jnp.eye, case.shape))))
    found, expected = (case.fitted, moved, carried), (case.member, (frame, stats), stats)
    a, b = (jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (found, expected))
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
    if not case.solved:
        return deviation
    return max(deviation, solve(case.structure, case.fisher, divergence=case.structure.divergence, starts=2).certificate.excess)


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
    return (at_fit - jnp.stack(others)).max() / aim_at(structure.divergence, fisher).size


def written_out(divergence: Divergence, F: Array, approximation: Array) -> Array:
    """tr[ phi(F) - phi(F~) - phi'(F~) (F - F~) ] by eigendecompositions: an independent witness of the gap. Infinite for a
    singular F~ where phi'(0) is, as F has full rank."""
    values, U = jnp.linalg.eigh(approximation)
    slope = (U * divergence.slope(values)) @ U.T
    D = jnp.sum(divergence.phi(jnp.linalg.eigvalsh(F)) - divergence.phi(values)) - jnp.vdot(slope, F - approximation)
    steep = ~jnp.isfinite(divergence.slope(jnp.zeros([])))
    return jnp.where(steep & (values[0] < 1e-12 * values[-1]), jnp.inf, D)


@jax.jit
def objective(case: Case) -> Deviation:
    """The objective is the gap in the structure's own divergence, up to a constant. Where the claim is BOUND it is lower at the
    fit than at random eigenvalues in the fit's basis."""
    structure, fisher, fitted, member = case.structure, case.fisher, case.fitted, case.member
    if structure.claim is Claim.BOUND:
        at_fit, at_random = (
            structure.objective(Params(fitted.frame, coords), fisher) for coords in (fitted.coords, member.coords)
        )
        return jnp.where(at_fit < at_random, 0.0, jnp.inf)
    F, divergence = fisher.dense(), structure.divergence
    values = [structure.objective(p, fisher) for p in (fitted, member)]
    errors = [written_out(divergence, F, structure.dense(p)) for p in (fitted, member)]
    return jnp.abs(values[0] - values[1] - (errors[0] - errors[1])) / aim_at(divergence, fisher).size


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
    """For a given member `stats` are linear in F. In a fixed frame the transform's state holds their exponential averages, each
    gradient seen by the member that the averages before it give. What the basis follows is averaged by the decay of its
    tracker, if that has one of its own."""
    structure, G, b, frame = case.structure, case.gradients[:5], 0.9, case.fitted.frame
    tx = scale_by_structure(structure, b1=None, b2=b, update_interval=None)
    state = start_from(tx.init(G[0]), frame)
    state, _ = jax.lax.scan(lambda state, g: (tx.update(g, state)[1], None), state, G)
    b3 = tracker_decay(structure)
    decays = Statistics(b if b3 is None else b3, b)

    def mixed(averages: Statistics, seen: Statistics) -> Statistics:
        return Statistics(
            *(
                jax.tree.map(lambda x, new, b=b: b * x + (1 - b) * new, *part)
                for *part, b in zip(averages, seen, decays, strict=True)
            )
        )

    def observed(averages: Statistics, at: tuple[Array, Array]) -> tuple[Statistics, None]:
        t, g = at
        spectrum = jax.tree.map(lambda x: x / jnp.where(t == 0, 1, 1 - b**t), averages.spectrum)
        before = structure.fit(Statistics(averages.basis, spectrum), frame)
        return mixed(averages, structure.stats(Fisher.from_gradients(g[None]), before)), None

    each = jax.lax.map(lambda g: structure.stats(Fisher.from_gradients(g[None]), case.fitted), G)
    mean = jax.tree.map(lambda x: x.mean(0), each)
    expected, _ = jax.lax.scan(observed, jax.tree.map(jnp.zeros_like, mean), (jnp.arange(len(G)), G))
    expected = jax.tree.leaves(expected)
    kept = jax.tree.leaves((state.covariances, state.averaged))
    return worst(
        distance(structure.stats(Fisher.from_gradients(G), case.fitted), mean),
        distance([k.reshape(e.shape) for k, e in zip(kept, expected, strict=True)], expected),
    )


def forms(case: Case) -> Deviation:
    """Samples and the dense form have the same statistics and the same F~."""
    structure = case.structure
    fishers = case.fisher, Fisher.from_dense(case.fisher.dense(), case.shape)
    return worst(
        distance(*(_stats(structure, fisher, case.fitted) for fisher in fishers)),
        distance(*(_dense(structure, fit(structure, fisher)) for fisher in fishers)),
    )


def split(case: Case) -> Deviation:
    """In each divergence basis error + spectrum error = gap, at a member that fits nothing, and neither part is negative. The
    eigenvalue blocks count every direction once, and hold all of F's trace."""
    deviations = [_unlike_a_basis(case)]
    for (total, basis, spectrum, *_), _, size in _gaps_written_out(case):
        if jnp.isfinite(basis):  # else it cannot be split
            deviations += [jnp.abs(basis + spectrum - total) / size, -basis / size, -spectrum / size]
    return worst(*deviations)


def gaps(case: Case) -> Deviation:
    """In each divergence the gap from samples is D(F, F~) written out; in the Frobenius norm, ||dense(member) - F||^2."""
    deviations = (
        jnp.where(found.total == expected, 0, jnp.abs(found.total - expected) / size)
        for found, expected, size in _gaps_written_out(case)
    )
    return worst(*deviations)


@jax.jit
def _gaps_written_out(case: Case) -> list[tuple[Gap, Array, Array]]:
    """The gap of the random member in each divergence, the same written out, and the size of F in it."""
    structure, fisher, member = case.structure, case.fisher, case.member
    F, approximation = fisher.dense(), structure.dense(member)
    return [
        (
            unchecked_gap(structure, member, fisher, divergence),
            written_out(divergence, F, approximation),
            aim_at(divergence, fisher).size,
        )
        for divergence in DIVERGENCES.values()
    ]


@jax.jit
def _unlike_a_basis(case: Case) -> Deviation:
    blocks = case.structure.eigenvalue_blocks(case.member, case.fisher)
    count, trace = sum(c * V.size for _, V, c in blocks), sum(c * jnp.sum(V) for _, V, c in blocks)
    return worst(distance(count, math.prod(case.shape)), distance(trace, jnp.sum(case.fisher.second_moment())))


LAWS: dict[str, Callable[[Case], Deviation]] = {
    law.__name__: law
    for law in (
        chart, cone, isometry, application, update, layout, homogeneity, claim, objective, symmetry, compilation, streaming,
        forms, transport, rest, tracking, trackers, split, gaps,
    )
}  # fmt: skip

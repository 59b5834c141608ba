"""The laws of bases that move: what `update_basis`, `transport` and a tracker must do to a frame and to what is averaged.

Two kinds of statement fix a rule for averages. Where the statistics determine the answer (at rest, and when the family's own
invariance moves the gradients), it must be the one measured in the new basis. Elsewhere any rule is an approximation, and must
keep what every such rule keeps: non-negative eigenvalues and the trace.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fimlens.fisher.fisher import Fisher
from fimlens.lens.case import Case, Deviation, distance, worst
from fimlens.solver.fit import fit, least_eigenvalue
from fimlens.structure import BasisStep, Frame, Mix, Params, Statistics, Structure, update_basis_until_converged
from fimlens.structures.move import Move, change_of_basis
from fimlens.structures.rotated import Rotated
from fimlens.structures.trackers import Side, Tracker
from fimlens.transforms.structure_transform import trackers_of


def symmetry(case: Case) -> Deviation:
    """The stated invariances: gradients P G Q of the stated kinds turn F~ by Q^T (x) P."""
    P, Q, fisher = _turned(case)
    B = jnp.kron(Q.T, P)
    F, turned = _dense_of_both(case.structure, case.fitted, fit(case.structure, fisher))
    return distance(turned, B @ F @ B.T)


def transport(case: Case) -> Deviation:
    """Transported statistics are those of the gradients P G Q that a stated invariance makes, each measured at its own fit.
    After any other rotation they still make a member: no eigenvalue is negative, and F~ keeps F's trace if it has it."""
    P, Q, fisher = _turned(case)
    return _transported(case, P, Q, fisher, fit(case.structure, fisher))


@jax.jit
def _transported(case: Case, P: Array, Q: Array, fisher: Fisher, turned: Params) -> Deviation:
    structure, frame, shape = case.structure, case.fitted.frame, case.shape
    stats = structure.stats(case.fisher, case.fitted)
    moved = structure.transport(stats, Move(P, Q.T))
    L, R = (_orthogonal(jax.random.fold_in(case.key, 7 + side), size) for side, size in enumerate(shape))
    there = case.fisher.map(lambda G: L @ G @ R.T)
    measured, frames = _stack(structure.stats(there, Params(frame, None))), _stack(frame)
    members = _members(case, measured, frames, structure.transport(stats, Move(L, R)))
    return worst(
        distance(structure.transport(stats, Move()), stats),
        distance(moved, structure.stats(fisher, turned)),
        _unlike_a_member(*members[::-1], there),
    )


@jax.jit
def rest(case: Case) -> Deviation:
    """fit is at rest: one more update of its basis leaves F~ and the statistics where they are. From bases of the same vectors
    in another order, the statistics follow: they are those measured in the bases that are found."""
    structure, fisher, fitted = case.structure, case.fisher, case.fitted.frame

    def updated(given: tuple[Frame, Array]) -> tuple[Array, Statistics, Statistics]:
        frame, _ = given
        stats = structure.stats(fisher, Params(frame, None))
        moved, kept = structure.update_basis(stats, frame, fisher, BasisStep(case.key))
        measured = structure.stats(fisher, Params(moved, None))
        return structure.dense(structure.fit(measured, moved)), kept, measured

    F, kept, measured = jax.vmap(updated)((_stack(fitted, _reordered(structure, fitted)), jnp.arange(2)))
    return worst(distance(F[0], structure.dense(case.fitted)), distance(kept, measured))


def _reordered(structure: Structure, frame: Frame) -> Frame:
    """A frame of the same vectors in another order, along the sides where the inner family takes them in any order."""
    if not isinstance(structure, Rotated) or jax.tree.leaves(frame.bases.inner):  # inner bases take the outer ones as they are
        return frame
    pairs = zip(frame.bases[:2], structure.inner.symmetry, strict=True)
    left, right = (U if U is None or kind is None else jnp.roll(U, 1, axis=1) for U, kind in pairs)
    return Frame(frame.bases._replace(left=left, right=right), frame.shape)


@jax.jit
def tracking(case: Case) -> Deviation:
    """Updates against one Fisher move the first frame to that of the fit, whether the averages hold the Fisher or the step
    adds it. The statistics that follow make a member: no eigenvalue is negative, and F~ keeps F's trace if it has it."""
    structure, fisher, key = case.structure, case.fisher, case.key
    first = jax.tree.map(lambda U: U.astype(fisher.dtype), structure.frame(*case.shape))
    stats = structure.stats(fisher, Params(first, None))
    if not jax.tree.leaves(first):
        return distance(structure.update_basis(stats, first, fisher, BasisStep(key)), (first, stats))

    def followed(start: tuple[Frame, Array]) -> Frame:
        frame, old = start
        return update_basis_until_converged(structure, frame, fisher, key, mix=Mix(old, 1 - old))

    moved, kept = structure.update_basis(stats, first, fisher, BasisStep(key, first=True))
    ends = jax.lax.map(followed, (_stack(moved, first), jnp.array([1.0, 0.0])))
    frames = jax.tree.map(lambda ends, moved: jnp.concatenate([ends, moved[None]]), ends, moved)
    measured = jax.lax.map(lambda frame: structure.stats(fisher, Params(frame, None)), frames)
    *ends, again, carried = _members(case, measured, frames, kept)
    F = structure.dense(case.fitted)
    return worst(*(distance(end.dense, F) for end in ends), _unlike_a_member(carried, again, fisher))


def trackers(case: Case) -> Deviation:
    """A tracker's first basis and the one that it finds are orthonormal. Its average, transported from a basis U to a basis
    U Q of the same subspace, is the one that it observes there."""
    return worst(0.0, *(_of_tracker(tracker, case.fisher, case.key) for tracker in trackers_of(case.structure)))


@partial(jax.jit, static_argnums=0)
def _of_tracker(tracker: Tracker, fisher: Fisher, key: Array) -> Deviation:
    side, m = Side(fisher), fisher.shape[0]
    r = max(1, m - 1)
    U, Q = _orthogonal(jax.random.fold_in(key, 9), m)[:, :r], _orthogonal(jax.random.fold_in(key, 10), r)
    average, there = (tracker.observe(side, partial(side.projected, basis)) for basis in (U, U @ Q))
    start = tracker.init(m, r)
    found = tracker.update(average, start, side, BasisStep(key, first=True))
    bases = (tracker.basis(kept, m, r) for kept in (start, found)) if tracker.orthonormal else ()
    return worst(
        distance(tracker.transport(change_of_basis(U, U @ Q), average), there),
        *(distance(basis.T @ basis, jnp.eye(r)) for basis in bases),
    )


class _Member(NamedTuple):
    dense: Float[Array, "mn mn"]
    least_eigenvalue: Float[Array, ""]


def _members(case: Case, measured: Statistics, frames: Frame, carried: Statistics) -> list[_Member]:
    """The fits of stacked statistics in their frames, and last that of others in the last frame: one program for all."""

    def member(at: tuple[Statistics, Frame]) -> _Member:
        fitted = case.structure.fit(*at)
        return _Member(case.structure.dense(fitted), least_eigenvalue(case.structure, fitted))

    stats, frames = (
        jax.tree.map(lambda many, one: jnp.concatenate([many, one[None]]), *pair)
        for pair in ((measured, carried), (frames, jax.tree.map(lambda U: U[-1], frames)))
    )
    fits = jax.lax.map(member, (stats, frames))
    return [jax.tree.map(lambda x, k=k: x[k], fits) for k in range(len(fits.dense))]


def _unlike_a_member(carried: _Member, measured: _Member, fisher: Fisher) -> Deviation:
    """By how much a fit has a negative eigenvalue, or another trace than F where that of measured statistics has F's."""
    total = jnp.sum(fisher.second_moment())
    error, expected = (jnp.abs(jnp.trace(member.dense) - total) / total for member in (carried, measured))
    return worst(-carried.least_eigenvalue, jnp.where(expected <= 1e-10, error, 0.0))


def _stack(*trees: Any) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@jax.jit
def _turned(case: Case) -> tuple[Array, Array, Fisher]:
    """Matrices P and Q of the kinds that the structure states its symmetry by, and the Fisher of P G Q."""
    P, Q = (
        _transform(kind, size, jax.random.fold_in(case.key, stream))
        for kind, size, stream in zip(case.structure.symmetry, case.shape, (5, 6), strict=True)
    )
    return P, Q, Fisher.from_gradients(P @ case.gradients @ Q)


_dense_of_both = jax.jit(lambda structure, *members: tuple(map(structure.dense, members)), static_argnums=0)


def _transform(kind: str | None, size: int, key: Array) -> Float[Array, "k k"]:
    """A random matrix of the kind that a structure states its symmetry by."""
    if kind == "orthogonal":
        return _orthogonal(key, size)
    return jnp.roll(jnp.eye(size), 1 if kind == "permutation" else 0, axis=0)


def _orthogonal(key: Array, size: int) -> Float[Array, "k k"]:
    return jnp.linalg.qr(jax.random.normal(key, (size, size)))[0]

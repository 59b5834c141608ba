"""The laws: what must hold of every structure, ours or a user's, checked in float64 on small random ensembles.

Each law is a function of a structure and a `Case` that returns how far the law is from holding, relative to the size of what
it compares. Two independent sentences about one object are tied: `dense` against `apply`, samples against the dense
form, the closed form against gradients and the solver.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from fimlens.fisher.fisher import Fisher, unvec, vec
from fimlens.linalg.spectral_functions import inverse_root
from fimlens.solver.fit import fit, isotropic, least_eigenvalue, unchecked_gap
from fimlens.solver.newton import scale_coordinates
from fimlens.solver.solve import solve
from fimlens.solver.stationarity import stationarity
from fimlens.structure import BasisStep, Claim, Params, Structure
from fimlens.transforms.state import start_from
from fimlens.transforms.structure_transform import scale_by_structure

TOLERANCE = 1e-8


SHAPES = ((3, 4), (4, 3), (4, 6), (6, 6))


@dataclass(frozen=True)
class Case:
    """A structure at one shape: a Fisher, its closed form, and a wide random member."""

    structure: Structure
    shape: tuple[int, int]
    seed: int
    solved: bool  # whether the (slow) solver is called

    def normal(self, stream: int, *shape: int) -> Array:
        return jax.random.normal(jax.random.fold_in(jax.random.key(self.seed), stream), shape)

    @cached_property
    def gradients(self) -> Float[Array, "N m n"]:
        m, n = self.shape
        return self.normal(0, m, m) @ self.normal(1, 2 * m * n, m, n) @ self.normal(2, n, n)

    @cached_property
    def fisher(self) -> Fisher:
        return Fisher.from_gradients(self.gradients)

    @cached_property
    def fitted(self) -> Params:
        return fit(self.structure, self.fisher)

    @cached_property
    def member(self) -> Params:
        return self.charted(isotropic(self.structure, self.shape), 0.3)

    def charted(self, centre: Params, width: float, stream: int = 3) -> Params:
        flat, unravel = ravel_pytree(centre)
        return self.structure.chart(unravel(width * self.normal(stream, flat.size)), centre)


def distance(a: Any, b: Any) -> float:
    """The largest difference of two trees, relative to the largest entry; infinite where their layouts differ."""
    if jax.tree.structure(a) != jax.tree.structure(b):
        return float("inf")
    flat_a, flat_b = (np.concatenate([np.ravel(np.asarray(x, float)) for x in jax.tree.leaves(t)] or [[]]) for t in (a, b))
    if flat_a.shape != flat_b.shape:
        return float("inf")
    size = max(np.abs(flat_a).max(initial=0), np.abs(flat_b).max(initial=0), 1e-300)
    difference = np.abs(flat_a - flat_b).max(initial=0) / size
    return float(difference) if np.isfinite(difference) else float("inf")


def chart(case: Case) -> float:
    """The identity is in the family (on its range), z = 0 names the member itself, and every z a PSD matrix."""
    structure, centre = case.structure, isotropic(case.structure, case.shape)
    identity = structure.dense(centre)
    full = None not in jax.tree.leaves(structure.eigenvalues(centre), is_leaf=lambda x: x is None)
    F = structure.dense(case.member)
    zero = jax.tree.map(jnp.zeros_like, case.member)
    return max(
        distance(identity, jnp.eye(len(identity)) if full else identity @ identity),
        distance(structure.dense(structure.chart(zero, case.member)), F),
        distance(F, F.T),
        float(-jnp.linalg.eigvalsh(F).min() / jnp.abs(F).max()),
    )


def cone(case: Case) -> float:
    """Eigenvalues are non-negative, as every Fisher's are: the least of the fit, in units of the largest, on the ensemble, on
    one of its gradients and on one entry alone."""
    nothing = jnp.zeros_like(case.gradients)  # of as many samples, so that no fit is compiled anew
    harsher = nothing.at[0].set(case.gradients[0]), nothing.at[0, 0, 0].set(1)
    members = case.fitted, *(fit(case.structure, Fisher.from_gradients(G)) for G in harsher)
    return float(np.max([0.0, *(-least_eigenvalue(case.structure, member) for member in members)]))


def isometry(case: Case) -> float:
    """out(into(G)) == G, and into keeps norms."""
    G, frame = case.gradients[0], case.member.frame
    X = case.structure.to_eigenbasis(frame, G)
    norm = sum(jnp.sum(x**2) for x in jax.tree.leaves(X))
    return max(distance(case.structure.from_eigenbasis(frame, X), G), distance(norm, jnp.sum(G**2)))


def application(case: Case) -> float:
    """apply(member, G, f) == Mat(f(dense(member)) Vec(G)) for f = x, 1/(sqrt(x) + 0.1) and, on the range, 1/sqrt(x)."""
    G, F = case.gradients[0], case.structure.dense(case.member)
    values, Q = jnp.linalg.eigh(F)
    seen = values > 1e-12 * values.max()

    def dense(f: Callable[[Array], Array]) -> Array:
        return unvec(Q @ (jnp.where(seen, f(jnp.where(seen, values, 1)), 0) * (Q.T @ vec(G))), case.shape)

    fs = (lambda x: x, lambda x: 1 / (jnp.sqrt(x) + 0.1), inverse_root(0.0))
    return max(distance(case.structure.apply(case.member, G, f), dense(f)) for f in fs)


def layout(case: Case) -> float:
    """fit returns the tree, shapes and dtypes of chart, so that it can sit in scan and cond."""
    a, b = (jax.tree.map(lambda x: (x.shape, x.dtype), p) for p in (case.fitted, case.member))
    return 0.0 if a == b else float("inf")


def homogeneity(case: Case) -> float:
    """Gradients times c give F~ times c^2."""
    scaled = fit(case.structure, Fisher.from_gradients(1000 * case.gradients))
    return distance(case.structure.dense(scaled), 1e6 * case.structure.dense(case.fitted))


def claim(case: Case) -> float:
    """The claim holds: the structure's objective is stationary at the fit, and never lower.

    EXACT and LIMIT: over the whole chart, and the solver cannot beat the gap. Others: given the basis, against random
    eigenvalues.
    """
    structure, fisher, fitted = case.structure, case.fisher, case.fitted
    whole = structure.claim in (Claim.EXACT, Claim.LIMIT)
    deviation = stationarity(structure, fisher, fitted)
    if whole:
        return max(deviation, solve(structure, fisher, starts=2).certificate.excess if case.solved else 0.0)
    objective = jax.jit(structure.objective)
    flat, unravel = ravel_pytree(jax.tree.map(jnp.zeros_like, fitted.coords))
    still = jax.tree.map(jnp.zeros_like, fitted.frame)
    for width in (0.03, 0.3, 3.0):
        z = scale_coordinates(fitted, Params(still, unravel(width * case.normal(4, flat.size))))
        lower = objective(fitted, fisher) - objective(structure.chart(z, fitted), fisher)
        deviation = max(deviation, float(lower / fisher.norm_squared))
    return deviation


def symmetry(case: Case) -> float:
    """The stated invariances: gradients P G Q of the stated kinds turn F~ by Q^T (x) P."""
    structure, (m, n) = case.structure, case.shape

    def transform(kind: str | None, size: int, stream: int) -> Array:
        if kind == "orthogonal":
            return jnp.linalg.qr(case.normal(stream, size, size))[0]
        return jnp.roll(jnp.eye(size), 1 if kind == "permutation" else 0, axis=0)

    left, right = structure.symmetry
    P, Q = transform(left, m, 5), transform(right, n, 6)
    turned = structure.dense(fit(structure, Fisher.from_gradients(P @ case.gradients @ Q)))
    B = jnp.kron(Q.T, P)
    return distance(turned, B @ structure.dense(case.fitted) @ B.T)


def compilation(case: Case) -> float:
    """jit = eager, vmap = loop, bfloat16 in gives bfloat16 out, and a step of the transform compiles once."""
    structure, G = case.structure, case.gradients[:3]
    f = inverse_root(0.1)
    eager = jnp.stack([structure.apply(case.member, g, f) for g in G])
    batched = jax.jit(jax.vmap(lambda member, g: structure.apply(member, g, f), (None, 0)))(case.member, G)
    half = structure.apply(case.member, G[0].astype(jnp.bfloat16), f)
    tx, traces = scale_by_structure(structure), []

    @jax.jit
    def update(G: Array, state: Any) -> Any:
        traces.append(1)
        return tx.update(G, state)

    half_G = G.astype(jnp.bfloat16)
    state = tx.init(half_G[0])
    for g in half_G:
        scaled, state = update(g, state)
    sound = half.dtype == scaled.dtype == jnp.bfloat16 and len(traces) == 1 and bool(jnp.isfinite(scaled).all())
    return distance(eager, batched) if sound else float("inf")


def streaming(case: Case) -> float:
    """In a fixed frame, the transform's state holds the exponential average of `stats`, which are linear in F."""
    structure, steps, b = case.structure, min(5, len(case.gradients)), 0.9
    tx = scale_by_structure(structure, b1=None, b2=b, update_interval=None)
    state = start_from(tx.init(case.gradients[0]), case.fitted.frame)
    update = jax.jit(tx.update)
    for G in case.gradients[:steps]:
        _, state = update(G, state)
    weights = (1 - b) * b ** jnp.arange(steps - 1, -1, -1.0)
    weighted = Fisher.from_gradients(case.gradients[:steps] * jnp.sqrt(steps * weights)[:, None, None])
    expected = jax.tree.leaves(structure.stats(weighted, case.fitted))
    kept = jax.tree.leaves((state.covariances, state.averaged))
    return distance([k.reshape(e.shape) for k, e in zip(kept, expected, strict=True)], expected)


def forms(case: Case) -> float:
    """Samples and the dense form have the same statistics and the same F~."""
    structure = case.structure
    dense = Fisher.from_dense(case.fisher.dense(), case.shape)
    return max(
        distance(*(structure.stats(fisher, case.fitted) for fisher in (case.fisher, dense))),
        distance(*(structure.dense(fit(structure, fisher)) for fisher in (case.fisher, dense))),
    )


def rest(case: Case) -> float:
    """fit is at rest: one more turn of its frame leaves F~ where it is."""
    structure, frame = case.structure, case.fitted.frame
    stats = structure.stats(case.fisher, case.fitted)
    moved, _ = structure.update_basis(stats, frame, case.fisher, BasisStep(jax.random.key(case.seed)))
    again = structure.fit(structure.stats(case.fisher, Params(moved, None)), moved)
    return distance(structure.dense(again), structure.dense(case.fitted))


def split(case: Case) -> float:
    """Basis error + spectrum error = gap, at a member that fits nothing, and neither part is negative."""
    total, basis, spectrum, _ = unchecked_gap(case.structure, case.member, case.fisher)
    size = case.fisher.norm_squared
    return float(max(abs(basis + spectrum - total) / size, -basis / size, -spectrum / size))


def gaps(case: Case) -> float:
    """The gap from samples is ||dense(member) - F||^2, written out."""
    F = case.structure.dense(case.member)
    return distance(unchecked_gap(case.structure, case.member, case.fisher).total, jnp.sum((F - case.fisher.dense()) ** 2))


LAWS: dict[str, Callable[[Case], float]] = {
    law.__name__: law
    for law in (
        chart, cone, isometry, application, layout, homogeneity, claim, symmetry, compilation, streaming, forms, rest, split,
        gaps,
    )
}  # fmt: skip

"""The numeric minimum over a family, and its certificate: what the closed form is judged by.

Damped Newton through `chart`, for any structure: from the closed form, from Jacobi sweeps where the family is a rotated
linear spectrum, and from wide random members. Steps are found by conjugate gradients, which need the Hessian only in
products and leave saddles along the first direction of negative curvature; each step starts a new chart at the member
reached.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Float

from fimlens.fisher.fisher import Fisher, SampleFisher, unvec
from fimlens.fisher.limits import require_dense
from fimlens.solver.fit import fit, is_member, require
from fimlens.solver.jacobi import jacobi, sides
from fimlens.structure import Claim, Params, Structure, excess
from fimlens.structures import LowRank

STEPS = (3.0, 2.0, 1.0, 0.5, 0.25, 0.1, 0.03, 0.01, 1e-3)  # 3 is exact where an eigenvalue falls to zero, as z^4


CONJUGATE_STEPS = 100


class Certificate(NamedTuple):
    """What a solution was compared with.

    All values are gaps ||F~ - F||^2. `gradient_norm` is that of the *relative* gap in the chart at the solution;
    `origins` and `values` name every start and where it ended; `reached` counts the starts within 1e-9 (relative to
    ||F||^2) of the best; `excess` is by how much the best lies below the closed form, again relative to ||F||^2. What has a
    negative eigenvalue is no member, and its gap counts as infinite: so do `closed_form` and `excess` if the fit has one.

    Examples:
        >>> import jax, fimlens as fl
        >>> fisher = fl.Fisher.from_gradients(jax.random.normal(jax.random.key(0), (8, 3, 4)))
        >>> certificate = fl.solve(fl.Rotated(fl.Rows(), "L"), fisher).certificate
        >>> certificate.origins[0], len(certificate.values), certificate.beaten
        ('closed form', 12, False)
    """

    gradient_norm: float
    origins: tuple[str, ...]
    values: tuple[float, ...]
    reached: int
    closed_form: float
    excess: float

    @property
    def beaten(self) -> bool:
        """Whether the closed form was beaten by more than rounding."""
        return self.excess > 1e-9


class Solution(NamedTuple):
    """The best member found, its gap ||F~ - F||^2, and the certificate.

    Examples:
        >>> import jax, fimlens as fl
        >>> fisher = fl.Fisher.from_gradients(jax.random.normal(jax.random.key(0), (8, 3, 4)))
        >>> best = fl.solve(fl.Rotated(fl.Rows(), "L"), fisher)
        >>> best.params.coords.shape, bool(abs(best.value - best.certificate.closed_form) < 1e-6)
        ((3, 1), True)
    """

    params: Params
    value: float
    certificate: Certificate


def solve(
    structure: Structure, fisher: Fisher, *, key: Array | None = None, starts: int = 8, iterations: int = 200
) -> Solution:
    """The numeric minimum of ||F~ - F||_F^2 over a family, in float64, for small matrices.

    Args:
        key: draws the random starts; jax.random.key(0) by default.
        starts: how many wide random members to start from, beside the closed form and, where they apply, Jacobi sweeps.
        iterations: Newton steps from each start, at most.

    Raises:
        TypeError: an argument is not a Structure instance, or not a Fisher.
        ValueError: the structure does not suit the shape, the matrix is too large, or `starts` is negative.

    Examples:
        >>> import jax, fimlens as fl
        >>> fisher = fl.Fisher.from_gradients(jax.random.normal(jax.random.key(0), (8, 3, 4)))
        >>> fl.solve(fl.Rotated(fl.Rows(), "L"), fisher).certificate.beaten  # whitening is exact
        False
    """
    require("solve", structure, fisher)
    if starts < 0:
        raise ValueError(f"solve: starts counts random members, 0 or more; got {starts}")
    if starts:
        require_dense("solve", "Take a smaller matrix, or starts=0.", fisher.shape)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        key_data = None if key is None else jax.random.key_data(key)
        key = jax.random.key(0) if key_data is None else jax.random.wrap_key_data(key_data)
        samples = _few_samples(fisher)
        norm_squared = float(samples.norm_squared)
        fit_key, jacobi_key, random_key = jax.random.split(key, 3)
        members = [("closed form", fit(structure, samples, key=fit_key))]
        if sides(structure, fisher.shape) is not None:
            members += _swept(structure, samples, jacobi_key)
        members += [("random", _random_member(structure, samples, k)) for k in jax.random.split(random_key, starts)]
        origins, stack = zip(*members, strict=True)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *stack)
        ends, values, slopes = _descend(structure, stacked, samples, norm_squared, iterations)
        closed = float(_relative_gap(structure, stack[0], samples, norm_squared))
        values = np.where(np.isfinite(values), values, np.inf)
        best = int(np.argmin(values))
        if not np.isfinite(values[best]):
            raise ValueError(
                f"solve: all {len(values)} starts of {structure} have a negative eigenvalue or a gap that is not finite. A "
                "chart of members takes any numbers to eigenvalues of 0 or more."
            )
        certificate = Certificate(
            gradient_norm=float(slopes[best]),
            origins=origins,
            values=tuple(float(v) * norm_squared for v in values),
            reached=int(np.sum(values <= values[best] + 1e-9)),
            closed_form=closed * norm_squared,
            excess=closed - float(values[best]),
        )
        return Solution(jax.tree.map(lambda x: x[best], ends), float(values[best]) * norm_squared, certificate)


def stationarity(structure: Structure, fisher: Fisher, fitted: Params) -> float:
    """The largest slope of the structure's objective at its fit, relative to ||F||^2.

    Over the whole chart where the claim is EXACT or LIMIT; of the eigenvalues alone, the basis given, otherwise.
    """
    slope = _slope(structure, fisher, fitted)
    whole = structure.claim in (Claim.EXACT, Claim.LIMIT)
    return float(jnp.abs(ravel_pytree(slope if whole else slope.coords)[0]).max())


@partial(jax.jit, static_argnums=0)
def _slope(structure: Structure, fisher: Fisher, fitted: Params) -> Params:
    def objective(z: Params) -> Array:
        member = structure.chart(in_units(fitted, z), fitted)
        norm_squared = fisher.norm_squared
        return structure.objective(member, fisher) / jnp.where(norm_squared > 0, norm_squared, 1)

    return jax.grad(objective)(jax.tree.map(jnp.zeros_like, fitted))


def _few_samples(fisher: Fisher) -> SampleFisher:
    """The same F in float64, from at most mn samples."""
    m, n = fisher.shape
    if isinstance(fisher, SampleFisher) and len(fisher.samples) <= m * n:
        return SampleFisher(fisher.kind, fisher.normalisation, fisher.samples.astype(jnp.float64))
    values, Q = np.linalg.eigh(np.asarray(fisher.dense(), np.float64))
    g = Q * np.sqrt(np.maximum(values, 0) * len(values))
    return SampleFisher(fisher.kind, fisher.normalisation, jax.vmap(lambda g: unvec(g, (m, n)))(jnp.asarray(g.T)))


def _swept(structure: Structure, fisher: SampleFisher, key: Array) -> list[tuple[str, Params]]:
    m, n = sorted(fisher.shape) if isinstance(structure, LowRank) else fisher.shape  # it turns its shorter side
    bases = [(jnp.eye(m), jnp.eye(n))]
    bases += [(_orthogonal(k, m), _orthogonal(k, n)) for k in jax.random.split(key, 2)]
    return [("jacobi", jacobi(structure, fisher, start)) for start in bases]


@partial(jax.jit, static_argnums=1)
def _orthogonal(key: Array, size: int) -> Float[Array, "k k"]:
    return jnp.linalg.qr(jax.random.normal(key, (size, size)))[0]


@partial(jax.jit, static_argnums=0)
def _random_member(structure: Structure, fisher: Fisher, key: Array) -> Params:
    """A wide random member, of the size of F."""
    m, n = fisher.shape
    mean = jnp.mean(fisher.second_moment())
    centre = structure.isotropic(m, n, jnp.where(mean > 0, mean, 1))
    flat, unravel = ravel_pytree(centre)
    return structure.chart(in_units(centre, unravel(2 * jax.random.normal(key, flat.shape))), centre)


def in_units(member: Params, z: Params) -> Params:
    """z with each array of coordinates in its own unit, so that the search does not depend on the scale of F."""

    def unit(c: Array) -> Array:
        size = jnp.sqrt(jnp.mean(jnp.abs(c)))
        return jnp.where(size > 0, size, 1)

    return Params(z.frame, jax.tree.map(lambda x, c: x * unit(c), z.coords, member.coords))


@partial(jax.jit, static_argnums=0)
def _relative_gap(structure: Structure, params: Params, fisher: Fisher, norm_squared: Float[ArrayLike, ""]) -> Float[Array, ""]:
    """Infinite outside the PSD cone."""
    value = 1 + excess(structure.eigenvalue_blocks(params, fisher)) / jnp.where(norm_squared > 0, norm_squared, 1)
    return jnp.where(is_member(structure, params), value, jnp.inf)


@partial(jax.jit, static_argnums=(0, 4))
def _descend(
    structure: Structure, members: Params, fisher: Fisher, norm_squared: Float[ArrayLike, ""], iterations: int
) -> tuple[Params, Float[Array, " starts"], Float[Array, " starts"]]:
    """Newton from every member in turn: ends, relative gaps and gradient norms."""
    _, unravel = ravel_pytree(jax.tree.map(lambda x: x[0], members))

    def move(member: Params, z: Array) -> Params:
        return structure.chart(in_units(member, unravel(z)), member)

    def gap_at(z: Array, member: Params) -> Array:
        return _relative_gap(structure, move(member, z), fisher, norm_squared)

    def step(member: Params, value: Array) -> tuple[Params, Array, Array]:
        zero = jnp.zeros_like(ravel_pytree(member)[0])
        slope, curve = jax.linearize(lambda z: jax.grad(gap_at)(z, member), zero)
        newton = _truncated_newton(slope, curve)
        newton = newton * jnp.minimum(1, 2 / jnp.linalg.norm(newton))
        trials = jnp.array(STEPS)[:, None] * newton
        values = jax.vmap(lambda z: gap_at(z, member))(trials)
        values = jnp.where(jnp.isfinite(values), values, jnp.inf)
        best = jnp.argmin(values)
        better = values[best] < value
        moved = jax.tree.map(lambda new, old: jnp.where(better, new, old), move(member, trials[best]), member)
        return moved, jnp.where(better, values[best], value), jnp.linalg.norm(slope)

    def restless(state: tuple[Params, Array, Array, Array, Array]) -> Array:
        _, _, _, idle, count = state
        return (count < iterations) & (idle < 2)

    def advance(state: tuple[Params, Array, Array, Array, Array]) -> tuple[Params, Array, Array, Array, Array]:
        member, value, _, idle, count = state
        member, new, slope = step(member, value)
        return member, new, slope, jnp.where(value - new > 1e-15, 0, idle + 1), count + 1

    def descend(member: Params) -> tuple[Params, Array, Array]:
        value = _relative_gap(structure, member, fisher, norm_squared)
        member, value, slope, *_ = jax.lax.while_loop(restless, advance, (member, value, jnp.inf, 0, 0))
        return member, value, slope

    return jax.lax.map(descend, members)


def _truncated_newton(slope: Array, curve: Callable[[Array], Array]) -> Array:
    """The Newton step by conjugate gradients, left along the first direction of negative curvature (Steihaug, 1983)."""
    size = jnp.linalg.norm(slope)
    floor = jnp.minimum(0.1, jnp.sqrt(size)) * size

    def restless(state: tuple[Array, ...]) -> Array:
        _, r, _, bent, count = state
        return ~bent & (count < CONJUGATE_STEPS) & (jnp.linalg.norm(r) > floor)

    def search(state: tuple[Array, ...]) -> tuple[Array, ...]:
        p, r, d, _, count = state
        image = curve(d)
        energy, square = jnp.vdot(d, image), jnp.vdot(r, r)
        bent = energy <= 1e-14 * jnp.vdot(d, d)
        alpha = jnp.where(bent, 1 / jnp.linalg.norm(d), square / jnp.where(bent, 1, energy))
        new = r - alpha * image
        return p + alpha * d, new, new + jnp.vdot(new, new) / square * d, bent, count + 1

    return jax.lax.while_loop(restless, search, (jnp.zeros_like(slope), -slope, -slope, False, 0))[0]

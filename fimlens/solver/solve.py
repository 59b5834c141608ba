"""The numeric minimum over a family, and its certificate: what the closed form is judged by.

`solve` starts damped Newton (newton.py) from the closed form and from wide random members, and keeps the best end. Where the
family is a linear spectrum in rotated bases, it also starts from Jacobi sweeps (jacobi.py).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from fimlens.divergence import FROBENIUS, Divergence, require_divergence
from fimlens.fisher.fisher import Fisher, unvec
from fimlens.fisher.limits import require_dense
from fimlens.fisher.sample_form import SampleFisher
from fimlens.solver.fit import least_eigenvalue, no_minimum, require_minimum, require_structure_and_fisher, unchecked_fit
from fimlens.solver.jacobi import jacobi, rotated_sides
from fimlens.solver.newton import aim_at, descend, scale_coordinates
from fimlens.solver.sizes import isotropic
from fimlens.structure import Params, Structure
from fimlens.structures import LowRank

TOLERANCE = 1e-9  # of relative gaps: a smaller difference is rounding


class Certificate(NamedTuple):
    """The evidence for a `Solution`: where every start ended, and how the closed form compares.

    A matrix with a negative eigenvalue is not a member, and its gap counts as infinite: `closed_form` and `excess` are infinite
    if the fit is such a matrix. Gaps are relative to the size of F, as in `Gap.relative`. Where tr phi(F) is infinite, as under
    LogDet for a singular F, values are D - tr phi(F), which is finite.

    Attributes:
        gradient_norm: norm of the gradient of the *relative* gap, in the chart at the solution.
        origins: the origin of each start: "closed form", "jacobi" or "random".
        values: the gap D(F, F~) at which each start ended.
        reached: how many starts ended within 1e-9 of the best, relative to the size of F.
        closed_form: the gap of the closed form.
        excess: how far the best gap lies below that of the closed form, relative to the size of F.

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
        """Whether a member was found that is nearer than the closed form by more than rounding."""
        return self.excess > TOLERANCE


class Solution(NamedTuple):
    """The answer of `solve`.

    Attributes:
        params: the best member found.
        value: its gap D(F, F~), or D - tr phi(F) where that is infinite.
        certificate: what it was compared with.

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
    structure: Structure,
    fisher: Fisher,
    *,
    divergence: Divergence = FROBENIUS,
    key: Array | None = None,
    starts: int = 8,
    iterations: int = 200,
) -> Solution:
    """Find the member of a family nearest to a Fisher numerically, and certify the closed form by it.

    Use it to learn whether `fit` is optimal (claims EXACT and LIMIT say so, about one divergence) and by how much it is not. It
    computes in float64 and is meant for small matrices: up to some hundred entries.

    Args:
        structure: the family.
        fisher: the Fisher of one matrix.
        divergence: in which sense; by default the Frobenius norm, whatever the structure's own is.
        key: draws the random starts; jax.random.key(0) by default.
        starts: number of random members to start from, in addition to the closed form and, where they apply, Jacobi sweeps.
        iterations: bound on the Newton steps from each start.

    Returns:
        A `Solution`: the best member, its gap and a `Certificate`.

    Raises:
        TypeError: `structure` is not a Structure instance, or `fisher` is not a Fisher.
        ValueError: the structure does not suit the shape, the matrix is too large, `starts` is negative, or every start ended
            outside the family.

    Examples:
        >>> import jax, fimlens as fl
        >>> fisher = fl.Fisher.from_gradients(jax.random.normal(jax.random.key(0), (8, 3, 4)))
        >>> fl.solve(fl.Rotated(fl.Rows(), "L"), fisher).certificate.beaten  # whitening is exact
        False
    """
    require_structure_and_fisher("solve", structure, fisher)
    require_divergence("solve", divergence)
    if starts < 0:
        raise ValueError(f"solve: starts counts random members, 0 or more; got {starts}")
    if starts:
        require_dense("solve", "Take a smaller matrix, or starts=0.", fisher.shape)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        key = jax.random.key(0) if key is None else jax.random.wrap_key_data(jax.random.key_data(key))  # old keys pass too
        samples = _in_few_samples(fisher)
        aim = aim_at(divergence, samples)
        origins, members = zip(*_start_members(structure, samples, key, starts), strict=True)
        require_minimum("solve", structure, members[0], samples, divergence)
        ends, first, values, slopes = jax.device_get(descend(structure, members, samples, aim, iterations))
        closed, values = (np.where(np.isfinite(x), x, np.inf) for x in (first[0], values))  # argmin would pick NaN
        best = int(np.argmin(values))
        if not np.isfinite(values[best]):
            raise ValueError(
                f"solve: all {len(values)} starts of {structure} have a negative eigenvalue or a gap that is not finite. A "
                "chart must map every z to eigenvalues of 0 or more, and over 0 where F has a part and phi'(0) is infinite."
            )
        end = jax.device_put(jax.tree.map(lambda x: x[best], ends))
        # Where bases can turn an eigenvalue to zero, a descent stops far from rest.
        if not divergence.finite_at_zero and slopes[best] > 1 and least_eigenvalue(structure, end) < 1e-6:
            raise no_minimum(
                f"solve: {divergence} seems to have no minimum over {structure} here: it still falls, by a slope of "
                f"{slopes[best]:.1g}, with an eigenvalue that is {least_eigenvalue(structure, end):.1g} of the largest"
            )
        size = float(aim.size)
        certificate = Certificate(
            gradient_norm=float(slopes[best]),
            origins=origins,
            values=tuple(float(v) * size for v in values),
            reached=int(np.sum(values <= values[best] + TOLERANCE)),
            closed_form=float(closed) * size,
            excess=float(closed - values[best]),
        )
        return Solution(end, float(values[best]) * size, certificate)


def _start_members(structure: Structure, fisher: SampleFisher, key: Array, random: int) -> list[tuple[str, Params]]:
    """Return the members to start from, each with its origin: the closed form first."""
    fit_key, jacobi_key, random_key = jax.random.split(key, 3)
    members = [("closed form", unchecked_fit(structure, fisher, fit_key))]
    if rotated_sides(structure, fisher.shape) is not None:
        members += _jacobi_starts(structure, fisher, jacobi_key)
    return members + [("random", _random_member(structure, fisher, k)) for k in jax.random.split(random_key, random)]


def _in_few_samples(fisher: Fisher) -> SampleFisher:
    """Return the same F in float64, as at most mn samples: scaled eigenvectors if it has more."""
    m, n = fisher.shape
    if isinstance(fisher, SampleFisher) and len(fisher.samples) <= m * n:
        return SampleFisher(fisher.kind, fisher.normalisation, fisher.samples.astype(jnp.float64))
    # Every evaluation of the gap is linear in the number of samples, and F has at most mn directions.
    values, Q = np.linalg.eigh(np.asarray(fisher.dense(), np.float64))
    values = np.where(values > len(values) * np.finfo(values.dtype).eps * values[-1], values, 0)  # without rounding
    g = Q * np.sqrt(values * len(values))
    return SampleFisher(fisher.kind, fisher.normalisation, jax.vmap(lambda g: unvec(g, (m, n)))(jnp.asarray(g.T)))


def _jacobi_starts(structure: Structure, fisher: SampleFisher, key: Array) -> list[tuple[str, Params]]:
    """Sweep from the identity and from two random pairs of bases."""
    m, n = sorted(fisher.shape) if isinstance(structure, LowRank) else fisher.shape  # LowRank takes its shorter side first
    bases = [(jnp.eye(m), jnp.eye(n))]
    bases += [(_orthogonal(k, m), _orthogonal(k, n)) for k in jax.random.split(key, 2)]
    return [("jacobi", jacobi(structure, fisher, start)) for start in bases]


@partial(jax.jit, static_argnums=1)
def _orthogonal(key: Array, size: int) -> Float[Array, "k k"]:
    return jnp.linalg.qr(jax.random.normal(key, (size, size)))[0]


@partial(jax.jit, static_argnums=0)
def _random_member(structure: Structure, fisher: Fisher, key: Array) -> Params:
    """Draw a member far from the isotropic one, and of the size of F."""
    m, n = fisher.shape
    mean = jnp.mean(fisher.second_moment())  # tr(F) / mn: the scale of the isotropic member nearest to F
    centre = isotropic(structure, (m, n), jnp.where(mean > 0, mean, 1))
    flat, unravel = ravel_pytree(centre)
    return structure.chart(scale_coordinates(centre, unravel(2 * jax.random.normal(key, flat.shape))), centre)

"""What must hold of every divergence, with a slip for each statement; and its edges, where it may be infinite."""

from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fimlens as fl
from fimlens.divergence import excess
from fimlens.lens.laws import written_out
from fimlens.member import EigenvalueBlock

EVERY = [fl.Frobenius(), fl.VonNeumann(), fl.LogDet(), fl.Beta(0.5), fl.Beta(-0.5), fl.Beta(3.0)]
RANDOM = np.random.default_rng(0)
G = RANDOM.normal(size=(2, 2)) @ RANDOM.normal(size=(12, 2, 3)) @ RANDOM.normal(size=(3, 3))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@cache
def fisher():
    return fl.Fisher.from_gradients(G)


@cache
def other():
    """A member that is diagonal in the covariances' bases. It is fitted to another Fisher."""
    return fl.fit(fl.Rotated(fl.Diagonal()), fl.Fisher.from_gradients(G[:5] + 1))


def gap(divergence, params=None, of=None, structure=fl.Rotated(fl.Diagonal())):  # noqa: B008
    params, of = params or other(), of or fisher()
    return fl.gap(structure, params, of, divergence=divergence)


# --- laws: functions of a divergence that return how far it is from keeping them -------------------------------


def homogeneity(divergence):
    """D(tF, tF~) = t^b D(F, F~)."""
    F, near = fisher().dense(), fl.Rotated(fl.Diagonal()).dense(other())
    ratios = []
    for t in (1e-3, 7.0):
        member = fl.Params(other().frame, t * other().coords)
        ratios += [gap(divergence, member, fisher().scaled(t)).total / gap(divergence).total]
        ratios += [written_out(divergence, t * F, t * near) / written_out(divergence, F, near)]
    return max(abs(ratio / t**divergence.degree - 1) for ratio, t in zip(ratios, (1e-3, 1e-3, 7, 7), strict=True))


def definition(divergence):
    """The gap is D(F, F~) by eigendecompositions."""
    expected = written_out(divergence, fisher().dense(), fl.Rotated(fl.Diagonal()).dense(other()))
    return abs(gap(divergence).total / expected - 1)


def identity(divergence):
    """D(F, F) = 0, here for F = F~."""
    F = fl.Fisher.from_dense(fl.Rotated(fl.Diagonal()).dense(other()), (2, 3))
    return abs(gap(divergence, of=F).relative)


def sign(divergence):
    """D is not negative, and neither are its parts."""
    return -min(min(found.total, found.basis, found.spectrum) / abs(found.total) for found in [gap(divergence)])


def split(divergence):
    """basis + spectrum = total."""
    total, basis, spectrum, *_ = gap(divergence)
    return abs((basis + spectrum) / total - 1)


def stationarity(divergence):
    """The slope of D along the eigenvalues is the sum of phi''(lambda) (lambda - V) d lambda, rational in the three."""
    structure, member = fl.Rotated(fl.RowColumn()), fl.Params(other().frame, (other().coords[:, :1], other().coords[:1]))

    def D(coords):
        return written_out(divergence, fisher().dense(), structure.dense(fl.Params(member.frame, coords)))

    [(value, V, _)] = structure.eigenvalue_blocks(member, fisher())
    _, along = jax.vjp(lambda coords: structure.eigenvalues(fl.Params(member.frame, coords)), member.coords)
    slopes, expected = (
        jnp.concatenate([jnp.ravel(x) for x in tree])
        for tree in (jax.grad(D)(member.coords), along(divergence.curvature(value) * (value - V))[0])
    )
    return jnp.abs(slopes - expected).max() / jnp.abs(expected).max()


def continuity(divergence):
    """It is the limit of Beta(b), up to a factor, as b comes near to its degree from either side."""
    V, value = jnp.array([0.1, 1.0, 4.0, 5.0]), jnp.array([2.0, 0.3, 3.0, 0.01])
    D = divergence.between(V, value)
    factor = divergence.curvature(jnp.ones([]))
    below, above = (factor * fl.Beta(divergence.degree + h).between(V, value) / D for h in (-1e-5, 1e-5))
    return jnp.abs((below + above) / 2 - 1).max()  # of the order of h^2


def invariance(divergence):
    """D(A F A^T, A F~ A^T) = D(F, F~) for every invertible A: LogDet alone."""
    A = jax.random.normal(jax.random.key(1), (6, 6))
    F, approximation = fisher().dense(), fl.Rotated(fl.Diagonal()).dense(other())
    pairs = [(F, approximation), (A @ F @ A.T, A @ approximation @ A.T)]
    dense = fl.Dense()
    before, after = (
        fl.gap(dense, fl.fit(dense, fl.Fisher.from_dense(near, (2, 3))), fl.Fisher.from_dense(F, (2, 3)), divergence=divergence)
        for F, near in pairs
    )
    return abs(after.total / before.total - 1)


LAWS = {law.__name__: law for law in (homogeneity, definition, identity, sign, split, stationarity, continuity)}


@pytest.mark.parametrize("divergence", EVERY, ids=str)
@pytest.mark.parametrize("law", LAWS)
def test_the_law_holds(law, divergence):
    assert LAWS[law](divergence) < 1e-8


def test_logdet_alone_is_invariant():
    assert invariance(fl.LogDet()) < 1e-8


# --- slips ---------------------------------------------------------------------------------------------------


class WrongDegree(fl.LogDet):
    """States the degree of another."""

    degree = 1.0


class HalfTheSpectrum(fl.Frobenius):
    """Counts half of what the eigenvalues miss."""

    def between(self, V, value):
        return super().between(V, value) / 2


class ForgetsItsUnit(fl.VonNeumann):
    """Takes tr phi(F) in any unit for that of F."""

    def trace(self, fisher, unit=1.0):
        return super().trace(fisher)


class Concave(fl.Divergence):
    """Has a largest value where a divergence has its least."""

    def phi(self, x):
        return jnp.sqrt(x)


class CurvatureOfAnother(fl.LogDet):
    """Has phi'' of von Neumann's."""

    def curvature(self, x):
        return 1 / x


class ForgetsTheLimit(fl.VonNeumann):
    """Leaves the linear term out of x log x - x only where it is differentiated."""

    def slope(self, x):
        return jnp.log(x) + 1


SLIPS = [
    (homogeneity, WrongDegree()),
    (definition, ForgetsItsUnit()),
    (identity, ForgetsItsUnit()),
    (sign, Concave()),
    (split, HalfTheSpectrum()),
    (stationarity, CurvatureOfAnother()),
    (continuity, ForgetsTheLimit()),
    (invariance, fl.Beta(0.1)),
]


@pytest.mark.parametrize(("law", "slip"), SLIPS, ids=lambda x: getattr(x, "__name__", str(x)))
def test_the_law_catches_the_slip(law, slip):
    assert not law(slip) < 1e-3


def test_every_law_has_a_slip_that_it_catches():
    assert {law for law, _ in SLIPS} == {*LAWS.values(), invariance}


# --- edges ---------------------------------------------------------------------------------------------------


def test_zero_is_a_limit():
    """Of numbers: 0 log 0 = 0, and what is infinite at 0 is never NaN."""
    zero, one = jnp.zeros([]), jnp.ones([])
    assert fl.VonNeumann().phi(zero) == fl.VonNeumann().between(zero, zero) == 0
    assert fl.VonNeumann().between(zero, one) == 1
    assert fl.Beta(0.5).between(zero, zero) == 0
    assert fl.Beta(0.5).between(zero, one) == 2
    for divergence in (fl.VonNeumann(), fl.LogDet(), fl.Beta(0.5)):
        assert divergence.between(one, zero) == jnp.inf
    assert fl.Beta(1.5).between(one, zero) == pytest.approx(4 / 3)
    assert fl.LogDet().between(zero, one) == jnp.inf


def test_a_fisher_of_few_samples_is_infinitely_far_in_logdet_alone():
    few = fl.Fisher.from_gradients(G[:3])
    found = gap(fl.LogDet(), of=few)
    assert found.total == found.relative == found.share == jnp.inf
    assert found.basis is found.spectrum is None
    for divergence in (fl.VonNeumann(), fl.Beta(0.5)):
        F, approximation = few.dense(), fl.Rotated(fl.Diagonal()).dense(other())
        F = F + 1e-14 * jnp.eye(6)  # of which phi, but not the witness, has the limit
        found = gap(divergence, of=few)
        assert found.total == pytest.approx(float(written_out(divergence, F, approximation)), rel=1e-5)
        assert found.basis + found.spectrum == pytest.approx(float(found.total))


@pytest.mark.parametrize("b", [0.0, 0.5, 1.0, 1.5])
def test_what_drop_leaves_out_has_the_eigenvalue_zero(b):
    """So it is infinitely far where phi'(0) is infinite and F has a part there, and counts in full elsewhere."""
    galore, divergence = fl.LowRank(fl.Diagonal(), 1, fl.Drop()), fl.Beta(b)
    found = gap(divergence, fl.fit(galore, fisher()), structure=galore)
    if b <= 1:
        assert found.total == found.relative == jnp.inf
        assert found.basis is found.spectrum is None
    else:
        F, approximation = fisher().dense(), galore.dense(fl.fit(galore, fisher()))
        assert found.total == pytest.approx(float(written_out(divergence, F, approximation + 1e-14 * jnp.eye(6))), rel=1e-6)
    within = fl.Fisher.from_gradients(G[:, :1] * jnp.array([[1.0], [2.0]]))  # one direction of the rows: nothing is left out
    member = fl.fit(galore, within)
    found = gap(divergence, member, within, galore)
    kept = gap(divergence, fl.fit(fl.Diagonal(), within := fl.Fisher.from_gradients(5**0.5 * G[:, :1])), within, fl.Diagonal())
    assert found.total == (pytest.approx(float(kept.total), rel=1e-10) if b else jnp.inf)


def test_a_part_that_is_missed_outweighs_directions_that_neither_has():
    """Under LogDet V / lambda grows faster than -log lambda as both eigenvalues fall to zero."""
    value, V = jnp.array([0.0, 0.0, 1.0]), jnp.array([0.0, 1.0, 1.0])
    assert excess([EigenvalueBlock(value, V, 1.0)], fl.LogDet()) == jnp.inf
    assert excess([EigenvalueBlock(value[::2], V[::2], 1.0)], fl.LogDet()) == -jnp.inf


@pytest.mark.parametrize("divergence", EVERY, ids=str)
def test_a_traced_gap_is_never_nan(divergence):
    traced = jax.jit(lambda G: gap(divergence, of=fl.Fisher.from_gradients(G)))(G[:3])
    assert not any(jnp.isnan(x) for x in traced if x is not None)


class Unnamed(fl.Divergence):
    """Von Neumann's phi alone, without its degree."""

    def phi(self, x):
        return jax.scipy.special.xlogy(x, x) - x


class NotANumber(fl.Divergence):
    """Has phi(0) = 0 log 0 - 0 in floating point."""

    def phi(self, x):
        return x * jnp.log(x) - x


def test_what_counts_as_rounding_depends_on_the_scale_of_the_fisher():
    """GaLore gives the rest the eigenvalue 0, where phi' is infinite: at any scale it is infinitely far, and no rounding."""
    galore = fl.LowRank(fl.Diagonal(), 1, fl.Drop())
    for scale in (1.0, 1e-8):
        small = fl.Fisher.from_gradients(scale * G)
        assert gap(Unnamed(), fl.fit(galore, small), small, galore).total == jnp.inf


def test_a_divergence_is_checked_at_the_door():
    for b in ("a", jnp.array(0.5)):
        with pytest.raises(TypeError, match=r"Beta: b is a number, such as 0.5; got .*float\(b\)"):
            fl.Beta.__post_init__(SimpleNamespace(b=b))  # the types of __init__ are checked in tests alone
    for b in (np.nan, np.inf):
        with pytest.raises(ValueError, match="Beta: b is a finite number"):
            fl.Beta(b)
    for call in (lambda: gap(NotANumber()), lambda: fl.solve(fl.Rows(), fisher(), divergence=NotANumber())):
        with pytest.raises(ValueError, match=r"phi\(0\) of NotANumber\(\) is NaN. Let phi return its limit"):
            call()


@pytest.mark.parametrize("make", [fl.Kronecker, fl.DiagonalKronecker])
def test_a_product_is_fitted_at_any_scale_in_float32(make):
    """Norms of factors have squares, which float32 does not hold at these scales."""
    family = make(fl.Beta(0.5))
    values = [family.eigenvalues(fl.fit(family, fl.Fisher.from_gradients(np.float32(t * G)))) / t**2 for t in (1, 1e-12, 1e11)]
    np.testing.assert_allclose(values[1:], [values[0]] * 2, rtol=1e-3)
    assert jnp.all(family.eigenvalues(fl.fit(family, fl.Fisher.from_gradients(np.zeros_like(G, np.float32)))) == 0)


# --- where LogDet has no minimum ---------------------------------------------------------------------------------


def of_moments(V):
    """A Fisher that is diagonal, with these second moments."""
    V = np.array(V, float)
    samples = np.zeros((V.size, *V.shape))
    for k, place in enumerate(np.ndindex(V.shape)):
        samples[k][place] = np.sqrt(V.size * V[place])
    return fl.Fisher.from_gradients(samples)


def generic(N, m, n, without=None, block=None):
    """Gaussian gradients: without one column, or with a block of zeros in rotated coordinates."""
    random = np.random.default_rng((N, m, n))
    samples = random.normal(size=(N, m, n))
    if without is not None:
        samples[:, :, without] = 0
    if block is not None:
        samples[:, -block[0] :, : block[1]] = 0
        left, right = (np.linalg.qr(random.normal(size=(k, k)))[0] for k in (m, n))
        samples = left @ samples @ right
    return fl.Fisher.from_gradients(samples)


def slow(*case):
    return pytest.param(*case, marks=pytest.mark.slow)


PRODUCT, COLUMNWISE, BOTH = (make(divergence=fl.LogDet()) for make in (fl.RowColumn, fl.DiagonalKronecker, fl.Kronecker))
STEPS = [[1, 1, 1], [0, 0, 1], [0, 0, 1]]  # zero on a block of 2 rows and 2 columns: 4/3 of the sides

REFUSED = [
    (PRODUCT, of_moments([[1, 1, 1], [0, 0, 0]]), r"1 rows and 3 columns, and 1 / 2 \+ 3 / 3 > 1"),
    (PRODUCT, of_moments(STEPS), r"2 rows and 2 columns, and 2 / 3 \+ 2 / 3 > 1"),
    slow(fl.Rotated(PRODUCT, "L"), generic(1, 5, 2), r"3 rows and 2 columns, and 3 / 5 \+ 2 / 2 > 1"),
    (fl.Blocks(PRODUCT, columns=2), of_moments([[1, 1, 1, 0], [0, 1, 1, 0]]), "2 rows and 1 columns"),
    (fl.LowRank(PRODUCT, 1), of_moments([[9, 9, 0], [1, 1, 0]]), "1 rows and 1 columns"),
    (BOTH, generic(2, 3, 3), "2 independent gradients, and fewer than 3 leave the minimum unbounded or not unique"),
    slow(BOTH, generic(3, 2, 6), "3 independent gradients, and fewer than 4 "),
    slow(BOTH, generic(2, 4, 6), "2 independent gradients, and fewer than 3 "),
    slow(BOTH, fl.Fisher.from_dense(generic(2, 3, 3).dense(), (3, 3)), "2 independent gradients"),
    slow(BOTH, generic(5, 3, 3, without=1), "no part along 1 directions of the 3 of their columns"),
    (
        BOTH,
        generic(5, 3, 3, block=(2, 2)),
        r"2 rows and 2 columns, and 2 / 3 \+ 2 / 3 > 1",
    ),  # in bases that are not unit vectors
    slow(COLUMNWISE, generic(3, 6, 2), "3 independent gradients, and fewer than 4 "),
]


@pytest.mark.parametrize(("structure", "fisher", "reason"), REFUSED, ids=lambda x: str(x)[:60])
def test_fit_refuses_logdet_without_a_minimum(structure, fisher, reason):
    with pytest.raises(ValueError, match=rf"fit: LogDet\(\) has no minimum over .*: .*{reason}"):
        fl.fit(structure, fisher)
    jax.eval_shape(lambda: fl.fit(structure, fisher.scaled(jnp.ones([]))))  # a trained step is never refused


ACCEPTED = [
    (PRODUCT, of_moments([[1, 0], [0, 1]])),  # 1/2 + 1/2 = 1
    (PRODUCT, of_moments([[1, 1, 1], [0, 1, 1], [0, 0, 1]])),
    (PRODUCT, generic(1, 3, 5)),
    (fl.RowColumn(sweeps=5, divergence=fl.LogDet()), of_moments(STEPS)),  # a number of sweeps always has an end
    (BOTH, generic(3, 3, 3)),
    (BOTH, generic(5, 1, 4)),  # a vector: of rank 4, as many as its covariance needs
    slow(BOTH, generic(2, 2, 3)),
    slow(BOTH, generic(4, 2, 6)),
    slow(BOTH, generic(3, 4, 6)),
    slow(COLUMNWISE, generic(5, 4, 1)),
    slow(COLUMNWISE, generic(4, 6, 2)),
    (fl.RowColumn(divergence=fl.Beta(0.5)), of_moments(STEPS)),
    slow(fl.Kronecker(fl.VonNeumann()), generic(1, 3, 3)),
]


@pytest.mark.parametrize(("structure", "fisher"), ACCEPTED, ids=lambda x: str(x)[:60])
def test_fit_accepts_what_has_a_minimum(structure, fisher):
    values = structure.eigenvalues(fl.fit(structure, fisher))
    assert jnp.isfinite(values).all()
    assert values.min() >= 0


UNSOLVABLE = [
    (fl.Diagonal(), of_moments([[1, 0], [1, 1]]), "no second moment along 1 of the directions"),
    slow(fl.Dense(), generic(3, 2, 2), "no second moment along 1 of the directions"),
    slow(fl.Rotated(fl.Rows(), "L"), generic(1, 3, 2), "no second moment along 2 of the directions"),
    (fl.RowColumn(), of_moments(STEPS), "2 rows and 2 columns"),
    slow(fl.LowRank(fl.Diagonal(), 1, fl.Drop()), generic(9, 2, 2), "where F has a part and phi'"),
    slow(fl.Rotated(fl.Diagonal(), "L"), generic(1, 2, 3), "still falls, by a slope"),
]


@pytest.mark.parametrize(("structure", "fisher", "reason"), UNSOLVABLE, ids=lambda x: str(x)[:60])
def test_solve_refuses_logdet_without_a_minimum(structure, fisher, reason):
    with pytest.raises(ValueError, match=f"solve: .*{reason}"):
        fl.solve(structure, fisher, divergence=fl.LogDet(), starts=2)


# --- the lead that a divergence frees ----------------------------------------------------------------------------

FREED = [((1, 1, 1, 0.01, 0.009, 0.008), (0, 0, 0)), ((10, 5, 2, 1, 0.5, 0.1, 0.01, 0.001), (2, 2, 0))]


@pytest.mark.slow
@pytest.mark.parametrize(("spectrum", "first"), FREED)
def test_the_solver_finds_the_interval_to_tie_where_the_leading_directions_are_not_best(spectrum, first):
    """Of rows with one number for the others: the tied ones are an interval of the sorted spectrum, by docs/design.md."""
    c, r = np.array(spectrum), 2
    k = len(c) - r
    family, fisher = fl.LowRank(fl.Rows(), r, fl.Scalar()), of_moments(np.tile(c[:, None], len(c)))
    for divergence, start in zip((fl.Frobenius(), fl.VonNeumann(), fl.LogDet()), first, strict=True):
        phi = lambda x, divergence=divergence: np.asarray(divergence.phi(jnp.asarray(x)))  # noqa: E731
        cost = [len(c) * (phi(c[a : a + k]).sum() - k * phi(c[a : a + k].mean())) for a in range(r + 1)]
        solution = fl.solve(family, fisher, divergence=divergence)
        assert np.argmin(cost) == start
        assert solution.value == pytest.approx(cost[start], rel=1e-9)
        assert solution.certificate.closed_form == pytest.approx(cost[-1], rel=1e-9)  # the leading directions are free
        assert solution.certificate.beaten is (start != r)

"""`fl.derive` in every divergence: a structure of a user's own, fitted by `solve`, derived, and refused where it is wrong."""

import inspect
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp

import fimlens as fl

V = {(i, j): sp.Symbol(f"V_{{{i}{j}}}", positive=True) for i in (1, 2) for j in (1, 2)}
THREE = [fl.Frobenius(), fl.VonNeumann(), fl.LogDet()]


@dataclass(frozen=True)
class Ramp(fl.Spectrum):
    """Eigenvalues c_i (j + 1): one number for each row, on a ramp over the columns."""

    divergence: fl.Divergence = fl.Frobenius()
    off: float = 1.0  # factor of the fit that makes it wrong
    claim = fl.Claim.EXACT

    def moments(self, V):
        return V

    def project(self, V):
        ramp = self.ramp(V.shape)
        weights = self.divergence.weight(ramp)
        return self.off * (V @ weights / (weights @ ramp))[:, None]

    def expand(self, c, shape):
        return c * self.ramp(shape)

    def ramp(self, shape):
        return 1.0 + jnp.arange(shape[1])


def test_it_is_short():
    assert len(inspect.getsource(Ramp).splitlines()) <= 40


@pytest.fixture(scope="module")
def fisher():
    return fl.Fisher.from_gradients(jax.random.normal(jax.random.key(0), (20, 2, 3)))


@pytest.mark.parametrize("divergence", [*THREE, pytest.param(fl.Beta(0.5), marks=pytest.mark.slow)], ids=str)
def test_it_is_fitted_by_the_solver(divergence, fisher):
    best = fl.solve(Ramp(off=3.0), fisher, divergence=divergence, starts=1)  # of this closed form the solver learns nothing
    np.testing.assert_allclose(best.params.coords, fl.fit(Ramp(divergence), fisher).coords, rtol=1e-5)
    assert best.certificate.beaten


@pytest.mark.parametrize(
    ("divergence", "weights", "size"),
    [(fl.Frobenius(), (1, 2), 5), (fl.VonNeumann(), (1, 1), 3), (fl.LogDet(), (1, sp.Rational(1, 2)), 2)],
    ids=str,
)
def test_it_is_derived(divergence, weights, size):
    right, wrong = (fl.derive(Ramp(divergence, off), 2, 2) for off in (1.0, 2.0))
    expected = [(V[i, 1] * weights[0] + V[i, 2] * weights[1]) / size for i in (1, 2)]
    assert [sp.simplify(a - b) for a, b in zip(right.found.solution.values(), expected, strict=True)] == [0, 0]
    assert right.found.closed
    assert (right.ok, right.fit) == (True, "proved: the fit solves the equations, for all entries at this size")
    assert not wrong.ok
    assert wrong.fit.startswith("refused: the gap is stationary at c_11 = ")
    # The gap, differentiated by SymPy, is stationary where phi'' says.
    c = right.coordinates[0, 0]
    assert sp.simplify(sp.diff(right.gap, c).subs(c, right.found.solution[c])) == 0


def test_what_is_fitted_to_another_divergence_claims_nothing():
    derived = fl.derive(Ramp(), 2, 2, divergence=fl.LogDet())
    assert derived.ok
    assert derived.fit == "not verified: the fit is for Frobenius(), and claims nothing in LogDet()"
    assert "Ramp() at 2 x 2, nearest in LogDet()" in str(derived)


def test_means_are_nearest_in_every_divergence():
    for divergence in (*THREE, fl.Beta(-1.0), fl.Beta(3.0)):
        derived = fl.derive(fl.Rows(), 1, 2, divergence=divergence)
        assert derived.fit.startswith("proved")
        assert list(derived.found.solution.values()) == [sp.factor_terms((V[1, 1] + V[1, 2]) / 2)]


@pytest.mark.parametrize("off", [1.0, 1.1])
def test_a_degree_that_is_no_whole_number_is_measured(off):
    derived = fl.derive(Ramp(fl.Beta(0.5), off), 1, 2)
    assert derived.ok == (off == 1)
    why = "the degree of Beta(0.5), 0.5, is no whole number"
    assert (
        f"measured, not proved, because {why}: at one Fisher the gradient is" if derived.ok else f"refused: {why}"
    ) in derived.fit
    assert derived.found.kind == f"unknown: {why}"


@pytest.mark.parametrize(
    ("structure", "part", "value"),
    [
        (fl.RowColumn(sweeps=1, divergence=fl.VonNeumann()), "proved: the fit solves", "(V_11 + V_12)/(b_11 + b_12)"),
        (fl.Kronecker(fl.VonNeumann()), "proved: the fit solves", "(F_11 + F_33)/(b_11 + b_12)"),
        (fl.Rotated(fl.Rows(), "L"), "in every basis", "(F_11 + F_33)/2"),
        (fl.LowRank(fl.Diagonal(), 1), "in every basis", "F_22"),
        pytest.param(
            fl.RowColumn(divergence=fl.LogDet()),
            "measured, not proved, because it iterates",
            "(V_11*b_12 + V_12*b_11)/(2*b_11*b_12)",
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_the_structures_that_ship(structure, part, value):
    divergence = fl.LogDet() if structure.holds_in_every_divergence else structure.divergence
    derived = fl.derive(structure, 2, 2, divergence=divergence)
    assert derived.ok
    assert part in derived.fit
    assert str(derived.lines[0].rhs).replace("_{", "_").replace("}", "") == value


class Doubled(fl.Diagonal):
    """Coordinates that are no inner products with unit vectors, which every product of `apply` hides."""

    def to_eigenbasis(self, frame, G):
        return 2 * G

    def from_eigenbasis(self, frame, X):
        return X / 2


def test_coordinates_along_no_unit_vectors_are_refused():
    with pytest.raises(ValueError, match="orthonormal eigenvectors"):
        fl.derive(Doubled(), 1, 2)


def test_no_divergence_is_refused():
    with pytest.raises(TypeError, match="divergence"):
        fl.derive(fl.Rows(), 1, 2, divergence="LogDet")

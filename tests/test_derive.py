"""`fl.derive` finds the closed form of a new structure from its definition, and refuses a wrong fit with the right equation."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp
from test_new_structure import AntiDiagonals
from typer.testing import CliRunner

import fimlens as fl
from fimlens.cli.app import app
from fimlens.structure import Frame, Params

V = {(i, j): sp.Symbol(f"V_{{{i}{j}}}", positive=True) for i in (1, 2) for j in (1, 2, 3)}


def values(derived):
    return list(derived.found.solution.values())


def test_the_closed_form_is_found_from_the_definition():
    derived = fl.derive(AntiDiagonals(), 2, 2)
    assert values(derived) == [V[1, 1], sp.factor_terms((V[1, 2] + V[2, 1]) / 2), V[2, 2]]
    assert derived.ok
    assert derived.fit.startswith("proved")
    assert derived.found.kind.startswith("the only minimum")


class Halved(AntiDiagonals):
    def project(self, moments):
        return moments / 2


def test_a_wrong_fit_is_refused_with_the_right_equation():
    derived = fl.derive(Halved(), 2, 2)
    assert not derived.ok
    assert derived.fit == "refused: the gap is stationary at c_1 = V_11, but fit gives V_11/2"


class Powers(fl.Spectrum):
    """Eigenvalues a_i b_j^2, without a fit."""

    claim = fl.Claim.LIMIT

    def moments(self, V):
        raise NotImplementedError

    def project(self, moments):
        raise NotImplementedError

    def expand(self, coords, shape):
        return coords["a"] * coords["b"] ** 2


def test_without_a_fit_the_fixed_point_is_found_block_by_block():
    derived = fl.derive(Powers(), 2, 2, coordinates={"a": (2, 1), "b": (1, 2)})
    a, b = (list(np.ravel(derived.coordinates[name])) for name in "ab")
    expected = (V[1, 1] * b[0] ** 2 + V[1, 2] * b[1] ** 2) / (b[0] ** 4 + b[1] ** 4)
    assert sp.simplify(derived.found.solution[a[0]] - expected) == 0
    assert not derived.found.closed
    assert "fixed point" in str(derived)
    assert (derived.fit, derived.ok) == ("there is no fit to verify", True)


def test_without_a_fit_the_layout_must_be_given():
    with pytest.raises(ValueError, match="coordinates="):
        fl.derive(Powers(), 2, 2)


class Sums(fl.Spectrum):
    """Eigenvalues a_i + b_j: linear, with one redundant coordinate."""

    claim = fl.Claim.EXACT

    def moments(self, V):
        return V.mean(1, keepdims=True), V.mean(0, keepdims=True)

    def project(self, moments):
        rows, columns = moments
        return rows, columns - columns.mean()

    def expand(self, coords, shape):
        return coords[0] + coords[1]


class Rising(fl.Spectrum):
    """Two columns, of which the second has the larger eigenvalue."""

    claim = fl.Claim.EXACT

    def moments(self, V):
        return V

    def project(self, V):
        return self.first(V), jnp.maximum(V[:, 1:] - V[:, :1], 0)

    def first(self, V):
        return jnp.minimum(V[:, :1], V.mean(1, keepdims=True))

    def expand(self, coords, shape):
        first, rise = coords
        return jnp.concatenate([first, first + rise], 1)


class RiseClipped(Rising):
    """Solves without the bound and clips the result, which is not the nearest member."""

    def first(self, V):
        return V[:, :1]


def test_redundant_coordinates_and_bounds_are_reported():
    derived = fl.derive(Sums(), 2, 3)
    assert "redundant" in derived.found.kind
    assert "negative" in derived.found.kind


def test_a_stationary_fit_that_can_be_negative_is_refused():
    derived = fl.derive(Sums(), 2, 2)
    assert not derived.ok
    assert derived.fit == (
        "refused: the fit solves the equations, but its eigenvalue 3*V_11/4 + V_12/4 + V_21/4 - V_22/4 is negative where V_22 "
        "is much larger than the others; no Fisher has a negative eigenvalue, so the smallest allowed gap is at a bound there"
    )


@pytest.mark.slow
def test_a_fit_at_a_bound_is_measured():
    derived = fl.derive(Rising(), 1, 2)
    assert derived.ok
    assert "measured, not proved, because it stops at a bound in places: at one Fisher the gradient is" in derived.fit
    derived = fl.derive(RiseClipped(), 1, 2)
    assert not derived.ok
    assert "refused: it stops at a bound in places, and at one Fisher the gradient is" in derived.fit


class Sweeps(Powers):
    """Four alternating steps for a_i b_j in a Python loop: the expressions become too long to write out."""

    def moments(self, V):
        return V

    def project(self, V):
        b = V[:1] / V[0, 0]
        for _ in range(4):
            a = V @ b.T / (b**2).sum()
            b = a.T @ V / (a**2).sum()
        return {"a": a, "b": b}

    def expand(self, coords, shape):
        return coords["a"] * coords["b"]


@pytest.mark.parametrize("structure", [pytest.param(Sweeps(), marks=pytest.mark.slow), fl.RowColumn(sweeps=5)], ids=str)
def test_a_fit_that_iterates_too_long_is_measured(structure):
    derived = fl.derive(structure, 2, 2)
    assert derived.ok
    assert "measured, not proved, because it iterates too long to write out" in derived.fit


@dataclass(frozen=True)
class TwoBlocks(fl.Structure):
    """Eigenvalues c_1 for the first column and c_2 for the others; `wrong` gives the fit a wrong multiplicity."""

    wrong: bool = False
    claim = fl.Claim.EXACT

    def frame(self, m, n):
        return Frame((), (m, n))

    def to_eigenbasis(self, frame, G):
        return G

    def from_eigenbasis(self, frame, X):
        return X

    def eigenvalues(self, params):
        n = params.frame.shape[1]
        return jnp.where(jnp.arange(n) == 0, params.coords[0], params.coords[1])[None]

    def stats(self, fisher, frame):
        return fisher.second_moment()

    def fit(self, stats, frame):
        first, others = stats[:, 0].mean(), stats[:, 1:].sum() / (stats[:, 1:].size + self.wrong)
        return Params(frame, jnp.stack([first, others]))

    def dense(self, params):
        m, n = params.frame.shape
        return jnp.kron(jnp.diag(jnp.where(jnp.arange(n) == 0, params.coords[0], params.coords[1])), jnp.eye(m))


def test_a_structure_with_nothing_but_dense_is_derived():
    derived = fl.derive(TwoBlocks(), 1, 3)
    F = {k: sp.Symbol(f"F_{{{k}{k}}}", positive=True) for k in (1, 2, 3)}
    assert values(derived) == [F[1], sp.factor_terms((F[2] + F[3]) / 2)]
    assert derived.ok
    wrong = fl.derive(TwoBlocks(wrong=True), 1, 3)
    assert not wrong.ok
    assert "the gap is stationary at c_2 = (F_22 + F_33)/2, but" in wrong.fit


@pytest.mark.parametrize(
    ("structure", "part"),
    [
        pytest.param(fl.RowColumn(), "measured, not proved", marks=pytest.mark.slow),
        (fl.RowColumn(sweeps=1), "proved: block a solves its equations given the others; the limit is not reached"),
        (fl.Marginals(), "proved: the fit solves the equations, for all entries at this size; that its gap is the smallest"),
        (fl.GeometricMarginals(), "upper bound"),
        (fl.Rotated(fl.Rows(), "L"), "in every basis"),
    ],
    ids=str,
)
def test_the_verdict_says_whether_the_fit_is_proved_or_measured(structure, part):
    derived = fl.derive(structure, 2, 2)
    assert derived.ok
    assert part in derived.fit


def test_latex_and_the_gap():
    derived = fl.derive(fl.Scalar(), 1, 2)
    assert derived.latex() == r"\begin{aligned} c_{11} &= \frac{V_{11} + V_{12}}{2} \end{aligned}"
    assert derived._repr_latex_().startswith("$$")
    c = derived.coordinates[0, 0]
    assert sp.expand(derived.gap - (V[1, 1] - c) ** 2 - (V[1, 2] - c) ** 2) == 0


def test_a_large_matrix_is_refused():
    with pytest.raises(ValueError, match="Take a small one"):
        fl.derive(fl.Diagonal(), 10, 10)


def test_the_command(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import fimlens as fl\n\n\nclass Wrong(fl.Rows):\n    def project(self, moments):\n        return 3 * moments\n"
    )
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke(app, ["derive", "mine:Wrong", "-m", "1", "-n", "2"])
    assert run.exit_code == 1
    assert "the gap is stationary at c_11 = (V_11 + V_12)/2, but fit gives 3*(V_11 + V_12)/2" in run.output
    run = CliRunner().invoke(app, ["derive", "adam", "-m", "1", "--latex"])
    assert run.exit_code == 0
    assert run.output.startswith(r"\begin{aligned} c_{11} &= V_{11}")
    run = CliRunner().invoke(app, ["derive", "nothing"])
    assert run.exit_code == 2
    assert "fimlens derive: there is no structure 'nothing'" in run.output
    run = CliRunner().invoke(app, ["derive", "racs", "-m", "1", "-n", "1", "--divergence", "logdet"])
    assert run.exit_code == 0
    assert "RowColumn() at 1 x 1, nearest in LogDet()" in run.output
    assert "gap: V_11/(a_11*b_11) + log(a_11) + log(b_11)" in run.output
    run = CliRunner().invoke(app, ["derive", "adam", "-m", "1", "-n", "1", "--divergence", "0.5"])
    assert run.exit_code == 0
    assert "Diagonal() at 1 x 1, nearest in Beta(0.5)" in run.output
    run = CliRunner().invoke(app, ["derive", "adam", "--divergence", "kl"])
    assert run.exit_code == 2
    assert "there is no divergence 'kl'. There are frobenius, von-neumann" in run.output
    run = CliRunner().invoke(app, ["derive", "mine:Wrong(3)"])
    assert "fimlens derive: 'Wrong(3)' is no name. Give it one in the module" in run.output


class Squared(fl.Spectrum):
    """Eigenvalues c^2. The gap is stationary also at c = 0, where it has a maximum."""

    claim = fl.Claim.EXACT
    power = 0.5

    def moments(self, V):
        return V

    def project(self, moments):
        return moments**self.power

    def expand(self, coords, shape):
        return coords**2


class AtTheMaximum(Squared):
    def project(self, moments):
        return 0 * moments


class NeverIterated(fl.RowColumn):
    """Solves for one block given ones for the other, and claims that this is the limit."""

    def project(self, moments):
        return moments.mean(1, keepdims=True), jnp.ones((1, moments.shape[1]))


class TwoDefinitions(fl.Diagonal):
    def expand(self, coords, shape):
        return 3 * coords

    def dense(self, params):
        return fl.Diagonal().dense(params)


class NoObjective(fl.Marginals):
    """A constant objective, which is stationary everywhere, and a wrong fit."""

    def project(self, moments):
        return jax.tree.map(lambda x: 9 * x, moments)

    def objective(self, params, fisher):
        return jnp.zeros([])


class Nested(Squared):
    """Coordinates in a tree of two branches with equal last keys."""

    def project(self, moments):
        return {"up": {"V": moments[:1]}, "down": {"V": moments[1:]}}

    def expand(self, coords, shape):
        return jnp.concatenate([coords["up"]["V"], coords["down"]["V"]])


def test_a_stationary_maximum_is_refused():
    assert fl.derive(Squared(), 1, 2).ok
    derived = fl.derive(AtTheMaximum(), 1, 2)
    assert not derived.ok
    assert derived.fit.startswith("refused")


def test_a_fit_that_solves_one_block_only_does_not_reach_the_limit():
    derived = fl.derive(NeverIterated(), 2, 2)
    assert not derived.ok
    assert "the limit is not reached" in derived.fit


def test_two_definitions_are_refused():
    with pytest.raises(ValueError, match="two definitions"):
        fl.derive(TwoDefinitions(), 1, 2)


def test_a_constant_objective_excuses_no_fit():
    assert not fl.derive(NoObjective(), 2, 2).ok


def test_symbols_are_named_after_their_whole_path():
    derived = fl.derive(Nested(), 2, 2)
    assert derived.ok
    assert len({str(c) for c in derived.found.solution}) == 4


@dataclass(frozen=True)
class WronglyRotated(fl.Rotated):
    def to_eigenbasis(self, frame, G):
        return super().to_eigenbasis(frame, G)

    def stats(self, fisher, member):
        frame = member.frame
        back = frame.bases._replace(left=frame.bases.left.T)
        return super().stats(fisher, fl.Params(Frame(back, frame.shape), None))


def test_a_wrong_basis_inside_blocks_is_found():
    wrong = WronglyRotated(fl.Diagonal(), "L")
    assert not fl.derive(wrong, 2, 1).ok
    assert not fl.derive(fl.Blocks(wrong, columns=2), 2, 2).ok


@pytest.mark.slow
def test_a_one_step_fit_is_not_compared_with_other_bases():
    derived = fl.derive(fl.Rotated(fl.RowColumn()), 2, 2)
    assert derived.ok
    assert "measured, not proved, because the symbols' assumptions do not decide the comparison" in derived.fit


class OfColumns(fl.Structure):
    """Base of families that are diagonal in fixed coordinates G Q."""

    def frame(self, m, n):
        return Frame((), (m, n))

    def to_eigenbasis(self, frame, G):
        return G @ self.Q

    def from_eigenbasis(self, frame, X):
        return X @ self.Q.T


@dataclass(frozen=True)
class Circulants(OfColumns):
    """Symmetric circulants on 1 x 3: eigenvalues c_1 and twice c_2, in the real Fourier basis, written with cosines."""

    off: float = 0.0  # the relative error of the fit
    claim = fl.Claim.EXACT

    @property
    def Q(self):
        k = 2 * jnp.pi / 3 * jnp.arange(3)
        return jnp.stack([jnp.full(3, 3**-0.5), (2 / 3) ** 0.5 * jnp.cos(k), (2 / 3) ** 0.5 * jnp.sin(k)], 1)

    def eigenvalues(self, params):
        return params.coords[jnp.array([[0, 1, 1]])]

    def stats(self, fisher, member):
        return fl.Statistics(None, fisher.second_moment(lambda G: G @ self.Q))

    def fit(self, stats, frame):
        (first, second, third) = stats.spectrum[0]
        return Params(frame, jnp.stack([first, (1 + self.off) * (second + third) / 2]))

    def dense(self, params):
        k = jnp.arange(3)
        angle = 2 * jnp.pi / 3 * (k - k[:, None])
        return (params.coords[0] + 2 * params.coords[1] * jnp.cos(angle)) / 3


def test_a_family_with_rounded_constants_is_equal_to_rounding_and_never_proved():
    derived = fl.derive(Circulants(), 1, 3)
    assert derived.ok
    assert derived.fit == (
        "equal to 1e-15, not proved, as its constants are rounded: the fit solves the equations, for all entries at this size"
    )
    printed = str(derived)
    assert "c_1 = (F_11 + 2*F_12 + 2*F_13 + F_22 + 2*F_23 + F_33)/3" in printed
    assert "c_2 = (F_11 - F_12 - F_13 + F_22 - F_23 + F_33)/3" in printed
    assert max(map(len, printed.split())) < 20  # no integers of sixty digits
    assert not derived.gap.has(sp.Float)


def test_a_wrong_fit_with_rounded_constants_is_refused():
    derived = fl.derive(Circulants(off=1e-6), 1, 3)
    assert not derived.ok
    assert derived.fit.startswith(
        "refused: the gap is stationary at c_2 = (F_11 - F_12 - F_13 + F_22 - F_23 + F_33)/3, but fit"
    )
    assert max(map(len, derived.fit.split())) < 20


@dataclass(frozen=True)
class Weighted(fl.Spectrum):
    """Eigenvalues w c for one c, with a weight in each column."""

    last: float
    claim = fl.Claim.EXACT

    @property
    def weights(self):
        return jnp.array([[0.1, self.last]])

    def moments(self, V):
        return (V * self.weights).sum(keepdims=True)

    def project(self, moments):
        return moments / (self.weights**2).sum()

    def expand(self, coords, shape):
        return coords * self.weights


def test_constants_that_can_be_written_down_are_proved():
    derived = fl.derive(Weighted(0.3), 1, 2)
    assert derived.fit == "proved: the fit solves the equations, for all entries at this size"
    assert values(derived) == [V[1, 1] + 3 * V[1, 2]]
    derived = fl.derive(Weighted(float(np.cos(1))), 1, 2)
    assert derived.ok
    assert derived.fit.startswith("equal to 1e-15, not proved")
    assert "c_11 = 0.3312*V_11 + 1.79*V_12" in str(derived)


@dataclass(frozen=True)
class Turned(OfColumns):
    """Two eigenvalues in the basis that an angle turns: its sine and cosine stay functions of a fraction."""

    off: float = 0.0  # the relative error of the second eigenvalue
    claim = fl.Claim.EXACT

    @property
    def Q(self):
        return jnp.array([[jnp.cos(0.1), -jnp.sin(0.1)], [jnp.sin(0.1), jnp.cos(0.1)]])

    def eigenvalues(self, params):
        return params.coords[None]

    def stats(self, fisher, member):
        return fl.Statistics(None, fisher.second_moment(lambda G: G @ self.Q)[0])

    def fit(self, stats, frame):
        return Params(frame, stats.spectrum * jnp.array([1.0, 1 + self.off]))

    def dense(self, params):
        return self.Q @ jnp.diag(params.coords) @ self.Q.T


@dataclass(frozen=True)
class Squares(fl.Spectrum):
    """Eigenvalues pi c^2: at the fit the gap is zero, so that only rounding is left of it."""

    off: float = 0.0  # the relative error of the fit
    claim = fl.Claim.EXACT

    def moments(self, V):
        return V

    def project(self, V):
        return (1 + self.off) * jnp.sqrt(V / jnp.pi)

    def expand(self, c, shape):
        return jnp.pi * c**2


@pytest.mark.parametrize("family", [Turned, Squares])
def test_functions_of_fractions_and_gaps_of_zero_are_decided_to_rounding(family):
    derived = fl.derive(family(), 1, 2)
    assert derived.ok
    assert derived.fit.startswith("equal to 1e-15, not proved")
    assert fl.derive(family(off=1e-9), 1, 2).fit.startswith("refused: the gap is stationary at")


class NegativeHalf(fl.Diagonal):
    """Half of the right eigenvalues, from negative coordinates, with a comparison that the symbols leave open.

    Coordinates are at a bound where they are zero. These are not, so no bound excuses that the gradient does not vanish.
    """

    claim = fl.Claim.ONE_STEP

    def project(self, V):
        return -jnp.where(V.mean() < V, V, (V**2 + V) / (V + 1)) / 2

    def expand(self, c, shape):
        return -c


def test_a_negative_coordinate_is_not_at_a_bound():
    derived = fl.derive(NegativeHalf(), 1, 2)
    assert not derived.ok
    assert "refused: the symbols' assumptions do not decide the comparison" in derived.fit


class Centred(fl.Diagonal):
    """Eigenvalues that are stationary for an objective of the structure, but negative below the mean."""

    claim = fl.Claim.BOUND

    def project(self, V):
        return V - V.mean()

    def objective(self, params, fisher):
        V = fisher.second_moment()
        return jnp.sum((params.coords - V + V.mean()) ** 2)


def test_an_own_objective_excuses_no_negative_eigenvalue():
    derived = fl.derive(Centred(), 1, 2)
    assert not derived.ok
    assert "own objective is stationary at the fit, but its eigenvalue" in derived.fit

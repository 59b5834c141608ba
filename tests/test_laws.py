"""Every law, of every structure; and for every law a slip, made on purpose, that it catches."""

from dataclasses import dataclass, fields

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_derivations import with_slip

import fimlens as fl
from fimlens.fisher.sample_form import SampleFisher
from fimlens.lens import laws
from fimlens.lens.case import TOLERANCE, draw_case
from fimlens.lens.laws import LAWS
from fimlens.linalg.decompositions import eigenbasis
from fimlens.structures import EXAMPLES
from fimlens.transforms import low_rank_update

# By every run: one of each kind; all of them, at every shape, by `make slow`. Spectra that differ from another in one line, as
# columns do from rows, are of its kind.
REPEATED = (fl.Columns, fl.Scalar, fl.GeometricMarginals)
QUICK = list({type(x): x for x in reversed(EXAMPLES) if not isinstance(x, REPEATED)}.values())
SLOWEST = {fl.Dense: (2, 3), fl.Kronecker: (3, 2)}
SHAPES = [
    SLOWEST.get(type(structure), (3, 4) if "Blocks" in str(structure) else ((3, 4), (4, 3), (4, 4))[i % 3])
    for i, structure in enumerate(QUICK)
]


@pytest.mark.parametrize(("structure", "shape"), list(zip(QUICK, SHAPES, strict=True)), ids=str)
def test_every_law_holds(structure, shape):
    assert fl.check(structure, shapes=[shape]).ok


@pytest.mark.slow
@pytest.mark.parametrize("structure", EXAMPLES, ids=str)
def test_every_law_holds_at_every_shape(structure):
    assert fl.check(structure).ok


AXIS = [
    fl.RowColumn(divergence=fl.LogDet()),
    fl.RowColumn(divergence=fl.Beta(1.5)),
    fl.Kronecker(fl.LogDet()),
    fl.Kronecker(fl.VonNeumann()),
    fl.DiagonalKronecker(fl.VonNeumann()),
    fl.DiagonalKronecker(fl.Beta(0.5)),
    fl.Rotated(fl.RowColumn(divergence=fl.LogDet())),
    fl.LowRank(fl.RowColumn(divergence=fl.LogDet()), 2),
    fl.Blocks(fl.RowColumn(divergence=fl.Beta(0.5)), columns=2),
]


@pytest.mark.slow
@pytest.mark.parametrize("structure", AXIS, ids=str)
def test_every_law_holds_in_the_divergence_of_the_structure(structure):
    assert fl.check(structure, shapes=[(3, 4)]).ok


def test_a_product_keeps_the_laws_in_logdet():
    laws = ("objective", "homogeneity", "symmetry", "cone", "gaps")
    assert fl.check(fl.RowColumn(divergence=fl.LogDet()), shapes=[(4, 3)], laws=laws).ok


THIN = [fl.LowRank(fl.Diagonal(), 1), fl.RowColumn(), fl.Rotated(fl.Diagonal())]


@pytest.mark.slow
@pytest.mark.parametrize("structure", THIN, ids=str)
def test_laws_hold_of_vectors_and_numbers(structure):
    assert fl.check(
        structure, shapes=[(1, 4), (4, 1), (1, 1)], laws=("isometry", "application", "streaming", "split", "gaps")
    ).ok


# --- slips ------------------------------------------------------------------------------------------------


class SumForMean(fl.Rows):
    """Sums a row where its mean is meant."""

    def moments(self, V):
        return V.sum(1, keepdims=True)


class ChartOffTheCone(fl.Diagonal):
    """Moves eigenvalues themselves, not their roots, so that they turn negative."""

    def chart(self, z, params):
        return fl.Params(params.frame, params.coords + 9 * z.coords)


class ChartOffCentre(fl.Diagonal):
    """Names every member from the identity, whichever it is asked to start from."""

    def chart(self, z, params):
        return fl.Params(params.frame, (1 + z.coords) ** 2)


class TransposedOut(fl.Rotated):
    """Rotates into the basis a second time, where it should rotate back."""

    def from_eigenbasis(self, frame, X):
        return frame.bases.left.T @ X @ frame.bases.right.T


class RowsStacked(fl.Diagonal):
    """Writes F~ as if Vec stacked rows."""

    def dense(self, params):
        return jnp.diag(params.coords.reshape(-1))


class BasisTransposed(fl.Rotated):
    """Writes B^T D B for B D B^T."""

    def dense(self, params):
        left, right, inner = params.frame.bases
        B = jnp.kron(right, left)
        return B.T @ self.inner.dense(fl.Params(inner, params.coords)) @ B


class SinglePrecisionBasis(fl.Rotated):
    """Converges to a basis in float32, whatever the gradients are."""

    def converged_basis(self, fisher, key):
        return jax.tree.map(lambda U: U.astype(jnp.float32), super().converged_basis(fisher, key))


class ChartInFull(fl.Rows):
    """Charts all m n eigenvalues of a family whose fit has m."""

    def chart(self, z, params):
        coords = super().chart(z, params).coords
        return fl.Params(params.frame, jnp.broadcast_to(coords, params.frame.shape))


class SumOfMeans(fl.Spectrum):
    """Fits r_i + c_j as if nothing had a bound, and leaves the cone where both are weak."""

    claim = fl.Claim.EXACT

    def moments(self, V):
        return fl.Marginals().moments(V)

    def project(self, moments):
        return jax.tree.map(lambda mean: mean - mean.mean() / 2, moments)

    def expand(self, coords, shape):
        return coords[0] + coords[1]


class FourthRoot(fl.Diagonal):
    """Divides by the fourth root of an eigenvalue, but only where optimizers do."""

    def precondition(self, params, X, eps):
        return X / (params.coords**0.25 + eps)


class EpsilonInTheFit(fl.Diagonal):
    """Keeps eigenvalues off zero by a number that knows no scale."""

    def project(self, moments):
        return moments + 1e-4


class OneStepCalledExact(fl.Rotated):
    """Calls an eigenbasis the best basis for free eigenvalues."""

    claim = fl.Claim.EXACT


@dataclass(frozen=True)
class AdafactorCalledExact(fl.Marginals):
    """Calls the best product in Kullback-Leibler divergence the nearest one in the Frobenius norm."""

    divergence: fl.Divergence = fl.Frobenius()

    def side_weights(self, fisher, member):
        return None  # as under von Neumann


class ShrunkMarginals(fl.Marginals):
    """Shrinks what would minimise the divergence it states."""

    def project(self, moments):
        return jax.tree.map(lambda mean: 0.9 * mean, moments)


class RowsCalledInvariant(fl.Rows):
    """States an invariance under left rotations, which move the rows."""

    symmetry = ("orthogonal", "orthogonal")


class AlwaysSinglePrecision(fl.Diagonal):
    """Forgets the dtype that the gradients came in."""

    def apply(self, params, G, f=lambda x: x):
        return super().apply(params, G.astype(jnp.float32), f)


class HalvedUnderJit(fl.Diagonal):
    """Rounds to float16, but only where it is traced."""

    def to_eigenbasis(self, frame, G):
        return G.astype(jnp.float16).astype(G.dtype) if isinstance(G, jax.core.Tracer) else G


class AverageOfRoots(fl.Diagonal):
    """Averages |G|, not G^2: right for one gradient, not linear in F."""

    def moments(self, V):
        return jnp.sqrt(V)

    def project(self, moments):
        return moments**2


class VarianceOfSamples(fl.Diagonal):
    """Subtracts the mean gradient where it sees samples."""

    def stats(self, fisher, member):
        stats = super().stats(fisher, member)
        return fl.Statistics(None, fisher.samples.var(0)) if isinstance(fisher, SampleFisher) else stats


class Restless(fl.Rotated):
    """Finds each basis in the coordinates of the last, and does not compose the two."""

    def update_basis(self, stats, frame, fisher, step):
        (U, V, inner), averages = frame.bases, stats.basis
        moved = eigenbasis(U.T @ averages.left @ U), eigenbasis(V.T @ averages.right @ V)
        return fl.Frame(type(frame.bases)(*moved, inner), frame.shape), stats


class TailCountedOnce(fl.LowRank):
    """Forgets that one eigenvalue of the complement stands for m - r directions."""

    def eigenvalue_blocks(self, params, fisher):
        return [block._replace(multiplicity=1.0) for block in super().eigenvalue_blocks(params, fisher)]


class RowsInTheirFirstColumn(fl.Rows):
    """Lays all that a row's gradients hold on its first entry: the gap stays, and the basis misses less than nothing."""

    def eigenvalue_blocks(self, params, fisher):
        [block] = super().eigenvalue_blocks(params, fisher)
        return [block._replace(moment=jnp.zeros_like(block.moment).at[:, 0].set(block.moment.sum(1)))]


class FactorsSwapped(fl.Kronecker):
    """Writes B (x) A for A (x) B."""

    def dense(self, params):
        left, _, right, _ = params.frame.bases
        b, a = params.coords
        return jnp.kron((left * b[:, 0]) @ left.T, (right * a[0]) @ right.T)


class RigidBases(fl.Rotated):
    """A chart of the eigenvalues alone, so that no slope sees a wrong basis."""

    def retract(self, frame, z):
        return frame


class ObjectiveOfNothing(fl.Rotated):
    """Any fit is the minimum of a constant."""

    def objective(self, params, fisher):
        return jnp.zeros([])


class DivergenceOfNothing(fl.Marginals):
    """The same, where the claim is about a divergence."""

    def objective(self, params, fisher):
        return jnp.zeros([])


class Forgetful(fl.Rotated):
    """Zeroes what was averaged when the gradients turn."""

    def transport(self, stats, move):
        return jax.tree.map(jnp.zeros_like, stats)


class TurnedLikeGradients(fl.Diagonal):
    """Turns second moments by the rotation, not by its squares, and makes some negative."""

    def transport(self, stats, move):
        left, right = (1.0 if T is None else T for T in move[:2])
        return fl.Statistics(None, jnp.dot(jnp.dot(left, stats.spectrum), jnp.transpose(right)))


class NotTransported(fl.Kronecker):
    """Leaves covariances where they were when the gradients turn."""

    def transport(self, stats, move):
        return stats


class ResetAtEachRefresh(fl.Rotated):
    """Starts its averages anew whenever the basis is updated."""

    def update_basis(self, stats, frame, fisher, step):
        return super().update_basis(stats, frame, fisher, step)[0], jax.tree.map(jnp.zeros_like, stats)


class StatisticsStay(fl.Rotated):
    """Moves its basis, and leaves second moments in the order of the old vectors."""

    def update_basis(self, stats, frame, fisher, step):
        return super().update_basis(stats, frame, fisher, step)[0], stats


class SpectrumStays(fl.Rotated):
    """Moves its basis and the covariances, and leaves second moments behind."""

    def update_basis(self, stats, frame, fisher, step):
        moved, carried = super().update_basis(stats, frame, fisher, step)
        return moved, carried._replace(spectrum=stats.spectrum)


class Motionless(fl.Rotated):
    """Never moves its basis in training."""

    def update_basis(self, stats, frame, fisher, step):
        return frame, stats


class CarriedLikeGradients(fl.Rotated):
    """Carries second moments by the rotation, not by its squares."""

    def update_basis(self, stats, frame, fisher, step):
        moved, carried = super().update_basis(stats, frame, fisher, step)
        return moved, carried._replace(spectrum=moved.bases.left.T @ frame.bases.left @ stats.spectrum)


class DeafTracker(fl.Eigen):
    """Follows the average alone, and never the current gradient."""

    def update(self, average, kept, side, step):
        return eigenbasis(average, kept.shape[1])


class AverageLeftBehind(fl.SubspaceIteration):
    """Leaves its average in the coordinates of the old basis."""

    def transport(self, T, average):
        return average


class SkewedTracker(fl.Eigen):
    """Finds directions that are not orthonormal."""

    def update(self, average, kept, side, step):
        return average[:, : kept.shape[1]]


class RefreshedInSinglePrecision(fl.Rotated):
    """Updates its basis in float32, whatever the gradients are."""

    def update_basis(self, stats, frame, fisher, step):
        moved, stats = super().update_basis(stats, frame, fisher, step)
        return jax.tree.map(lambda U: U.astype(jnp.float32), moved), stats


MUTANTS = [
    ("chart", RigidBases(fl.Diagonal(), "L")),
    ("objective", ObjectiveOfNothing(fl.Diagonal(), "L")),
    ("objective", DivergenceOfNothing()),
    ("transport", Forgetful(fl.Diagonal(), "L")),
    ("transport", TurnedLikeGradients()),
    ("transport", NotTransported()),
    ("rest", ResetAtEachRefresh(fl.Diagonal(), "L")),
    ("rest", StatisticsStay(fl.Diagonal(), "L")),
    ("rest", SpectrumStays(fl.Marginals(), "LR")),
    ("tracking", Motionless(fl.Diagonal(), "L")),
    ("tracking", CarriedLikeGradients(fl.Diagonal(), "L")),
    ("tracking", fl.LowRank(fl.Diagonal(), 2, tracker=DeafTracker())),
    ("trackers", fl.LowRank(fl.Diagonal(), 2, tracker=AverageLeftBehind(2, switch="none"))),
    ("trackers", fl.Rotated(fl.Diagonal(), "L", SkewedTracker())),
    ("layout", RefreshedInSinglePrecision(fl.Diagonal(), "L")),
    ("chart", SumForMean()),
    ("chart", ChartOffTheCone()),
    ("chart", ChartOffCentre()),
    ("cone", SumOfMeans()),
    ("isometry", TransposedOut(fl.Diagonal())),
    ("application", RowsStacked()),
    ("application", BasisTransposed(fl.Diagonal())),
    ("update", FourthRoot()),
    ("layout", SinglePrecisionBasis(fl.Diagonal())),
    ("layout", ChartInFull()),
    ("homogeneity", EpsilonInTheFit()),
    ("claim", OneStepCalledExact(fl.Diagonal())),
    ("claim", AdafactorCalledExact()),
    ("claim", ShrunkMarginals()),
    ("symmetry", RowsCalledInvariant()),
    ("compilation", AlwaysSinglePrecision()),
    ("compilation", HalvedUnderJit()),
    ("streaming", AverageOfRoots()),
    ("forms", VarianceOfSamples()),
    ("rest", Restless(fl.Diagonal())),
    ("split", TailCountedOnce(fl.Diagonal(), 1)),
    ("split", RowsInTheirFirstColumn()),
    ("gaps", TailCountedOnce(fl.Diagonal(), 1)),
    ("gaps", FactorsSwapped()),
]


@pytest.mark.parametrize(("law", "mutant"), MUTANTS, ids=str)
def test_the_law_catches_the_slip(law, mutant):
    with pytest.raises(fl.LawBroken, match=f"{law} at 3 x 4") as caught:
        fl.check(mutant, shapes=[(3, 4)], laws=(law,))
    assert [(finding.law, finding.ok) for finding in caught.value.report.findings] == [(law, False)]


def test_every_law_has_a_slip_that_it_catches():
    assert {law for law, _ in MUTANTS} == set(LAWS)


# --- every method of the protocol, corrupted in turn ---------------------------------------------------------


CORRUPTED = [
    fl.Diagonal(),
    fl.Rotated(fl.Diagonal(), "L"),
    fl.Rotated(fl.Marginals(), "L"),
    fl.Kronecker(),
    fl.LowRank(fl.Diagonal(), 2),
    fl.Blocks(fl.Rotated(fl.Rows(), "L"), columns=2),
]

# Cheap laws first. The laws of whole programs, `claim`, `compilation` and `streaming`, are not needed.
SEEING = (
    "isometry",
    "application",
    "update",
    "gaps",
    "cone",
    "objective",
    "transport",
    "rest",
    "symmetry",
    "tracking",
    "chart",
)

ARGUMENT = {"to_eigenbasis": 1, "from_eigenbasis": 1, "transport": 0, "retract": 0, "chart": 1, "apply": 1, "precondition": 1}

METHODS = (
    *("frame", "to_eigenbasis", "from_eigenbasis", "eigenvalues", "stats", "fit", "update_basis", "transport"),
    *("converged_basis", "dense", "retract", "chart", "apply", "precondition", "eigenvalue_blocks", "objective"),
)


def corruptions(method):
    """What a method may wrongly return, as functions of its arguments and of its result."""
    ways = {"zero": lambda given, right: scaled(right, 0), "doubled": lambda given, right: scaled(right, 2)}
    if method == "objective":  # twice an objective has the same minimum
        del ways["doubled"]
    if method in ARGUMENT:
        ways["its argument"] = lambda given, right: given[ARGUMENT[method]]
    if method == "update_basis":
        ways = {
            "the old basis": lambda given, right: (given[1], given[0]),
            "no averages": lambda given, right: (right[0], scaled(right[1], 0)),
            "doubled averages": lambda given, right: (right[0], scaled(right[1], 2)),
        }
    return ways


def scaled(tree, factor):
    return jax.tree.map(lambda x: factor * x if jnp.issubdtype(jnp.result_type(x), jnp.floating) else x, tree)


def corrupted(structure, method, way):
    def wrong(self, *given):
        return way(given, getattr(super(cls, self), method)(*given))

    cls = type(f"{type(structure).__name__}WithWrong{method.title()}", (type(structure),), {method: wrong})
    return cls(**{field.name: getattr(structure, field.name) for field in fields(structure)})


def is_seen(structure):
    try:
        case = draw_case(structure, (3, 4), 0, False)
        return any(not float(LAWS[law](case)) <= TOLERANCE for law in SEEING)
    except (AttributeError, TypeError, ValueError):  # a gradient where parts are expected, say
        return True


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("structure", CORRUPTED, ids=str)
def test_a_law_sees_every_corrupted_method(structure, method):
    basis = jax.tree.leaves(structure.frame(3, 4))
    if not basis and method in ("frame", "to_eigenbasis", "from_eigenbasis", "update_basis", "converged_basis", "retract"):
        pytest.skip("a spectrum has no basis to corrupt")
    unseen = []
    # Eagerly: hundreds of structures share their operations, and no program.
    with jax.enable_x64(True), jax.disable_jit():
        for name, way in corruptions(method).items():
            unseen += [] if is_seen(corrupted(structure, method, way)) else [name]
    assert not unseen


def test_a_negative_eigenvalue_is_no_member():
    """Nowhere: the laws say so, the solver does not count it, and the lens gives the reason."""
    fisher = fl.Fisher.from_gradients(jnp.zeros((2, 3, 4)).at[0, 0, 0].set(3.0).at[1, 1, 1].set(0.1))
    family = SumOfMeans()
    with pytest.raises(fl.LawBroken, match=r"cone at 3 x 4: off by 0\.\d+\. The law: Eigenvalues are non-negative"):
        fl.check(family, shapes=[(3, 4)], laws=["cone"])
    solution = fl.solve(family, fisher, starts=1)
    assert solution.certificate.closed_form == float("inf")
    assert solution.certificate.beaten
    assert solution.value > fl.gap(family, fl.fit(family, fisher), fisher).total
    assert np.asarray(family.eigenvalues(solution.params)).min() > -1e-9
    row = fl.compare([family], fisher).rows[0]
    assert not row.claim_holds
    assert row.doubts[0].startswith("its fit is no member: an eigenvalue is -0.17 of the largest")


@pytest.mark.parametrize(
    ("structure", "code", "slip"),
    [
        (fl.LowRank(fl.Rows(), 1), "U @ (D - b * X) + b * G", "U @ D + b * G"),
        (fl.LowRank(fl.Rows(), 1, sides="LR"), "(a + b - c) * X", "(a + b) * X"),
    ],
    ids=str,
)
def test_a_slip_in_the_shared_low_rank_update_breaks_a_law(structure, code, slip, monkeypatch):
    """In the very line that trains, and that derivations trace; test_derivations breaks the proofs by the same slips."""
    assert fl.check(structure, shapes=[(3, 4)], laws=["update"]).ok
    monkeypatch.setattr(low_rank_update, "low_rank_update", with_slip(low_rank_update, "low_rank_update", code, slip))
    monkeypatch.setitem(LAWS, "update", jax.jit(lambda case: laws.update.__wrapped__(case)))  # traced anew, with the slip
    with pytest.raises(fl.LawBroken, match="update at 3 x 4"):
        fl.check(structure, shapes=[(3, 4)], laws=["update"])

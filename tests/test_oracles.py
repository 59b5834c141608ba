"""Closed forms against independent oracles: projections, singular values, SciPy, other starts, the papers' formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import fimlens as fl

TOLERANCE = 1e-8  # relative to ||F||^2
SIZES = [((3, 5), 1), ((4, 4), 2), ((5, 3), 7), ((4, 5), 50), ((6, 6), 80)]
SEEDS = range(4)  # of each size: 20 ensembles, of which 12 are rank-deficient


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def ensemble(shape, N, seed):
    """N correlated gradients; their Fisher is rank-deficient if N < mn."""
    rng, (m, n) = np.random.default_rng((seed, N, *shape)), shape
    return rng.normal(size=(m, m)) @ rng.normal(size=(N, m, n)) @ rng.normal(size=(n, n))


def outer(G):
    """NumPy witness of F = E[g g^T], columns stacked."""
    g = G.transpose(0, 2, 1).reshape(len(G), -1)
    return g.T @ g / len(G)


def positive(size, seed):
    root = np.random.default_rng((seed, size)).normal(size=(size, size))
    return root @ root.T / size + 0.1 * np.eye(size)


dense = jax.jit(lambda structure, params: structure.dense(params), static_argnums=0)


def closed_gap(structure, G):
    """The gap of the closed form, which is checked on the dense member."""
    fisher = fl.Fisher.from_gradients(G)
    params = fl.fit(structure, fisher)
    total = float(fl.gap(structure, params, fisher).total)
    F = outer(G)
    assert abs(np.sum((np.asarray(dense(structure, params)) - F) ** 2) - total) < TOLERANCE * np.sum(F**2)
    return total


# --- linear subspaces -------------------------------------------------------------------------------------


def symmetric(k):
    E = np.eye(k * k).reshape(k, k, k, k)
    return (E + E.swapaxes(0, 1))[np.triu_indices(k)]


def diagonals(k):
    return np.eye(k * k).reshape(-1, k, k)[:: k + 1]


def krons(left, right):
    return np.stack([np.kron(A, B) for A in left for B in right])


def one(k):
    return np.eye(k)[None]


SUBSPACES = {
    "diagonal": (lambda n: fl.Diagonal(), lambda m, n: diagonals(m * n)),
    "rows": (lambda n: fl.Rows(), lambda m, n: krons(one(n), diagonals(m))),
    "columns": (lambda n: fl.Columns(), lambda m, n: krons(diagonals(n), one(m))),
    "scalar": (lambda n: fl.Scalar(), lambda m, n: one(m * n)),
    "I (x) M": (lambda n: fl.Rotated(fl.Rows(), "L"), lambda m, n: krons(one(n), symmetric(m))),
    "R (x) I": (lambda n: fl.Rotated(fl.Columns(), "R"), lambda m, n: krons(symmetric(n), one(m))),
    "dense": (lambda n: fl.Dense(), lambda m, n: symmetric(m * n)),
    "block diagonal": (lambda n: fl.Blocks(fl.Dense(), columns=n), lambda m, n: krons(diagonals(n), symmetric(m))),
}


LARGE = ("dense", "block diagonal", "R (x) I")  # run by make slow


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in SUBSPACES])
def test_linear_families_are_projections_on_their_subspace(name):
    """NumPy witness: least squares of F on an explicit basis of the subspace."""
    make, basis = SUBSPACES[name]
    for (m, n), N in SIZES:
        ensembles = [ensemble((m, n), N, seed) for seed in SEEDS]
        targets = np.stack([outer(G).reshape(-1) for G in ensembles], axis=1)
        T = basis(m, n).reshape(-1, (m * n) ** 2).T
        residuals = targets - T @ np.linalg.lstsq(T, targets)[0]
        for G, f, residual in zip(ensembles, targets.T, residuals.T, strict=True):
            assert abs(closed_gap(make(n), G) - residual @ residual) < TOLERANCE * (f @ f)


# --- singular pairs ---------------------------------------------------------------------------------------


def second_moments(F, m, n):
    return np.diagonal(F).reshape(n, m)


def rearranged(F, m, n):
    """Van Loan and Pitsianis: A (x) B becomes the rank-one matrix vec(A) vec(B)^T."""
    return F.reshape(n, m, n, m).swapaxes(1, 2).reshape(n * n, m * m)


def rearranged_blocks(F, m, n):
    """The rows of the rearranged F that belong to the diagonal of A: the diagonal blocks of F."""
    return rearranged(F, m, n)[:: n + 1]


PRODUCTS = {
    "RowColumn": (fl.RowColumn(), second_moments),
    "Kronecker": (fl.Kronecker(), rearranged),
    "DiagonalKronecker": (fl.DiagonalKronecker(), rearranged_blocks),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n.startswith("D") else n for n in PRODUCTS])
def test_products_are_leading_singular_pairs(name):
    """NumPy witness: the gap is the sum of all squared singular values of the rearranged F but the leading one."""
    structure, rearrange = PRODUCTS[name]
    for shape, N in SIZES:
        for seed in SEEDS:
            G = ensemble(shape, N, seed)
            F = outer(G)
            leading = np.linalg.svd(rearrange(F, *shape), compute_uv=False)[0]
            assert abs(closed_gap(structure, G) - (np.sum(F**2) - leading**2)) < TOLERANCE * np.sum(F**2)


@pytest.mark.parametrize("shape", [(2, 4), (3, 3)])
def test_diagonal_kronecker_against_scipy(shape):
    """SciPy witness: BFGS over S = Diag(x^2) and M = R R^T, from ten starts."""
    m, n = shape
    for N in (2, 20):
        G = ensemble(shape, N, 0)
        F = outer(G)
        size = np.sum(F**2)

        def relative_gap(z, F=F, size=size):
            """The gap and its gradient."""
            x, R = z[:n], z[n:].reshape(m, m)
            error = np.kron(np.diag(x**2), R @ R.T) - F / np.sqrt(size)
            D = np.einsum("jijk->jik", error.reshape(n, m, n, m))
            slopes = 4 * x * np.einsum("jik,ik->j", D, R @ R.T), 4 * np.tensordot(x**2, D, 1) @ R
            return np.sum(error**2), np.concatenate([np.ravel(slope) for slope in slopes])

        starts = np.random.default_rng(N).normal(size=(10, n + m * m))
        options = {"jac": True, "method": "BFGS", "options": {"gtol": 1e-9}}
        best = min(scipy.optimize.minimize(relative_gap, z, **options).fun for z in starts)
        assert abs(closed_gap(fl.DiagonalKronecker(), G) / size - best) < TOLERANCE


# --- products in every divergence --------------------------------------------------------------------------

DEGREES = (0.0, 0.5, 1.0, 1.5, 2.0)
ONE_OF_EACH = {  # the structure, whether its left and its right factor are full, and how many gradients LogDet needs over
    "RowColumn": (lambda d: fl.RowColumn(divergence=d), (False, False), lambda m, n: 0),
    "DiagonalKronecker": (fl.DiagonalKronecker, (True, False), lambda m, n: m / n),
    "Kronecker": (fl.Kronecker, (True, True), lambda m, n: m / n + n / m),
}
objective = jax.jit(lambda structure, params, fisher: structure.objective(params, fisher), static_argnums=0)


def exponential(p, S):
    """exp(pS), and C -> d tr(C exp(pS)) / dS (Daleckii and Krein)."""
    v, U = np.linalg.eigh(S)
    v = np.minimum(v, 50)  # line searches try steps that overflow
    apart = v[:, None] - v
    near = np.abs(apart) < 1e-7
    mean = p * np.exp(p * (v[:, None] + v) / 2)
    quotients = np.where(near, mean, np.subtract.outer(np.exp(p * v), np.exp(p * v)) / np.where(near, 1, apart))
    return (U * np.exp(p * v)) @ U.T, lambda C: U @ (quotients * (U.T @ C @ U)) @ U.T


def on_ranges(F, shape, full):
    """F on the ranges of the covariances of full sides, outside which the best factors are zero, and its shape there."""
    E = F.reshape(shape[::-1] * 2)
    bases = []
    for covariance, whole in zip((np.einsum("jijk->ik", E), np.einsum("jili->jl", E)), full, strict=True):
        values, U = np.linalg.eigh(covariance)
        bases.append(U[:, values > 1e-12 * values[-1]] if whole else np.eye(len(U)))
    K = np.kron(bases[1], bases[0])
    return K.T @ F @ K, tuple(U.shape[1] for U in bases)


def least_excess(F, shape, b, full):
    """SciPy witness of the least D - tr phi(F) over products exp(S) (x) exp(T), S and T symmetric or diagonal: BFGS from three
    starts, with derivatives of its own. The excess is tr F~^b / b - tr F F~^(b-1) / (b-1), or its limit at b = 0 and 1."""
    F, shape = on_ranges(F, shape, full)
    m, n = shape
    E, sizes = F.reshape(n, m, n, m), (m, n)
    places = [np.triu_indices(k) if whole else (np.arange(k), np.arange(k)) for k, whole in zip(sizes, full, strict=True)]
    half = len(places[0][0])

    def symmetric(z, place, k):
        S = np.zeros((k, k))
        S[place] = z / 2
        return S + S.T

    def excess(z):
        T, S = (symmetric(x, place, k) for x, place, k in zip((z[:half], z[half:]), places, sizes, strict=True))
        (B, slope_B), (A, slope_A) = exponential(b - 1, T), exponential(b - 1, S)
        left, right = np.einsum("jilk,jl->ik", E, A), np.einsum("jilk,ik->jl", E, B)
        if b == 1:
            (expT, _), (expS, _) = exponential(1, T), exponential(1, S)
            value = np.trace(expT) * np.trace(expS) - np.sum(left * T) - np.sum(right * S)
            slopes = np.trace(expS) * expT - left, np.trace(expT) * expS - right
        elif b == 0:
            value = n * np.trace(T) + m * np.trace(S) + np.sum(left * B) - m * n
            slopes = n * np.eye(m) + slope_B(left), m * np.eye(n) + slope_A(right)
        else:
            (powT, _), (powS, _) = exponential(b, T), exponential(b, S)
            value = np.trace(powT) * np.trace(powS) / b - np.sum(left * B) / (b - 1)
            slopes = np.trace(powS) * powT - slope_B(left) / (b - 1), np.trace(powT) * powS - slope_A(right) / (b - 1)
        return value, np.concatenate([slope[place] for slope, place in zip(slopes, places, strict=True)])

    starts = [np.zeros(half + len(places[1][0])), *np.random.default_rng(0).normal(size=(2, half + len(places[1][0]))) / 2]
    return min(scipy.optimize.minimize(excess, z, jac=True, method="BFGS", options={"gtol": 1e-9}).fun for z in starts)


def scaled_ensemble(shape, N, seed):
    """An ensemble whose F has the mean eigenvalue 1."""
    G = ensemble(shape, N, seed)
    return G / np.sqrt(np.mean(G**2))


def is_least(name, b, shape, N, seed):
    make, full, enough = ONE_OF_EACH[name]
    structure, G = make(fl.Beta(b)), scaled_ensemble(shape, N, seed)
    fisher, F = fl.Fisher.from_gradients(G), outer(G)
    if b == 0 and enough(*shape) >= N:
        with pytest.raises(ValueError, match="has no minimum over"):
            fl.fit(structure, fisher)
        return
    member = fl.fit(structure, fisher)
    if b > 0:
        found = float(fl.gap(structure, member, fisher, divergence=fl.Beta(b)).total - fl.Beta(b).trace(fisher))
    else:  # the gap is infinite
        found = float(objective(structure, member, fisher))
    least = least_excess(F if full[0] else np.diag(np.diag(F)), shape, b, full)
    above = (found - least) / len(F)
    assert -100 * TOLERANCE < above < TOLERANCE, (shape, N, seed, above)  # BFGS stops early where the best factors are singular


@pytest.mark.parametrize(
    ("name", "b", "shape", "N"), [("RowColumn", 0.0, (3, 5), 1), ("RowColumn", 0.5, (4, 4), 2), ("Kronecker", 0.0, (3, 2), 3)]
)
def test_a_product_is_least_in_its_divergence(name, b, shape, N):
    for seed in SEEDS:
        is_least(name, b, shape, N, seed)


@pytest.mark.slow
@pytest.mark.parametrize("b", DEGREES)
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_products_are_least_in_every_divergence(name, b):
    for shape, N in SIZES:
        for seed in SEEDS:
            is_least(name, b, shape, N, seed)


@pytest.mark.slow
@pytest.mark.parametrize("b", DEGREES)
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_solver_cannot_beat_a_product_in_its_divergence(name, b):
    structure = ONE_OF_EACH[name][0](fl.Beta(b))
    for seed in range(2):
        fisher = fl.Fisher.from_gradients(ensemble((2, 3), 4, seed))
        certificate = fl.solve(structure, fisher, divergence=fl.Beta(b), starts=3).certificate
        assert abs(certificate.excess) < TOLERANCE


@pytest.mark.parametrize("b", [pytest.param(b, marks=[] if b == 1 else pytest.mark.slow) for b in DEGREES])
def test_the_nearest_product_of_eigenvalues_in_the_covariances_basis_bounds_the_nearest_product(b):
    """From above, and under von Neumann they are equal."""
    d = fl.Beta(b)
    for seed in range(2):
        fisher = fl.Fisher.from_gradients(scaled_ensemble((3, 4), 30, seed))
        rotated, product = fl.Rotated(fl.RowColumn(divergence=d), "LR"), fl.Kronecker(d)
        members = fl.fit(rotated, fisher), fl.fit(product, fisher)
        above = float(objective(rotated, members[0], fisher) - objective(product, members[1], fisher))
        if b == 1:
            np.testing.assert_allclose(dense(rotated, members[0]), dense(product, members[1]), rtol=0, atol=1e-10)
        else:
            assert above > 1e-6


def definition(divergence, F, other):
    """NumPy witness of tr[ phi(F) - phi(F~) - phi'(F~) (F - F~) ]."""
    values, U = np.linalg.eigh(other)
    phi = lambda x: np.sum(np.asarray(divergence.phi(jnp.asarray(x))))  # noqa: E731
    slope = (U * np.asarray(divergence.slope(jnp.asarray(values)))) @ U.T
    return phi(np.linalg.eigvalsh(F)) - phi(values) - np.sum(slope * (F - other))


MEASURED = [
    fl.Rotated(fl.RowColumn(), "LR"),
    fl.LowRank(fl.Diagonal(), 2),
    fl.Kronecker(),
    fl.DiagonalKronecker(),
    fl.RowColumn(),
]


@pytest.mark.parametrize(
    "structure", [pytest.param(s, marks=pytest.mark.slow if i else []) for i, s in enumerate(MEASURED)], ids=str
)
def test_the_gap_is_the_definition_from_samples_and_dense(structure):
    G = scaled_ensemble((3, 4), 40, 0)
    F = outer(G)
    for forget in (0, 1):  # a fit, and the fit of another Fisher
        member = fl.fit(structure, fl.Fisher.from_gradients(scaled_ensemble((3, 4), 40, forget)))
        approximation = np.asarray(dense(structure, member))
        for divergence in (fl.Frobenius(), fl.VonNeumann(), fl.LogDet(), *map(fl.Beta, (0.5, 1.5))):
            for fisher in (fl.Fisher.from_gradients(G), fl.Fisher.from_dense(F, (3, 4))):
                gap = fl.gap(structure, member, fisher, divergence=divergence)
                expected = definition(divergence, F, approximation)
                assert abs(gap.total - expected) < 1e-10 * expected
                assert abs(gap.basis + gap.spectrum - gap.total) < 1e-10 * expected
                assert min(gap.basis, gap.spectrum) > -1e-10 * expected


# --- the numeric minimum ----------------------------------------------------------------------------------


def solved(structure, shape, N, seed, starts):
    """A solution, and ||F||^2."""
    fisher = fl.Fisher.from_gradients(ensemble(shape, N, seed))
    return fl.solve(structure, fisher, starts=starts), float(fisher.norm_squared)


GLOBAL = [
    (fl.Diagonal(), (3, 4)),
    (fl.Rows(), (4, 3)),
    (fl.Columns(), (3, 4)),
    (fl.Scalar(), (3, 3)),
    (fl.RowColumn(), (4, 3)),
    (fl.Rotated(fl.Rows(), "L"), (3, 4)),
    (fl.Rotated(fl.Columns(), "R"), (4, 3)),
    (fl.DiagonalKronecker(), (3, 4)),
    (fl.Dense(), (2, 2)),
    (fl.Blocks(fl.Dense(), columns=2), (2, 2)),
]


@pytest.mark.parametrize(
    ("structure", "shape"),
    [pytest.param(*case, marks=[pytest.mark.slow] if i % 4 else []) for i, case in enumerate(GLOBAL)],
    ids=str,
)
def test_the_solver_cannot_beat_a_global_minimiser(structure, shape):
    assert structure.claim in (fl.Claim.EXACT, fl.Claim.LIMIT)
    for seed in range(4):
        solution, _ = solved(structure, shape, 5, seed, starts=4)
        assert abs(solution.certificate.excess) <= TOLERANCE


@pytest.mark.slow
def test_kronecker_is_the_best_rank_one_spectrum_in_the_best_bases():
    for seed in range(3):
        product, size = solved(fl.Kronecker(), (3, 4), 5, seed, starts=4)
        rotated, _ = solved(fl.Rotated(fl.RowColumn()), (3, 4), 5, seed, starts=4)
        assert abs(product.certificate.excess) <= TOLERANCE
        assert abs(product.value - rotated.value) < TOLERANCE * size


ONE_STEP = [fl.Rotated(fl.Diagonal(), "L")]
ONE_STEP += [pytest.param(s, marks=pytest.mark.slow) for s in (fl.Rotated(fl.Diagonal()), fl.LowRank(fl.Diagonal(), 2))]


@pytest.mark.parametrize("structure", ONE_STEP, ids=str)
def test_sweeps_and_random_starts_find_one_joint_optimum_below_one_step(structure):
    assert structure.claim is fl.Claim.ONE_STEP
    for seed in range(3):
        solution, size = solved(structure, (3, 4), 24, seed, starts=8)
        certificate = solution.certificate
        best = {
            origin: min(value for name, value in zip(certificate.origins, certificate.values, strict=True) if name == origin)
            for origin in ("jacobi", "random")
        }
        assert abs(best["jacobi"] - best["random"]) < TOLERANCE * size
        assert certificate.beaten
        assert certificate.excess > 1e-5


# --- structures that are not nearest ----------------------------------------------------------------------------------

SHAMPOO, SHAMPOO_SQUARED = fl.Rotated(fl.GeometricMarginals()), fl.Rotated(fl.Marginals())


def test_shampoo_does_not_claim_to_be_nearest():
    assert fl.GeometricMarginals().claim is SHAMPOO.claim is fl.Claim.BOUND
    for structure in (fl.Marginals(), SHAMPOO_SQUARED):  # nearest in von Neumann divergence, and nothing else
        assert structure.claim_in(fl.VonNeumann()) is fl.Claim.EXACT
        assert structure.claim_in(fl.Frobenius()) is structure.claim_in(fl.LogDet()) is None


def test_shampoo_is_far_from_nearest():
    for seed in range(2):
        solution, _ = solved(SHAMPOO, (3, 4), 24, seed, starts=4)
        assert solution.certificate.excess > 0.05


@pytest.mark.parametrize("shape", [(3, 4), (4, 4), (5, 3)])
def test_of_a_kronecker_product_shampoo_squared_is_that_product_and_shampoo_is_not(shape):
    m, n = shape
    for seed in range(3):
        F = np.kron(positive(n, seed), positive(m, seed + 10))
        fisher = fl.Fisher.from_dense(F, shape)

        def distance(structure, F=F, fisher=fisher):
            return np.linalg.norm(structure.dense(fl.fit(structure, fisher)) - F) / np.linalg.norm(F)

        assert distance(SHAMPOO_SQUARED) < 1e-12
        assert distance(fl.Kronecker()) < 1e-12
        assert distance(SHAMPOO) > 0.05


def log(F):
    values, Q = np.linalg.eigh(F)
    return Q * np.log(values) @ Q.T


def von_neumann(F, other):
    """NumPy witness of tr(F log F - F log F~ - F + F~)."""
    return np.trace(F @ (log(F) - log(other)) - F + other)


@pytest.mark.parametrize("shape", [(2, 3), (3, 3), (4, 2)])
def test_shampoo_squared_is_nearest_in_von_neumann_divergence(shape):
    m, n = shape
    G = ensemble(shape, 30, 0)
    F = outer(G)
    nearest = np.asarray(SHAMPOO_SQUARED.dense(fl.fit(SHAMPOO_SQUARED, fl.Fisher.from_gradients(G))))
    least = von_neumann(F, nearest)
    rng = np.random.default_rng(0)
    for width in (1e-3, 1e-2, 0.1, 1.0):
        for _ in range(50):
            S = np.kron(*(np.eye(k) + width * rng.normal(size=(k, k)) for k in (n, m)))
            assert von_neumann(F, S @ nearest @ S.T) > least  # S F~ S^T is a Kronecker product too
    for seed in range(50):
        product = np.kron(positive(n, seed), positive(m, seed + 100))
        assert von_neumann(F, product * np.trace(F) / np.trace(product)) > least


# --- the update of Alice -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "rank"), [((3, 5), 1), ((3, 5), 2), ((4, 6), 2), ((5, 6), 3)])
def test_low_rank_is_the_update_of_alice_in_the_paper(shape, rank):
    """NumPy witness: the low-rank update plus the optimal compensation, as in [G]."""
    G = ensemble(shape, 40, 0)
    structure = fl.LowRank(fl.Diagonal(), rank, fl.Columns())
    params = fl.fit(structure, fl.Fisher.from_gradients(G))
    U, g = np.asarray(params.frame.bases.left), G[0]
    sigma = U.T @ G
    p = np.mean(np.sum(G**2, axis=1) - np.sum(sigma**2, axis=1), axis=0)
    lead = U @ (sigma[0] / np.sqrt(np.mean(sigma**2, axis=0)))
    compensation = np.sqrt(shape[0] - rank) * (g - U @ sigma[0]) / np.sqrt(p)
    update = np.asarray(structure.apply(params, jnp.asarray(g), lambda x: x**-0.5))
    np.testing.assert_allclose(update, lead + compensation, rtol=0, atol=1e-10 * np.abs(update).max())


# --- the lens on degenerate Fishers ---------------------------------------------------------------------


NARROW = [fl.Kronecker(), fl.LowRank(fl.Diagonal(), 2, fl.Drop())]


@pytest.mark.slow
def test_the_lens_accepts_a_fisher_that_is_zero():
    comparison = fl.compare(NARROW, fl.Fisher.from_gradients(np.zeros((2, 3, 4))), solve_up_to=0)
    assert comparison.ok
    assert all(row.slope == row.streamed == row.update == 0 for row in comparison.rows)


def test_the_lens_accepts_a_fisher_of_one_gradient():
    G = np.array([1, 1e-2, 1e-4])[:, None] * ensemble((3, 4), 1, 0)  # eigh knows the small eigenvalues of this F~ badly
    assert fl.compare([*NARROW, fl.Rotated(fl.Marginals())], fl.Fisher.from_gradients(G), solve_up_to=0).ok


def test_a_full_rank_leaves_no_tail():
    structure, fisher = fl.LowRank(fl.Diagonal(), 3), fl.Fisher.from_gradients(ensemble((4, 3), 5, 0))
    assert structure.eigenvalues(fl.fit(structure, fisher)).columns is None
    assert fl.check(structure, shapes=[(3, 4)], laws=("chart", "isometry", "application", "layout", "rest", "split", "gaps")).ok

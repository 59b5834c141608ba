"""The optimizers of low rank follow their NumPy witnesses over four refreshes; and what they do where little is to be seen."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpy_low_rank as witness
import pytest
import test_fidelity
from test_fidelity import gradients

import fimlens as fl
from fimlens.linalg.spectral_functions import inverse_root
from fimlens.transforms.compensation import nearest


def drawn(state, m, r):
    """U of the one matrix that a state holds, or of both its sides."""
    (kept,) = next(x for x in jax.tree.leaves(state, is_leaf=is_state) if is_state(x)).stacks.values()
    if kept.left.basis.dtype == jnp.uint32:  # a key that the basis is drawn from
        return jax.random.normal(kept.left.basis[0], (m, r)) / r**0.5
    return kept.left.basis[0] if kept.right is None else [side.basis[0] for side in (kept.left, kept.right)]


def is_state(x):
    return isinstance(x, fl.LowRankState)


def follow(make, paper, shape, rank, dtype, tolerance):
    with jax.enable_x64(dtype == jnp.float64):

        def witnessed(state):
            return paper(1e-3, rank=rank, frames=lambda: drawn(state(), min(shape), rank))

        test_fidelity.follow(make(1e-3, rank=rank, update_interval=5), witnessed, shape, dtype, tolerance, steps=17)


def both(ours, theirs, **options):
    named = {"corrected": "bias_correction"}
    return partial(ours, **{named.get(k, k): v for k, v in options.items()}), partial(theirs, **options)


METHODS = {
    "alice": both(fl.alice, witness.alice, leading=1, moments="keep"),
    "alice, rotated": both(fl.alice, witness.alice, leading=1, moments="rotate"),
    "galore": both(fl.galore, witness.galore),
    "fira": (fl.fira, partial(witness.galore, fira=True)),
    "low_rank_soap": both(fl.low_rank_soap, witness.low_rank_soap, leading=1, moments="keep"),
    "alice_muon": both(fl.alice_muon, witness.alice_muon, leading=1, moments="keep"),
    "frugal": both(fl.frugal, witness.frugal),
    "cosmos": both(fl.cosmos, witness.cosmos),
    "apollo": both(fl.apollo, witness.apollo),
    "apollo-svd": both(fl.apollo, witness.apollo, variant="svd"),
}
ALIKE = {
    "alice, two leading": both(fl.alice, witness.alice, leading=2, moments="keep"),
    "low_rank_soap, two leading": both(fl.low_rank_soap, witness.low_rank_soap, leading=2, moments="keep"),
    "alice, reset": both(fl.alice, witness.alice, leading=1, moments="reset"),
    "alice, corrected": both(fl.alice, witness.alice, leading=1, corrected=True, moments="keep"),
    "alice, fira": both(fl.alice, witness.alice, leading=1, compensation="fira", moments="keep"),
    "alice, fira+": both(fl.alice, witness.alice, leading=1, compensation="fira+", moments="keep"),
    "alice, none": both(fl.alice, witness.alice, leading=1, compensation="none", moments="keep"),
    "alice, full": both(fl.alice, witness.alice, leading=1, switch="full", moments="keep"),
    "alice, gaussian": both(fl.alice, witness.alice, leading=1, switch="gaussian", moments="keep"),
    "alice, gaussian-mix": both(fl.alice, witness.alice, leading=1, switch="gaussian-mix", moments="keep"),
    "alice, unswitched": both(fl.alice, witness.alice, leading=1, switch="none", moments="keep"),
    "alice0": (partial(fl.alice0, leading=1, moments="keep"), partial(witness.alice, leading=1, b3=0.0)),
    "low_rank_soap, rotated": both(fl.low_rank_soap, witness.low_rank_soap, leading=1, moments="rotate"),
    "low_rank_soap, reset": both(fl.low_rank_soap, witness.low_rank_soap, leading=1, moments="reset"),
    "galore, rotated": both(fl.galore, witness.galore, moments="rotate"),
    "galore, reset": both(fl.galore, witness.galore, moments="reset"),
    "fira+": (partial(fl.fira, plus=True), partial(witness.galore, fira=True, plus=True)),
}
CASES = [((5, 7), 2), ((7, 5), 3), ((5, 5), 5), ((5, 5), 1), ((7, 5), 5), ((5, 7), 4)]
QUICK = [("alice", *CASES[1]), ("alice", *CASES[2]), *((name, *CASES[0]) for name in METHODS)]
SLOW = [(name, *case) for name in METHODS | ALIKE for case in CASES if (name, *case) not in QUICK]
SLOW = [case for case in SLOW if "two" not in case[0] or case[2] > 2]


@pytest.mark.parametrize(
    ("name", "shape", "rank"), QUICK + [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW], ids=str
)
def test_it_follows_its_paper_over_four_refreshes(name, shape, rank):
    follow(*(METHODS | ALIKE)[name], shape, rank, jnp.float64, 1e-10)


# Of low_rank_soap the rest of a row is a difference of squares: in float32, known to a hundredth where it is 1e-5 of the row.
SINGLE = [name for name in METHODS if name not in ("alice", "low_rank_soap")]


@pytest.mark.parametrize("name", ["alice", *(pytest.param(name, marks=pytest.mark.slow) for name in SINGLE)])
def test_in_single_precision(name):
    follow(*METHODS[name], (5, 7), 2, jnp.float32, 1e-6)


def test_mini_follows_its_paper():
    ours = lambda lr, rank, update_interval: fl.apollo(lr, variant="mini", update_interval=update_interval)  # noqa: E731
    follow(ours, partial(witness.apollo, variant="mini"), (5, 7), 1, jnp.float64, 1e-10)


def test_without_its_lead_fira_is_apollo():
    """With alpha = 0 all of the gradient is compensated."""
    fira, apollo = fl.scale_by_fira(rank=2, alpha=0.0), fl.scale_by_apollo(rank=2, variant="svd")
    states = jax.jit(fira.init)(jnp.zeros((5, 7))), jax.jit(apollo.init)(jnp.zeros((5, 7)))
    for G in gradients((5, 7), 3):
        G = jnp.asarray(G, jnp.float32)
        (ours, one), (theirs, other) = (jax.jit(tx.update)(G, state) for tx, state in zip((fira, apollo), states, strict=True))
        states = one, other
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


ONE = fl.SubspaceIteration(1)
STRUCTURES = [fl.LowRank(fl.Diagonal(), 2, tracker=ONE), fl.LowRank(fl.Diagonal(), 2, sides="LR", tracker=ONE)]
LIKE_THEM = [
    fl.LowRank(fl.Diagonal(), 2, fl.Scalar(), tracker=ONE),
    fl.LowRank(fl.RowColumn(), 2, fl.Drop(), tracker=ONE),
    fl.LowRank(fl.Marginals(), 2, sides="LR", tracker=ONE),
    fl.LowRank(fl.Diagonal(), 2, fl.Scalar(), "LR", ONE),
    fl.LowRank(fl.Diagonal(), 2, fl.Drop(), "LR", ONE),
]
STRUCTURES += [pytest.param(structure, marks=pytest.mark.slow) for structure in LIKE_THEM]


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
@pytest.mark.parametrize("shape", [(4, 6), pytest.param((6, 4), marks=pytest.mark.slow)], ids=str)
def test_without_momentum_the_update_is_the_members(structure, shape):
    """Mat(F~^{-1/2} Vec(G)) of the structure's own `apply`, F~ made of the averages in the state."""
    with jax.enable_x64(True):
        options = {"b1": 0.0, "b2": 0.9, "alpha_c": 1.0, "gamma": None, "eps": 0.0, "bias_correction": False}
        tx = fl.scale_by_low_rank(structure, update_interval=2, **options)
        state, step = jax.jit(tx.init)(jnp.zeros(shape)), jax.jit(tx.update)
        for G in gradients(shape, 3):
            update, state = step(jnp.asarray(G), state)
        frame = structure.frame(*shape)
        (kept,) = (jax.tree.map(lambda x: x[0], stack) for stack in state.stacks.values())
        lead = structure.inner.fit(fl.Statistics(None, kept.lead.averaged), frame.bases.inner).coords
        bases = frame.bases._replace(left=kept.left.basis, right=None if kept.right is None else kept.right.basis)
        coords = kept.complement._replace(lead=lead)
        member = fl.Params(fl.Frame(bases, shape), coords)
        np.testing.assert_allclose(update, structure.apply(member, jnp.asarray(G), inverse_root(0.0)), rtol=1e-9, atol=1e-9)


def compiled(tx, shape, count):
    """The step that follows `count` others, and no other."""

    def step(G, state):
        return tx.update(G, (state[0]._replace(count=jnp.full_like(state[0].count, count)), *state[1:]))

    G = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.jit(step, donate_argnums=1).lower(G, jax.eval_shape(tx.init, G)).compile()


def test_alice_takes_two_products_and_no_more():
    """By XLA's analysis, between refreshes, on a square matrix at r = m/4; and no temporary over two copies of the gradient."""
    m, r = 256, 64
    step = compiled(fl.scale_by_alice(rank=r, leading=20), (m, m), 1)
    assert "lapack" not in step.as_text()
    assert step.cost_analysis()["flops"] <= 1.2 * 4 * m * m * r
    assert step.memory_analysis().temp_size_in_bytes <= 2 * 4 * m * m


@pytest.mark.slow
def test_a_refresh_forms_nothing_as_large_as_the_long_side_squared():
    step = compiled(fl.scale_by_low_rank_soap(rank=4, leading=2), (16, 1024), 0)
    assert step.memory_analysis().temp_size_in_bytes <= 4 * 1024**2 / 2


def test_without_an_interval_the_first_basis_stays():
    """That of the first gradient; for a random projection, the seed's and each matrix's own."""
    rng = np.random.default_rng(0)
    first, second = (jnp.asarray(rng.normal(size=(2, 5, 7)), jnp.float32) for _ in range(2))
    update = lambda tx, G, state: jax.jit(tx.update)(G, state)[1]  # noqa: E731
    tx = fl.scale_by_galore(rank=2, update_interval=None)
    state = update(tx, second, update(tx, first, jax.jit(tx.init)(first)))
    for G, U in zip(first, state[0].stacks["5 x 7"].left.basis, strict=True):
        theirs = np.linalg.svd(G)[0][:, :2]
        np.testing.assert_allclose(U @ U.T, theirs @ theirs.T, atol=1e-5)
    keys = []
    for seed in (0, 1):
        tx = fl.scale_by_apollo(rank=2, update_interval=None, seed=seed)
        keys += list(update(tx, first, jax.jit(tx.init)(first))[0].stacks["5 x 7"].left.basis)
    assert len({tuple(map(int, key)) for key in keys}) == 4


@pytest.mark.parametrize("name", ["fira", *(pytest.param(name, marks=pytest.mark.slow) for name in ("alice", "low_rank_soap"))])
def test_a_basis_kept_in_bfloat16_leaves_no_rest_of_its_own(name):
    """Gradients in the subspace: outside it there is what rounding U to bfloat16 makes of the lead, and no compensation."""
    tx = getattr(fl, f"scale_by_{name}")(
        rank=3, dtypes=fl.StateDtypes(basis=jnp.bfloat16), **({"leading": 3} if name != "fira" else {})
    )
    rng = np.random.default_rng(0)
    U = np.linalg.qr(rng.normal(size=(64, 3)))[0]
    update, state = jax.jit(tx.update), jax.jit(tx.init)(jnp.zeros((64, 96)))
    for _ in range(3):
        moved, state = update(jnp.asarray(U @ rng.normal(size=(3, 96)), jnp.float32), state)
        moved = np.asarray(moved)  # whose products are in full precision everywhere
        assert np.linalg.norm(moved - U @ (U.T @ moved)) < 2**-7 * np.linalg.norm(moved)


NAMED = {"alice": {"leading": 3}, "fira": {}, "galore": {}, "low_rank_soap": {"leading": 3}}


@pytest.mark.parametrize("name", ["alice", *(pytest.param(n, marks=pytest.mark.slow) for n in NAMED if n != "alice")])
def test_nothing_is_made_of_rounding(name):
    """Gradients inside the subspace get no compensation, a zero gradient no update, a rank over the matrix is all of it."""
    tx = getattr(fl, f"scale_by_{name}")(rank=3, update_interval=10, **NAMED[name])
    update = jax.jit(tx.update)
    rng = np.random.default_rng(0)
    U, weights = np.linalg.qr(rng.normal(size=(64, 3)))[0], jnp.zeros((64, 96))
    state = jax.jit(tx.init)(weights)
    for _ in range(4):
        G = U @ rng.normal(size=(3, 96))
        moved, state = update(jnp.asarray(G, jnp.float32), state)
        assert np.isfinite(moved).all()
        moved = np.asarray(moved)
        outside = moved - U @ (U.T @ moved)
        assert np.linalg.norm(outside) < 1e-4 * np.linalg.norm(moved)
    moved, state = update(weights, state)
    assert np.isfinite(moved).all()
    zero, _ = update(weights, jax.jit(tx.init)(weights))
    assert not np.asarray(zero).any()


FEW = [("alice", 256, {}), ("low_rank_soap", 64, {})]
LIKE_FEW = [(name, size, {"moments": "rotate"}) for name, size, _ in FEW]
LIKE_FEW += [("alice", 256, {"switch": "none", "moments": "keep"}), ("low_rank_soap", 256, {})]


@pytest.mark.parametrize(("name", "size", "options"), FEW + [pytest.param(*few, marks=pytest.mark.slow) for few in LIKE_FEW])
def test_more_directions_than_the_gradient_has_move_nothing_outside_it(name, size, options):
    """A gradient of rank 8 and 16 leading directions of 32, over two refreshes: rounding in the others is no update."""
    tx = getattr(fl, f"scale_by_{name}")(rank=32, leading=16, update_interval=3, **options)
    rng = np.random.default_rng(0)
    U, V = (np.linalg.qr(rng.normal(size=(size, 8)))[0] for _ in range(2))
    update, state = jax.jit(tx.update), jax.jit(tx.init)(jnp.zeros((size, size)))
    for _ in range(5):
        G = U * (1 + np.arange(8)) @ rng.normal(size=(8, 8)) @ V.T
        moved, state = update(jnp.asarray(G, jnp.float32), state)
        moved = np.asarray(moved)
        assert np.linalg.norm(moved - U @ (U.T @ moved)) < 1e-4 * np.linalg.norm(moved)


def test_in_its_own_singular_vectors_a_gradient_is_diagonal():
    """So is the first update of low-rank SOAP: what else U^T G V has is rounding."""
    rng = np.random.default_rng(0)
    L, R = (np.linalg.qr(rng.normal(size=(size, 4)))[0] for size in (24, 32))
    G = jnp.asarray(L * 2.0 ** np.arange(4) @ R.T, jnp.float32)
    tx = fl.scale_by_low_rank_soap(rank=4, leading=4, switch="none")
    moved, state = jax.jit(lambda G: tx.update(G, tx.init(G)))(G)
    U, V = (np.asarray(side.basis[0]) for side in state[0].stacks["24 x 32"][:2])
    X = U.T @ np.asarray(moved) @ V
    assert np.abs(X - np.diag(np.diag(X))).max() < 1e-4 * np.abs(X).max()


def test_sizes_that_do_not_fit_are_served_or_refused():
    """A rank over the matrix takes it whole; more to switch than the complement has switches it all; the rest is refused."""
    G = jnp.asarray(np.random.default_rng(0).normal(size=(5, 7)), jnp.float32)
    for rank in (4, 5, 9):
        tx = fl.scale_by_alice(rank=rank, leading=0)
        update, (state, _) = jax.jit(lambda G, tx=tx: tx.update(G, tx.init(G)))(G)
        assert np.isfinite(update).all()
        U = np.asarray(state.stacks["5 x 7"].left.basis[0])
        np.testing.assert_allclose(U.T @ U, np.eye(min(rank, 5)), atol=1e-5)
    with pytest.raises(ValueError, match="over the rank"):
        fl.alice(0.1, rank=2, leading=3)
    with pytest.raises(TypeError, match="static_args"):
        fl.alice(0.1, rank=jnp.asarray(2), leading=1)
    for wrong in ({"switch": "some"}, {"compensation": "all"}, {"moments": "lose"}, {"update_interval": 0}):
        with pytest.raises(ValueError, match=r"one of|whole number"):
            fl.alice(0.1, rank=2, leading=1, **wrong)
    with pytest.raises(ValueError, match="variant is"):
        fl.apollo(0.1, rank=2, variant="maxi")
    with pytest.raises(ValueError, match='"keep" or "reset"'):
        fl.apollo(0.1, rank=2, moments="rotate")
    with pytest.raises(ValueError, match="needs a rank"):
        fl.apollo(0.1)


def drawn_bases(make, seeds=(0,), steps=1):
    """One gradient, and U (or its key) of two matrices that both have it: (seed, refresh, matrix, ...)."""
    G = np.random.default_rng(0).normal(size=(16, 20))
    stack = jnp.asarray(np.stack([G, G]), jnp.float32)
    update, found = jax.jit(make(seed=0).update), []
    for seed in seeds:
        state, bases = jax.jit(make(seed=seed).init)(stack), []
        for _ in range(steps):
            _, state = update(stack, state)
            bases.append(np.asarray(state[0].stacks["16 x 20"].left.basis))
        found.append(bases)
    return np.asarray(found), G


DRAWING = ["complement", *(pytest.param(switch, marks=pytest.mark.slow) for switch in ("full", "gaussian", "gaussian-mix"))]


@pytest.mark.parametrize("switch", DRAWING)
def test_each_refresh_and_each_matrix_draws_its_own(switch):
    """And equal seeds the same."""
    make = partial(fl.scale_by_alice, rank=4, leading=2, switch=switch, b3=0.0, update_interval=1)
    (one, again, other), _ = drawn_bases(make, seeds=(0, 0, 1), steps=2)
    np.testing.assert_array_equal(one, again)
    drawn = [U[:, 2:] for U in (one[0, 0], one[0, 1], one[1, 0], other[0, 0])]
    spans = [U @ U.T for U in drawn]
    for k, span in enumerate(spans):
        assert all(np.abs(span - its).max() > 1e-3 for its in spans[:k])


@pytest.mark.slow
def test_a_full_switch_draws_from_what_is_there():
    """Columns of [V, complement], V the leading vectors of the gradient: each either one of V, or outside all of it."""
    found, G = drawn_bases(partial(fl.scale_by_alice, rank=6, leading=2, switch="full"), seeds=range(4))
    V, kinds = np.linalg.svd(G)[0][:, :6], set()
    for U in found[:, 0].reshape(-1, 16, 6):
        np.testing.assert_allclose(U.T @ U, np.eye(6), atol=1e-5)
        largest, whole = np.abs(V.T @ U).max(0), np.linalg.norm(V.T @ U, axis=0)
        assert np.all((whole < 1e-4) | (np.abs(largest - 1) < 1e-4))
        kinds |= set((whole[2:] > 0.5).tolist())
    assert kinds == {True, False}


def test_a_random_projection_is_drawn_anew():
    keys, _ = drawn_bases(partial(fl.scale_by_apollo, rank=2, update_interval=1), steps=2)
    assert len({tuple(key) for key in keys.reshape(-1, 2)}) == 4


def test_a_compensation_of_ones_own_sees_the_tails_eigenvalue():
    tx, own = (
        fl.scale_by_low_rank(fl.LowRank(fl.Diagonal(), 2, tracker=fl.SubspaceIteration(1)), compensation=rule)
        for rule in (nearest, lambda seen: nearest(seen))
    )
    G = jnp.asarray(gradients((5, 7), 1)[0], jnp.float32)
    ours, theirs = (jax.jit(lambda G, tx=tx: tx.update(G, tx.init(G))[0])(G) for tx in (own, tx))
    np.testing.assert_array_equal(ours, theirs)


def test_tied_averages_begun_anew_are_corrected_by_the_steps_since():
    """Of one gradient again and again, corrected averages are its own squares: each row, column and tail gets its full size."""
    m, n, r = 5, 7, 2
    G = jnp.asarray(gradients((m, n), 1)[0], jnp.float32)
    options = {"update_interval": 3, "moments": "reset", "bias_correction": True, "gamma": None, "alpha_c": 1.0}
    tx = fl.scale_by_low_rank(fl.LowRank(fl.Diagonal(), r, sides="LR", tracker=fl.SubspaceIteration(0)), b2=0.9, **options)
    update, state, tails = jax.jit(tx.update), jax.jit(tx.init)(G), []
    for _ in range(5):
        moved, state = update(G, state)
        U, V = (np.asarray(side.basis[0]) for side in state.stacks["5 x 7"][:2])
        moved = np.asarray(moved)
        rows, columns = U.T @ moved @ (np.eye(n) - V @ V.T), (np.eye(m) - U @ U.T) @ moved @ V
        tail = (np.eye(m) - U @ U.T) @ moved @ (np.eye(n) - V @ V.T)
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), (n - r) ** 0.5, rtol=1e-4)
        np.testing.assert_allclose(np.linalg.norm(columns, axis=0), (m - r) ** 0.5, rtol=1e-4)
        tails.append(float(state.stacks["5 x 7"].complement.tail.squeeze()))
    assert np.linalg.norm(tail) > 0
    assert tails[3] > 0.5 * tails[2]  # kept over the refresh


def test_an_averaged_covariance_leads_to_its_eigenvectors():
    """Those of the average of GG^T that NumPy takes, the current gradient in it."""
    with jax.enable_x64(True):
        tx = fl.scale_by_low_rank(fl.LowRank(fl.Diagonal(), 2, tracker=fl.Eigen(0.8)), update_interval=3)
        state, step, average = jax.jit(tx.init)(jnp.zeros((4, 6))), jax.jit(tx.update), 0.0
        for G in gradients((4, 6), 4):
            _, state = step(jnp.asarray(G), state)
            average = 0.8 * average + 0.2 * G @ G.T
        (kept,) = state.stacks.values()
        space = kept.left
        np.testing.assert_allclose(space.average[0], average, rtol=1e-10)
        U, theirs = space.basis[0], np.linalg.eigh(average)[1][:, -2:]
        np.testing.assert_allclose(U @ U.T, theirs @ theirs.T, atol=1e-10)


@pytest.mark.parametrize("complement", [fl.Columns(), fl.Scalar(), fl.Drop()], ids=str)
@pytest.mark.parametrize("sides", ["short", "LR"])
def test_averages_are_rotated_for_every_complement(complement, sides):
    """Second moments of a row or a column follow their basis; a mean over a whole side stays what it is."""
    structure = fl.LowRank(fl.Diagonal(), 2, complement, sides, fl.SubspaceIteration(1))
    tx = fl.scale_by_low_rank(structure, update_interval=1, moments="rotate")
    state, update = jax.jit(tx.init)(jnp.zeros((4, 6))), jax.jit(tx.update)
    for G in gradients((4, 6), 3):
        moved, state = update(jnp.asarray(G, jnp.float32), state)
    assert np.isfinite(moved).all()
    (kept,) = state.stacks.values()
    assert all((np.asarray(part) > 0).all() for part in jax.tree.leaves(kept.complement))


@pytest.mark.parametrize("sides", ["L", "LR"])
def test_under_scale_by_structure_a_tracked_average_follows_its_basis(sides):
    """Q~ is measured in U: on a refresh it is U_new^T U_old Q~ (.)^T, so that its trace is that of the old one or less."""
    structure = fl.Rotated(fl.Diagonal(), sides, fl.SubspaceIteration(4, switch="none"))
    tx = fl.scale_by_structure(structure, update_interval=1, b2=0.9)
    state, update, average = jax.jit(tx.init)(jnp.zeros((4, 4))), jax.jit(tx.update), np.zeros((4, 4))
    for G in gradients((4, 4), 5):
        _, state = update(jnp.asarray(G, jnp.float32), state)
        average = 0.999 * average + 0.001 * G @ G.T
    (bases,), (covariances,) = state.bases.values(), state.covariances.values()
    U = np.asarray(bases.left[0])
    np.testing.assert_allclose(U @ covariances.left[0] @ U.T, average, rtol=1e-3, atol=1e-5)

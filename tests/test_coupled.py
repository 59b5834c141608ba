"""Marginals in any divergence: each factor is seen through the other, alone, rotated, and in the optimizers made of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fimlens as fl
from fimlens.costs.papers import FORMULAS
from fimlens.lens.laws import LAWS

DIVERGENCES = [fl.LogDet(), fl.Beta(0.5), fl.Beta(1.5), fl.Frobenius()]
SAME = {  # the families that have the same nearest member, and find it in another way
    "alone": (fl.Marginals, lambda divergence: fl.RowColumn(divergence=divergence)),
    "rotated": (lambda divergence: fl.Rotated(fl.Marginals(divergence), "LR"), fl.Kronecker),
    "on the left": (lambda divergence: fl.Rotated(fl.Marginals(divergence), "L"), fl.DiagonalKronecker),
}
FEW = [pytest.param(name, d, marks=[] if d == fl.LogDet() else pytest.mark.slow) for name in SAME for d in DIVERGENCES]


@pytest.mark.parametrize(("name", "divergence"), FEW, ids=str)
def test_the_fixed_point_is_that_of_the_family_that_sees_all_moments(name, divergence):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        G = rng.normal(size=(3, 3)) @ rng.normal(size=(30, 3, 4)) @ rng.normal(size=(4, 4))
        fisher = fl.Fisher.from_gradients(G)
        here, there = (make(divergence) for make in SAME[name])
        found, expected = (np.asarray(x.dense(fl.fit(x, fisher))) for x in (here, there))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


class Uncoupled(fl.Rotated):
    """Its sides are not seen through the inner structure's weights."""

    def _sides(self, fisher, member):
        return fl.Rotated(fl.Rows(), self.sides)._sides(fisher, member)


class SeenByItself(fl.Marginals):
    """Each gradient is seen through its own factors, and not through those before it."""

    def side_weights(self, fisher, member):
        return super().side_weights(fisher, fl.Params(member.frame, None))


class LeftBehind(fl.Through):
    """Turns the second moments with the basis, and leaves the factors."""

    def transport(self, stats, move):
        return fl.Statistics(None, (super().transport(stats, move).spectrum[0], stats.spectrum[1]))


COUPLED = fl.Marginals(fl.LogDet())


SLOW = [pytest.param(law, marks=pytest.mark.slow) for law in LAWS if law != "streaming"]


@pytest.mark.parametrize("law", ["streaming", *SLOW])
def test_the_laws_of_a_coupled_structure(law):
    assert fl.check(fl.Rotated(fl.Through(fl.Diagonal(), COUPLED), "LR", fl.PowerStep()), shapes=[(3, 4)], laws=[law]).ok


MUTANTS = [
    ("streaming", SeenByItself(fl.LogDet())),
    ("transport", LeftBehind(fl.Diagonal(), COUPLED)),
    pytest.param("claim", Uncoupled(COUPLED, "LR"), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("law", "mutant"), MUTANTS, ids=str)
def test_the_law_catches_the_slip(law, mutant):
    with pytest.raises(fl.LawBroken, match=f"{law} at 3 x 4"):
        fl.check(mutant, shapes=[(3, 4)], laws=[law])


def test_kl_shampoo_keeps_no_second_moments():
    """Only the momentum has the matrix's size; `fimlens memory` counts the rest by the formula."""
    state = jax.eval_shape(fl.scale_by_kl_shampoo().init, jax.ShapeDtypeStruct((5, 7), jnp.float32))
    sizes = [x.size for x in jax.tree.leaves(state[3:])]
    assert sizes.count(35) == 1
    assert sum(sizes) == FORMULAS["kl_shampoo"](5, 7, 5)


@pytest.mark.parametrize("structure", [fl.Rotated(fl.Rows(), "L"), fl.Rotated(fl.GeometricMarginals()), fl.Rotated(COUPLED)])
def test_a_basis_that_turns_after_the_step_brings_no_weight_with_it(structure):
    """The first gradient starts the basis and enters no average; means that a covariance states would double the second."""
    G = jax.random.normal(jax.random.key(0), (2, 3, 4))
    tx = fl.scale_by_structure(structure, update_interval=1, turn="after")
    _, state = tx.update(G[0], tx.init(G[0]))
    assert all(float(jnp.abs(x).max()) == 0 for x in jax.tree.leaves(state.averaged))


def test_unseen_rows_and_columns_do_not_lock_each_other():
    """A gradient in a direction whose two factors are both zero, which weights of zero would leave there: eps alone would
    then divide it. Hostile gradients made updates of 6e8 times the usual size."""
    tx, G = fl.scale_by_kl_shampoo(update_interval=100), jnp.zeros((3, 4, 6))
    G = G.at[:, 0, 0].set(1.0).at[2, 1, 1].set(1.0)
    state, update = tx.init(G[0]), jax.jit(tx.update)
    for g in G:
        moved, state = update(g, state)
        assert float(jnp.abs(moved).max()) < 100

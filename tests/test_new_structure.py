"""A family that ships nowhere gets everything from one short class."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fimlens as fl


class AntiDiagonals(fl.Spectrum):
    """One number for each anti-diagonal i + j of the matrix: the mean of V along it."""

    claim = fl.Claim.EXACT

    def moments(self, V):
        total = partial(jnp.bincount, where(V.shape).reshape(-1), length=sum(V.shape) - 1)
        return total(weights=V.reshape(-1)) / total()

    def project(self, moments):
        return moments

    def expand(self, coords, shape):
        return coords[where(shape)]


def where(shape):
    return jnp.arange(shape[0])[:, None] + jnp.arange(shape[1])


@pytest.fixture
def gradients():
    return jax.random.normal(jax.random.key(0), (20, 3, 4)) * (1 + where((3, 4)))


@pytest.mark.slow  # docs/structures.md has another such family checked by every law, at two shapes
def test_it_passes_every_law():
    assert fl.check(AntiDiagonals(), shapes=[(3, 4)]).ok


@pytest.mark.slow
@pytest.mark.parametrize("outer", [fl.Rotated(AntiDiagonals()), fl.Blocks(AntiDiagonals(), columns=2)], ids=str)
def test_it_passes_every_law_inside_others(outer):
    assert fl.check(outer, shapes=[(3, 4)]).ok


def test_it_is_short():
    assert len((inspect.getsource(AntiDiagonals) + inspect.getsource(where)).splitlines()) <= 40


def test_it_is_fitted_measured_and_counted(gradients):
    structure, fisher = AntiDiagonals(), fl.Fisher.from_gradients(gradients)
    params = fl.fit(structure, fisher)
    V = np.mean(np.square(gradients), axis=0)
    means = [np.fliplr(V).diagonal(k).mean() for k in range(3, -3, -1)]
    np.testing.assert_allclose(params.coords, means, rtol=1e-6)
    between = [float(fl.gap(s, fl.fit(s, fisher), fisher).total) for s in (fl.Diagonal(), structure, fl.Scalar())]
    assert between == sorted(between)
    assert fl.dimension(structure, (3, 4)) == fl.state_size(structure, (3, 4)) == 6
    assert fl.state_size(fl.Rotated(structure), (3, 4)) == 6 + 2 * (9 + 16)  # two bases and two covariances


def test_its_claim_composes():
    assert fl.Rotated(AntiDiagonals()).claim is fl.Claim.ONE_STEP
    assert fl.Blocks(AntiDiagonals(), columns=2).claim is fl.Claim.EXACT


@pytest.mark.slow  # the law `claim` says the same of a Fisher of its own
def test_the_solver_cannot_beat_its_fit(gradients):
    fisher = fl.Fisher.from_gradients(gradients)
    assert not fl.solve(AntiDiagonals(), fisher, starts=3).certificate.beaten


def test_it_is_an_optimizer(gradients):
    tx = optax.chain(fl.scale_by_structure(AntiDiagonals(), b1=None, b2=0.5), optax.scale(-1.0))
    G = {"w": gradients[0]}
    update, _ = jax.jit(lambda G: tx.update(G, tx.init(G)))(G)
    coords = fl.fit(AntiDiagonals(), fl.Fisher.from_gradients(gradients[:1])).coords
    np.testing.assert_allclose(update["w"], -gradients[0] / np.sqrt(coords)[where((3, 4))], rtol=1e-5)

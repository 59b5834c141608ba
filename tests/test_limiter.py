"""The norm-growth limiter: it limits growth as in the paper, and one tiny update does not freeze a matrix."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fimlens as fl

USUAL = [1.0] * 5


def limited(norms, gamma=1.01):
    """The norms of updates of those norms, after the limiter."""
    tx = fl.limit_norm_growth(gamma)

    def step(state, norm):
        update, state = tx.update(jnp.full((1, 1), norm), state)
        return state, update[0, 0]

    return np.asarray(jax.lax.scan(step, tx.init(jnp.ones((1, 1))), jnp.asarray(norms, jnp.float32))[1])


def in_print(norms, gamma=1.01):
    """[G] Algorithm 1."""
    phi, found = norms[0], [norms[0]]
    for norm in norms[1:]:
        phi = gamma / max(norm / phi, gamma) * norm
        found.append(phi)
    return np.array(found)


@pytest.mark.parametrize("gamma", [1.001, 1.01, 1.1, 2.0])
@pytest.mark.parametrize("tiny", [0.3, 1e-2, 1e-12, 1e-38, 0.0])
def test_a_norm_returns_after_a_tiny_one(tiny, gamma):
    found = limited([*USUAL, tiny, *[3.0] * 20], gamma)
    assert found[-1] >= 0.5
    np.testing.assert_array_less(found[6:] / np.maximum.accumulate(found)[5:-1], gamma * (1 + 1e-6))  # and passes no peak


@pytest.mark.parametrize("tiny", [0.0, 1e-6])
def test_a_spike_after_a_tiny_update_does_not_pass(tiny):
    np.testing.assert_allclose(limited([*USUAL, tiny, 1e3, 1e3])[-2:], [1.01, 1.01**2], rtol=1e-6)


@pytest.mark.parametrize("period", [2, 10, 300])
def test_a_matrix_that_is_seldom_used_keeps_its_updates_whole(period):
    norms = np.full(1200, 1e-6)
    norms[::period] = 1
    np.testing.assert_allclose(limited(norms)[::period], 1, rtol=1e-6)


def test_a_norm_returns_after_it_fell_little_by_little():
    assert limited([*USUAL, *(2.0**-k for k in range(30)), 1.0])[-1] == 1


def test_a_peak_is_forgotten_in_as_many_steps_as_growth_would_take():
    for steps, back in ((100, 1.0), (300, 0.101)):  # 1.01^232 = 10
        np.testing.assert_allclose(limited([*USUAL * 20, *[0.1] * steps, 1.0])[-1], back, rtol=1e-6)


def test_the_peak_of_an_average_without_bias_correction_is_forgotten_at_once():
    norms = [1 / (1 - 0.9**t) for t in range(1, 40)]
    np.testing.assert_allclose(limited([*norms, 8.0])[-1], 1.01 * norms[-1], rtol=1e-6)


def test_ordinary_norms_are_limited_as_in_the_paper():
    norms = np.exp(0.2 * np.random.default_rng(0).normal(size=20_000)).astype(np.float32)
    found = limited(norms)
    np.testing.assert_allclose(found, in_print(norms), rtol=1e-3)
    assert (found < 0.99 * norms).mean() > 0.1


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_is_seen_once(wrong):
    found = limited([*USUAL, wrong, 9.0])
    assert not np.isfinite(found[5])
    np.testing.assert_allclose(found[6], 1.01, rtol=1e-6)


def test_the_first_update_that_is_not_zero_has_no_limit():
    np.testing.assert_allclose(limited([0.0, 0.0, 7.0, 9.0]), [0, 0, 7, 7.07], rtol=1e-6)


def test_norms_of_half_precision_are_in_float32_and_gamma_may_be_traced():
    tx = fl.limit_norm_growth()
    for dtype in (jnp.bfloat16, jnp.float16):
        update, state = tx.update(jnp.full((64, 64), 3e4, dtype), tx.init(jnp.ones((64, 64), dtype)))
        assert update.dtype == dtype
        assert [x.dtype for x in state] == [jnp.float32] * 4
        np.testing.assert_allclose(state.norms, 64 * 3e4, rtol=1e-2)

    @jax.jit
    def last(gamma):
        tx = fl.limit_norm_growth(gamma)
        state = tx.init(jnp.ones((1, 1)))
        for norm in (0.0, 1.0, 1e-9, 0.0, 1.0, 9.0):
            update, state = tx.update(jnp.full((1, 1), norm), state)
        return update[0, 0]

    assert last(2.0) == 2
    assert jax.grad(last)(2.0) == 1


LOW_RANK = {"rank": 1, "update_interval": None}
DIRECTIONS = {
    "racs": fl.scale_by_racs,
    "racs, corrected": partial(fl.scale_by_racs, bias_correction=True),
    "alice": partial(fl.scale_by_alice, leading=1, **LOW_RANK),
    "low_rank_soap": partial(fl.scale_by_low_rank_soap, leading=1, **LOW_RANK),
    "fira": partial(fl.scale_by_fira, **LOW_RANK),
    "fira+": partial(fl.scale_by_fira, plus=True, **LOW_RANK),
    "apollo": partial(fl.scale_by_apollo, rank=4, update_interval=None),  # its norms at rank 1 vary more than tenfold
    "apollo-mini": partial(fl.scale_by_apollo, variant="mini"),
    "alice, Fira's compensation": partial(fl.scale_by_alice, leading=1, compensation="fira", **LOW_RANK),
}
QUICK = ("racs", "alice", "apollo")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in DIRECTIONS])
def test_no_optimizer_is_frozen_by_one_tiny_gradient(name):
    """Half the usual norm is back after at most 20 steps, also where the tiny gradient is the first."""
    tx, places = DIRECTIONS[name](), (0, 30)
    G = jnp.asarray(np.random.default_rng(0).normal(size=(places[-1] + 21, 8, 9)), jnp.float32)

    def step(state, gradient):
        update, state = tx.update(gradient, state)
        return state, jnp.linalg.norm(update)

    @jax.jit
    @partial(jax.vmap, in_axes=(None, 0))
    @partial(jax.vmap, in_axes=(0, None))
    def norms(place, tiny):
        gradients = G.at[place].multiply(tiny)
        return jax.lax.scan(step, tx.init(G[0]), gradients)[1]

    usual, *found = np.asarray(norms(jnp.array(places), jnp.array([1, 1e-2, 1e-4, 1e-12, 0])))
    for own, whole, place in zip(np.swapaxes(found, 0, 1), usual, places, strict=True):
        assert (own[:, place + 20] >= 0.5 * whole[place + 20]).all()

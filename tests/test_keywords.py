"""Optax's keywords, injected hyper-parameters, and rates and parameters of any kind work here as they do in Optax."""

import inspect

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import fimlens as fl

WEIGHTS = {"w": jax.random.normal(jax.random.key(0), (4, 6)), "b": jnp.arange(6.0)}


def moved(tx, weights=WEIGHTS, steps=3):
    @jax.jit
    def train(weights):
        def step(carry, key):
            weights, state = carry
            G = jax.tree.map(lambda x: jax.random.normal(key, jnp.shape(x)), weights)
            updates, state = tx.update(G, state, weights)
            return (optax.apply_updates(weights, updates), state), None

        return jax.lax.scan(step, (weights, tx.init(weights)), jax.random.split(jax.random.key(1), steps))[0][0]

    return train(weights)


ALIKE = {
    "adam, by position": (lambda o: o.adam(0.1, 0.8, 0.95, 1e-6, 1e-3), 1e-5),
    "adam, nesterov": (lambda o: o.adam(0.1, 0.8, eps_root=1e-3, nesterov=True), 1e-5),
    "adam, mu_dtype": (lambda o: o.adam(0.1, mu_dtype=jnp.bfloat16), 4e-3),  # Optax also multiplies in bfloat16
    "adamw, by position": (lambda o: o.adamw(0.1, 0.8, 0.95, 1e-6, 1e-3, None, 0.1, {"w": True, "b": False}), 1e-5),
    "adamw, a schedule": (lambda o: o.adamw(0.1, weight_decay=optax.linear_schedule(0.3, 0.0, 3), nesterov=True), 1e-5),
    "sgd": (lambda o: o.sgd(0.1, 0.9, True, accumulator_dtype=jnp.float32), 1e-6),
    "lamb, by position": (lambda o: o.lamb(0.1, 0.8, 0.95, 1e-6, 1e-3, 0.1), 1e-5),
    "lars": (lambda o: o.lars(0.1, weight_decay=0.1, weight_decay_mask={"w": True, "b": False}), 1e-5),
}


@pytest.mark.parametrize("name", ALIKE)
def test_keywords_and_positions_mean_what_they_mean_in_optax(name):
    make, tolerance = ALIKE[name]
    ours, theirs = moved(make(fl)), moved(make(optax))
    for key in WEIGHTS:
        np.testing.assert_allclose(ours[key], theirs[key], rtol=tolerance, atol=tolerance)


def test_muon_takes_optax_s_names():
    options = {"ns_steps": 3, "adam_b1": 0.8, "adam_b2": 0.95, "adam_eps_root": 1e-3, "adam_weight_decay": 0.2}
    options |= {"weight_decay": 0.1, "weight_decay_mask": None, "adam_learning_rate": 0.05, "mu_dtype": jnp.float32}
    options |= {"ns_coeffs": (3.0, -4.0, 2.0)}
    declared = {"w": optax.contrib.MuonDimensionNumbers(0, 1), "b": None}
    ours = moved(fl.muon(0.1, **options, muon_weight_dimension_numbers=declared))
    theirs = moved(optax.contrib.muon(0.1, **options, muon_weight_dimension_numbers=declared))
    for key in WEIGHTS:
        np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-4, atol=1e-5)


def test_other_names_become_ours():
    def state(tx):
        return jax.eval_shape(tx.init, WEIGHTS)

    theirs, ours = fl.galore(0.1, rank=2, update_proj_gap=5, scale=0.5), fl.galore(0.1, rank=2, update_interval=5, alpha=0.5)
    assert jax.tree.structure(state(theirs)) == jax.tree.structure(state(ours))
    assert state(fl.adam(0.1, mu_dtype=jnp.bfloat16))[0].momentum["w"].dtype == jnp.bfloat16
    assert state(fl.soap(0.1, mu_dtype=jnp.bfloat16))[0].inner_states["method"].inner_state.count.dtype == jnp.int32


@pytest.mark.parametrize("name", ["adam", "sgd", "muon", "adafactor", "racs"])
def test_a_name_without_a_meaning_is_refused_with_our_arguments(name):
    make = getattr(fl, name)
    listed = ", ".join(inspect.signature(make).parameters)
    for call in (make, optax.inject_hyperparams(make)):
        with pytest.raises(TypeError, match=f"unexpected keyword argument 'preconditioning'. Its arguments are {listed}"):
            call(0.1, preconditioning=3)


def test_leaves_of_adam_have_a_decay_of_their_own():
    zero = jax.tree.map(jnp.zeros_like, WEIGHTS)
    for options, of_w, of_b in (
        ({}, 0.5, 0.5),
        ({"adam_weight_decay": 0.25}, 0.5, 0.25),
        ({"adam_weight_decay": 0.0}, 0.5, 0.0),
    ):
        tx = fl.muon(0.1, weight_decay=0.5, adam_learning_rate=0.2, **options)
        updates, _ = jax.jit(lambda G, W, tx=tx: tx.update(G, tx.init(W), W))(zero, WEIGHTS)
        np.testing.assert_allclose(updates["w"], -0.1 * of_w * WEIGHTS["w"], rtol=1e-5)
        np.testing.assert_allclose(updates["b"], -0.2 * of_b * WEIGHTS["b"], rtol=1e-5)


SIZES = {"alice": {"rank": 2, "leading": 1}, "galore": {"rank": 2}}


@pytest.mark.parametrize("name", ["adam", "sgd", "adafactor", "lamb", "lars", "racs", "muon", "soap", "alice", "galore"])
def test_the_tree_of_the_state_does_not_depend_on_which_keywords_are_injected(name):
    make, sizes = getattr(fl, name), SIZES.get(name, {})
    plain = jax.tree.structure(jax.eval_shape(make(0.1, **sizes).init, WEIGHTS))
    for options in ({"weight_decay": 0.1}, {"weight_decay": 0.0}, {"weight_decay": jnp.zeros([])}):
        assert jax.tree.structure(jax.eval_shape(make(0.1, **sizes, **options).init, WEIGHTS)) == plain
        injected = optax.inject_hyperparams(make)(0.1, **sizes, **options)
        assert jax.tree.structure(jax.eval_shape(injected.init, WEIGHTS).inner_state) == plain


def test_functions_of_parameters_are_injected_as_they_are():
    """Optax takes a function for a schedule, and a rank for a number to be traced."""
    options = {"route": lambda path, leaf: path == "w", "mask": lambda params: {"w": True, "b": False}}
    options |= {"axes": fl.flax_axes, "weight_decay": 0.1}
    np.testing.assert_allclose(
        moved(optax.inject_hyperparams(fl.muon)(0.1, **options))["w"], moved(fl.muon(0.1, **options))["w"], rtol=1e-5
    )
    state = optax.inject_hyperparams(fl.alice)(0.1, rank=2, leading=1, route="w").init(WEIGHTS)
    assert "rank" not in state.hyperparams
    untracked = {"rank": 2, "leading": 1, "b3": 0.0}  # no Q~
    plain, injected = fl.alice(0.1, **untracked), optax.inject_hyperparams(fl.alice)(0.1, **untracked)
    states = jax.eval_shape(plain.init, WEIGHTS), jax.eval_shape(injected.init, WEIGHTS).inner_state
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


@pytest.mark.parametrize("name", ["adam", "racs"])
def test_rates_and_parameters_of_any_kind(name):
    make, weights = getattr(fl, name), WEIGHTS | {"temperature": 1.5}

    def first(rate):
        tx = make(rate)
        return jax.jit(tx.update)(weights, tx.init(weights), weights)[0]

    expected = first(0.125)
    for rate in (ml_dtypes.bfloat16(0.125), np.asarray(0.125, ml_dtypes.bfloat16)):
        for key, x in first(rate).items():
            np.testing.assert_allclose(x, expected[key], rtol=1e-5)


@pytest.mark.parametrize("name", ["racs", "adafactor", "lamb"])
def test_a_loss_has_a_derivative_by_the_rate_where_rows_have_no_gradient(name):
    """One row of zeros, and all: the derivative of a root at zero made it NaN."""

    @jax.jit
    @jax.value_and_grad
    def loss(rate, seen):
        def step(carry, _):
            w, state = carry
            updates, state = tx.update({"w": 2 * seen * w}, state, {"w": w})
            return (optax.apply_updates(w, updates["w"]), state), None

        tx = getattr(fl, name)(rate)
        w, _ = jax.lax.scan(step, (WEIGHTS["w"], tx.init({"w": WEIGHTS["w"]})), length=3)[0]
        return jnp.sum(w**2)

    for zeros in (1, 4):
        seen = jnp.arange(4.0)[:, None] >= zeros
        (above, _), (_, slope), (below, _) = (loss(rate, seen) for rate in (0.011, 0.01, 0.009))
        np.testing.assert_allclose(slope, (above - below) / 0.002, rtol=0.05, atol=0.01)

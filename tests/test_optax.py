"""What people do with Optax transforms, with every optimizer: one table of property x optimizer."""

import functools
import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fimlens as fl

STARTS_BASES = (fl.soap, fl.soap_muon, fl.kl_shampoo, fl.kl_soap)  # in the first step, which moves nothing


# What wraps a transform sees a tree of arrays alone: these have one of each kind. Adam keeps a state a leaf, RACS averages of
# fits, and Alice stacks of matrices, with bases and of low rank, beside Adam for the rest.
QUICK = ["adam", "racs", "alice"]
LIKE_THEM = [
    "soap", "muon", "adafactor", "sgd", "adamw", "lars", "lamb", "swan", "shampoo", "osoap", "adadiag", "adadiag_pp",
    "adafacdiag", "kl_shampoo", "kl_soap", "sinkgd", "aro", "normuon", "soap_muon", "alice0", "alice_muon", "galore", "fira",
    "apollo", "frugal", "cosmos", "low_rank_soap", "recommended", "links", "hyperball",
]  # fmt: skip
NAMES = QUICK + [pytest.param(name, marks=pytest.mark.slow) for name in LIKE_THEM]
SIZES = {name: {"rank": 2, "leading": 1} for name in ("alice", "alice0", "alice_muon", "low_rank_soap")}
SIZES |= {name: {"rank": 2} for name in ("galore", "fira", "apollo", "frugal", "cosmos")}
SIZES |= {"recommended": {"choices": {"*kernel": "soap", "*layers*": "racs"}}}
TREE = {"kernel": (3, 4), "layers": (2, 3, 4), "bias": (4,)}


def with_links(learning_rate, weight_decay=0.0, mask=None):
    """Every link that stands between a direction and its rate."""
    decay, rate = fl.cautious_weight_decay(weight_decay, mask), optax.scale_by_learning_rate(learning_rate)
    widths = fl.width_multipliers("adam", {"kernel": jnp.ones((6, 8))}, {"kernel": jnp.ones((3, 4))})
    return optax.chain(fl.scale_by_structure(fl.Diagonal()), fl.match_rms(0.2), widths, decay, rate)


def on_a_ball(learning_rate):
    return fl.hyperball(fl.scale_by_structure(fl.Diagonal()), learning_rate)


CHAINS = {"links": with_links, "hyperball": on_a_ball}


@functools.cache
def named(name):
    """The optimizer of that name, or the chain; of low rank, in the sizes that TREE has."""
    if name in CHAINS:
        return CHAINS[name]
    return functools.partial(getattr(fl, name), **SIZES[name]) if name in SIZES else getattr(fl, name)


def tree(seed, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), len(TREE))
    return {name: jax.random.normal(k, shape, dtype) for (name, shape), k in zip(TREE.items(), keys, strict=True)}


def run(tx, steps=3, dtype=jnp.float32, weights=None, first=1):
    weights = tree(0, dtype) if weights is None else weights
    state, update = jax.jit(tx.init)(weights), jax.jit(tx.update)
    for t in range(steps):
        updates, state = update(tree(first + t, dtype), state, weights)
        weights = optax.apply_updates(weights, updates)
    return weights, state


@functools.cache
def plain_run(make):
    """Three steps of the optimizer by itself, at each the weights."""
    tx, weights, after = make(0.1), tree(0), []
    state, update = jax.jit(tx.init)(weights), jax.jit(tx.update)
    for t in (1, 2, 3):
        updates, state = update(tree(t), state, weights)
        weights = optax.apply_updates(weights, updates)
        after.append(weights)
    return after


def same(a, b, tolerance=1e-6):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x, np.float32), np.asarray(y, np.float32), atol=tolerance, rtol=tolerance)


def chains(make):
    same(run(optax.chain(optax.identity(), make(0.1), optax.scale(1.0)))[0], plain_run(make)[-1], 1e-5)


def is_masked(make):
    mask = {"kernel": True, "layers": False, "bias": True}
    moved, _ = run(optax.masked(make(0.1), mask))
    same(moved["kernel"], plain_run(make)[-1]["kernel"], 1e-5)
    same(moved["layers"], tree(0)["layers"] + sum(tree(t)["layers"] for t in (1, 2, 3)))


def is_partitioned(make):
    labels = {"kernel": "a", "layers": "b", "bias": "b"}
    moved, _ = run(optax.partition({"a": make(0.1), "b": optax.set_to_zero()}, labels))
    same(moved["kernel"], plain_run(make)[-1]["kernel"], 1e-5)
    same(moved["layers"], tree(0)["layers"])


def injects_its_rate_and_does_not_recompile(make):
    """A rate set by hand, then a schedule; neither compiles twice; and the rate is found by name."""
    for rate in (0.1, optax.linear_schedule(0.1, 0.0, 10)):
        sizes = [name for name in ("rank", "leading") if name in inspect.signature(make).parameters]
        tx, traces = optax.inject_hyperparams(make, static_args=sizes)(learning_rate=rate), []

        @jax.jit
        def step(G, state, W, tx=tx, traces=traces):
            traces.append(1)
            return tx.update(G, state, W)

        state, moved = jax.jit(tx.init)(tree(0)), []
        for t in range(4):
            updates, state = step(tree(t), state, tree(0))
            moved.append(updates)
            if not callable(rate) and t == 2:
                state.hyperparams["learning_rate"] = jnp.zeros([], jnp.float32)
        assert len(traces) <= 2  # once more than once, for any factory: what Optax injects is weakly typed at first
        assert state.hyperparams["learning_rate"] == (0.0 if not callable(rate) else rate(3))
        if not callable(rate):
            assert optax.tree.get(state, "learning_rate") == 0
            assert not moved[3]["kernel"].any() or make is fl.lars  # whose momentum goes on


def takes_schedules(make):
    """Two steps at a rate, then none, are two steps (for lars, whose momentum goes on, one)."""
    moved, _ = run(make(optax.piecewise_constant_schedule(0.1, {2: 0.0})), steps=2 if make is fl.lars else 3)
    same(moved, plain_run(make)[1], 1e-5)


def accumulates(make):
    tx = optax.MultiSteps(make(0.1), every_k_schedule=2)
    update, weights, state = jax.jit(tx.update), tree(0), jax.jit(tx.init)(tree(0))
    moves = []
    for t in (1, 1, 2, 2):
        updates, state = update(tree(t), state, weights)
        weights = optax.apply_updates(weights, updates)
        moves.append(bool(updates["kernel"].any()))
    assert moves == [False, make not in STARTS_BASES, False, True]
    same(weights, plain_run(make)[1], 1e-5)


def skips_what_is_not_finite(make):
    """Guarded, a bad gradient leaves weights and state as they were; and the run goes on as if it had not been."""
    tx = optax.apply_if_finite(make(0.1), 5)
    weights, state = run(tx, steps=2)
    for bad in (jnp.nan, jnp.inf):
        G = tree(9) | {"kernel": tree(9)["kernel"].at[1, 2].set(bad)}
        updates, after = jax.jit(tx.update)(G, state, weights)
        same(optax.apply_updates(weights, updates), weights, 0)
        same(after.inner_state, state.inner_state, 0)


def takes_extra_arguments(make):
    tx = make(0.1)
    updates, _ = jax.jit(tx.update)(tree(1), jax.jit(tx.init)(tree(0)), tree(0), value=1.0)
    same(optax.apply_updates(tree(0), updates), plain_run(make)[0], 1e-5)


def counts(make):
    """Every count in the state is the number of steps."""
    _, state = run(make(optax.constant_schedule(0.1)), steps=3)
    found = [int(x) for _, x in optax.tree.get_all_with_path(state, "count")]
    assert found
    assert set(found) == {3}


def runs_in_scan_and_cond(make):
    tx = make(0.1)
    gradients = jax.tree.map(lambda *xs: jnp.stack(xs), *(tree(t) for t in (1, 2, 3)))

    @jax.jit
    def train(weights):
        def step(carry, G):
            weights, state = carry
            updates, state = jax.lax.cond(
                jnp.sum(G["bias"]) < 1e9, lambda: tx.update(G, state, weights), lambda: (jax.tree.map(jnp.zeros_like, G), state)
            )
            return (optax.apply_updates(weights, updates), state), None

        return jax.lax.scan(step, (weights, tx.init(weights)), gradients)[0][0]

    same(train(tree(0)), plain_run(make)[-1], 2e-5)


def runs_under_vmap(make):
    """Two trainings at once are the two trainings."""
    tx = make(0.1)
    weights = jax.tree.map(lambda a, b: jnp.stack([a, b]), tree(0), tree(5))
    state = jax.jit(jax.vmap(tx.init))(weights)
    updates, _ = jax.jit(jax.vmap(tx.update))(jax.tree.map(lambda a, b: jnp.stack([a, b]), tree(1), tree(6)), state, weights)
    alone, _ = jax.jit(tx.update)(tree(6), tx.init(tree(5)), tree(5))
    same(jax.tree.map(lambda x: x[1], updates), alone, 2e-5)


def donates(make):
    tx = make(0.1)
    weights, state = tree(0), jax.jit(tx.init)(tree(0))
    step = jax.jit(tx.update, donate_argnums=(0, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for t in (1, 2):
            updates, state = step(tree(t), state, weights)
    assert np.isfinite(updates["kernel"]).all()


def takes_bfloat16(make):
    """Gradients and weights in bfloat16: updates are, the state keeps its dtypes, and stays near the float32 run."""
    tx = make(0.1)
    weights = tree(0, jnp.bfloat16)
    before = jax.tree.map(jnp.result_type, jax.eval_shape(tx.init, weights))
    moved, state = run(tx, dtype=jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(moved)} == {jnp.dtype(jnp.bfloat16)}
    assert jax.tree.map(jnp.result_type, state) == before
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree(1))
    updates, _ = jax.jit(tx.update)(half, tx.init(tree(0)), tree(0))
    same(optax.apply_updates(tree(0), updates), plain_run(make)[0], 0.05)


def keeps_its_layout(make):
    """eval_shape of init is the state of any step: a plain tree of arrays, of one structure."""
    tx = make(0.1)
    shapes = jax.eval_shape(tx.init, tree(0))
    _, state = run(tx, steps=1)
    assert jax.tree.structure(shapes) == jax.tree.structure(state)
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(shapes)] == [(x.shape, x.dtype) for x in jax.tree.leaves(state)]
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(state))


def decays_where_the_mask_says(make):
    if make is on_a_ball:
        return  # it has no decay
    tx = make(0.1, weight_decay=0.5, mask={"kernel": True, "layers": False, "bias": False})
    zero = jax.tree.map(jnp.zeros_like, tree(0))
    updates, _ = jax.jit(tx.update)(zero, jax.jit(tx.init)(tree(0)), tree(0))
    assert updates["kernel"].any()
    assert not updates["layers"].any()


PROPERTIES = [
    chains, is_masked, is_partitioned, injects_its_rate_and_does_not_recompile, takes_schedules, accumulates,
    skips_what_is_not_finite, takes_extra_arguments, counts, runs_in_scan_and_cond, runs_under_vmap, donates, takes_bfloat16,
    keeps_its_layout, decays_where_the_mask_says,
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("holds", PROPERTIES, ids=lambda f: f.__name__)
def test_it_works_as_optax_transforms_do(holds, name):
    holds(named(name))


MIXED = {
    "lars": fl.lars(0.1),
    "muon": fl.muon(0.1),
    "sgd": fl.sgd(0.1, momentum=0.9),
    "adafactor": fl.adafactor(0.1, momentum=0.9),
    "matrices": fl.matrices(fl.scale_by_racs()),
}


@pytest.mark.parametrize("name", MIXED)
def test_float32_gradients_of_bfloat16_weights_leave_the_state_its_dtypes(name):
    tx, weights = MIXED[name], tree(0, jnp.bfloat16)
    before = jax.eval_shape(tx.init, weights)
    _, after = jax.eval_shape(tx.update, tree(1), before, weights)
    assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, before)


DTYPES = {
    "adam": ("momentum", "second_moment"),
    "soap": ("momentum", "second_moment", "basis"),
    "racs": ("second_moment",),
    "shampoo": ("second_moment", "basis"),
    "muon": ("momentum",),
    "alice": ("momentum", "second_moment", "basis"),
}


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in DTYPES])
def test_the_dtypes_of_the_state_are_chosen_and_stay(name):
    """Each choice changes some leaf, none from step to step, and the steps stay near those of float32."""
    plain = jax.tree.map(jnp.result_type, jax.eval_shape(named(name)(0.1).init, tree(0)))
    for kind in DTYPES[name]:
        tx = named(name)(0.1, dtypes=fl.StateDtypes(**{kind: jnp.bfloat16}))
        chosen = jax.tree.map(jnp.result_type, jax.eval_shape(tx.init, tree(0)))
        assert chosen != plain
        moved, state = run(tx, steps=2)
        assert jax.tree.map(jnp.result_type, state) == chosen
        same(moved, plain_run(named(name))[1], 0.1)

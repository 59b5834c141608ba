"""The optimizers in Flax NNX, Flax Linen and Equinox; and a run resumed by Orbax goes on bit for bit."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen, nnx
from flax.training.train_state import TrainState

import fimlens as fl

pytestmark = pytest.mark.system

X = jax.random.normal(jax.random.key(0), (64, 6))
Y = jnp.tanh(X @ jax.random.normal(jax.random.key(1), (6, 3)))
MAKERS = {
    "racs": lambda: fl.racs(0.3),
    "soap": lambda: fl.soap(0.02),
    "muon": lambda: fl.muon(0.02),
    "adamw": lambda: fl.adamw(0.02),
}


NAMES = ["racs", *(pytest.param(name, marks=pytest.mark.slow) for name in ("soap", "muon", "adamw"))]


@pytest.mark.parametrize("name", NAMES)
def test_flax_nnx(name):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first, self.second = nnx.Linear(6, 16, rngs=rngs), nnx.Linear(16, 3, rngs=rngs)

        def __call__(self, x):
            return self.second(nnx.tanh(self.first(x)))

    model = Net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, MAKERS[name](), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss, slope = nnx.value_and_grad(lambda model: jnp.mean((model(X) - Y) ** 2))(model)
        optimizer.update(model, slope)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(60)]
    assert losses[-1] < 0.3 * losses[0]


def linen_state(tx):
    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(3)(linen.tanh(linen.Dense(16)(x)))

    model = Net()
    return TrainState.create(apply_fn=model.apply, params=model.init(jax.random.key(0), X)["params"], tx=tx)


@jax.jit
def linen_step(state):
    def loss(params):
        return jnp.mean((state.apply_fn({"params": params}, X) - Y) ** 2)

    value, slope = jax.value_and_grad(loss)(state.params)
    return state.apply_gradients(grads=slope), value


@pytest.mark.parametrize("name", NAMES)
def test_flax_linen_and_orbax(name, tmp_path):
    """Trains; and saved after thirty steps, restored into a fresh state, it goes on bit for bit."""
    state, losses = linen_state(MAKERS[name]()), []
    for t in range(60):
        if t == 30:
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(tmp_path / "state", {"params": state.params, "opt_state": state.opt_state})
        state, loss = linen_step(state)
        losses.append(float(loss))
    assert losses[-1] < 0.3 * losses[0]
    fresh = linen_state(state.tx)
    with ocp.StandardCheckpointer() as checkpointer:
        kept = checkpointer.restore(tmp_path / "state", {"params": fresh.params, "opt_state": fresh.opt_state})
    resumed = fresh.replace(params=kept["params"], opt_state=kept["opt_state"], step=30)
    again = []
    for _ in range(30):
        resumed, loss = linen_step(resumed)
        again.append(float(loss))
    assert again == losses[30:]
    for a, b in zip(jax.tree.leaves(resumed.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_equinox(name):
    model = eqx.nn.MLP(6, 3, 16, 1, key=jax.random.key(0))
    tx = MAKERS[name]()
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state):
        loss, slope = eqx.filter_value_and_grad(lambda m: jnp.mean((jax.vmap(m)(X) - Y) ** 2))(model)
        updates, state = tx.update(slope, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state, loss

    losses = []
    for _ in range(60):
        model, state, loss = step(model, state)
        losses.append(float(loss))
    assert losses[-1] < 0.3 * losses[0]


def test_partitioned_linen_parameters_keep_their_boxes():
    """Names of axes that Flax puts around a weight stand around its statistics too."""
    W = linen.Partitioned(jnp.ones((4, 6)), names=("embed", "mlp"))
    state = fl.scale_by_structure(fl.Diagonal()).init({"w": W})
    assert isinstance(state.averaged["w"], linen.Partitioned)
    assert optax.tree.get(state, "count") == 0

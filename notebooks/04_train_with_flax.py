# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Train with Flax
#
# This notebook trains with RACS and Alice in a loop of Flax NNX, beside Adam. It shows the one line that changes, and
# which optimizer each parameter gets. It compares losses, memory and time, and ends with a mixture of optimizers.

# %%
import math
import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

import fimlens as fl
from fimlens import plotting
from fimlens.costs import memory
from fimlens.experiments import trial
from fimlens.experiments.tuning import best_power, tuned
from fimlens.language_model import llama, text
from fimlens.pretrain.model import Llama
from fimlens.pretrain.schedule import warmup_cosine
from fimlens.pretrain.timing import least_seconds

# %matplotlib inline

# %% [markdown]
# On two cores this takes some minutes. With `FIMLENS_QUICK=1` in the environment, as in the project's own tests,
# trainings are much shorter, and at one learning rate each.

# %%
QUICK = os.environ.get("FIMLENS_QUICK") == "1"
STEPS, TRIES = (40, 1) if QUICK else (200, 4)
CONFIG = llama.Config(vocabulary=256, hidden=64, mlp=172, heads=4, layers=2)

# %% [markdown]
# ## The loop
#
# The model is a LLaMA-like language model of bytes, as a Flax module. It trains on the sources of Python's standard
# library. The step is Flax's own, and takes any Optax optimizer.


# %%
@partial(nnx.jit, donate_argnums=(0, 1))  # the new parameters and state take the memory of the old
def step(model, optimizer, tokens):
    loss, gradient = nnx.value_and_grad(lambda model: model.loss(tokens))(model)
    optimizer.update(model, gradient)
    return loss


trained_on, _ = text.split(text.standard_library())  # one file in ten is held out
corpus = text.read(trained_on)


def train(tx):
    """The model and the optimizer after a training, and the loss of every step."""
    model = Llama(CONFIG, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    windows = text.batches(corpus, size=16, length=trial.WINDOW, seed=0)
    losses = [step(model, optimizer, jnp.asarray(next(windows), jnp.int32)) for _ in range(STEPS)]
    return model, optimizer, np.array(losses)


# %% [markdown]
# Every optimizer of fimlens is a full Optax chain, so only its name changes. Alice has three sizes: the rank of its
# subspace, how many leading directions stay at a refresh, and the steps between refreshes. [G] (Gong et al., 2025,
# arXiv 2502.07752) has 128, 40 and 200 for layers 512 wide and 10,000 steps. We scale these to our width and steps.

# %%
OPTIMIZERS = {
    "Adam": optax.adam,
    "RACS": fl.racs,
    "Alice": partial(fl.alice, rank=16, leading=5, update_interval=max(STEPS // 20, 2)),
}

# %% [markdown]
# ## What goes where
#
# RACS and Alice are for the matrices of layers. Vectors and embeddings go to Adam, as in [G], and so does the output
# head unless `head=True`. Names decide this, so look at the result: `fl.routes` has, by path, the shape in which the
# method sees a leaf, or None if Adam has it.

# %%
params = nnx.to_pure_dict(nnx.state(Llama(CONFIG, rngs=nnx.Rngs(0)), nnx.Param))
for path, shape in fl.routes(params).items():
    print(f"{path:32}{'Adam' if shape is None else shape}")

# %% [markdown]
# Three options change this: `head=True`; `route`, which is a regular expression, a function or a tree of answers; and
# `axes`, for leaves of more than two axes.

# %%
ways = {
    "the rule": {},
    "head=True": {"head": True},
    'route="attention/"': {"route": "attention/"},
    "all of two axes": {"route": lambda path, leaf: leaf.ndim == 2},
}
for name, how in ways.items():
    shapes = list(fl.routes(params, **how).values())
    print(f"{name:20}{len(shapes) - shapes.count(None):3} leaves to the method, {shapes.count(None)} to Adam")

# %% [markdown]
# ## Curves
#
# Each optimizer has its own best learning rate, found by one rule for all. The rule tries three rates a factor of two
# apart. If the best is at an end, it tries further rates there. The held-out loss decides, in nats a byte. The
# schedule is [G]'s: up over a tenth of the steps, then down by a cosine. The curves show the training loss.

# %%
USUAL = {"Adam": 1e-2, "RACS": 0.08, "Alice": 0.04}


def best_run(name, make):
    """The run at the best rate, the rate, and the loss held out at every rate tried."""
    runs = {}

    def loss(power, seed):
        runs[power] = train(make(warmup_cosine(USUAL[name] * 2.0**power, STEPS)))
        return trial.evaluate(runs[power][0].weights, CONFIG)

    losses = tuned(loss, tries=TRIES, seeds=1)
    best = best_power(losses)
    tried = ", ".join(f"{USUAL[name] * 2.0**power:g}: {losses[power, seed]:.3f}" for power, seed in sorted(losses))
    print(f"{name:7}{losses[best, 0]:.3f} held out, at a rate of {USUAL[name] * 2.0**best:g}   (tried {tried})")
    return *runs[best], USUAL[name] * 2.0**best


runs = {name: best_run(name, make) for name, make in OPTIMIZERS.items()}

# %%
width = max(STEPS // 20, 5)


def smooth(losses):
    return np.convolve(losses, np.ones(width) / width, mode="valid")


curves = {name: smooth(losses) for name, (_, _, losses, _) in runs.items()}
plotting.curves(curves, x=f"step (means over {width})", y="training loss (nats per byte)")

# %% [markdown]
# This is one seed of one small model. It shows that all three train, but it cannot rank them. `fimlens compare`,
# below, is for that.
#
# ## Memory
#
# The state is an ordinary tree of arrays. Here it is for one 64 x 172 matrix, of which Adam keeps two more of its size:


# %%
def name_of(path):
    return jax.tree_util.keystr(path, simple=True, separator="/")


matrix = {"gate": jax.ShapeDtypeStruct((64, 172), jnp.float32)}
for name, direction in {"RACS": fl.scale_by_racs(), "Alice": fl.scale_by_alice(rank=16, leading=5)}.items():
    leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(direction.init, matrix))
    kept = [(name_of(path[1:]), leaf) for path, leaf in leaves if leaf.size > 2]
    print(f"{name}: {sum(leaf.size for _, leaf in kept)} numbers, and counters, for {math.prod(matrix['gate'].shape)} weights")
    for path, leaf in kept:
        print(f"    {path:44}{leaf.shape}")

# %% [markdown]
# Alice's are the subspace $U$, the average $\tilde Q$ by which $U$ is tracked, momentum and second moments of the
# projection $U^T G$, and the compensation's $p$. For the whole model, by group, in float32:

# %%
rows = memory.account(params, ["adam", "racs", "alice"], weight_dtype=jnp.float32, state_dtype=jnp.float32, rank=16)
rows = {f"{row.optimizer}, head on {row.head}": row.state for row in rows}
drawn = plotting.sheet(width=6.5, height=2.8)
axes, left = drawn.axes[0], np.zeros(len(rows))
for k, group in enumerate(memory.GROUPS):
    sizes = np.array([state[group] for state in rows.values()]) / 1e6
    axes.barh(
        list(rows), sizes, left=left, color=plotting.COLOURS[k], edgecolor="white", hatch=("", "//", "", "..")[k], label=group
    )
    left += sizes
axes.invert_yaxis()
axes.set(xlabel="optimizer state (MB)", title=f"{sum(x.size for x in jax.tree.leaves(params)) * 4 / 1e6:.2f} MB of weights")
axes.legend(frameon=False, fontsize=8)
drawn

# %% [markdown]
# RACS' own state is too small to be seen: nearly all is Adam's, for embedding and head. The larger the model, the
# larger is the share of matrices. This is [G]'s 1.3B model, in bfloat16 at rank 512.

# %%
billion = jax.eval_shape(partial(llama.init, llama.CONFIGS["llama-1b"]), jax.random.key(0))
for row in memory.account(billion, ["adam", "racs", "alice"], model="llama-1b"):
    states = sum(row.state.values()) / memory.GIB
    print(f"{row.optimizer:6}head on {row.head:6}{states:6.2f} GiB of state, {row.total:.2f} with the weights")

# %% [markdown]
# ## Time
#
# The time of an update beside that of the gradient, between refreshes, on this machine:

# %%
model, tokens = runs["Alice"][0], jnp.asarray(next(text.batches(corpus, size=16, length=trial.WINDOW, seed=1)), jnp.int32)
weights = model.weights
gradient_of = jax.jit(jax.grad(partial(llama.loss, CONFIG)))
gradient = gradient_of(weights, tokens)
print(f"{'gradient':9}{1e3 * least_seconds(gradient_of, weights, tokens):7.1f} ms")
for name, make in OPTIMIZERS.items():
    tx = make(1e-3)
    update = jax.jit(tx.update)
    _, state = update(gradient, jax.jit(tx.init)(weights), weights)
    print(f"{name:9}{1e3 * least_seconds(update, gradient, state, weights):7.1f} ms")

# %% [markdown]
# A refresh of Alice adds to that once in `update_interval` steps. `benchmarks/README.md` has these times for large
# matrices, with the share of the refresh.
#
# ## A mixture
#
# Layers need not all have the same optimizer. With `optax.partition` each part of the tree has a chain and a rate of
# its own. Here Alice has the attention, RACS the larger MLPs with almost no state, and Adam the rest. The rates are
# those found above.

# %%
rates = {name: rate for name, (_, _, _, rate) in runs.items()}


def part(path, leaf):
    name = name_of(path)
    return next((kind for kind in ("attention", "mlp") if f"/{kind}/" in name), "rest")


def mixture():
    schedules = {name: warmup_cosine(rate, STEPS) for name, rate in rates.items()}
    parts = {
        "attention": OPTIMIZERS["Alice"](schedules["Alice"]),
        "mlp": fl.racs(schedules["RACS"]),
        "rest": optax.adam(schedules["Adam"]),
    }
    return optax.partition(parts, lambda params: jax.tree_util.tree_map_with_path(part, params))


runs["mixture"] = (*train(mixture()), None)
print(f"{trial.evaluate(runs['mixture'][0].weights, CONFIG):.3f} held out")

# %%
curves = {name: smooth(losses) for name, (_, _, losses, _) in runs.items()}
plotting.curves(curves, x=f"step (means over {width})", y="training loss (nats per byte)")

# %% [markdown]
# The state of each, counted in the optimizers after training:

# %%
for name, (_, optimizer, _, _) in runs.items():
    state = jax.tree.leaves(nnx.state(optimizer, nnx.OptState))
    print(f"{name:8}{sum(leaf.nbytes for leaf in state) / 1e6:6.2f} MB in {len(state)} arrays")

# %% [markdown]
# If all parts have one rate, optimizers can be nested: `others` of one may be another. This direction has the same
# three parts.

# %%
inner = fl.matrices(fl.scale_by_racs(), route="mlp/")
nested = fl.matrices(fl.scale_by_alice(rank=16, leading=5), inner, route="attention/")
size = sum(leaf.nbytes for leaf in jax.tree.leaves(nested.init(params)))
print(f"{size / 1e6:.2f} MB")

# %% [markdown]
# ## On many devices
#
# State is placed like the parameters. `fl.state_partition_specs` says where each part goes before any array exists, for
# `jit` and for checkpoints. RACS' factors are split like their side of the matrix. Alice stacks its matrices of one
# shape, and spreads the stack over the devices. Under `jax.set_mesh` each device decomposes its own part.

# %%
mesh = AbstractMesh((2, 2), ("data", "fsdp"))
layers = {f"layer {k}": {"up": jax.ShapeDtypeStruct((64, 172), jnp.float32)} for k in range(4)}
for name, direction in {"RACS": fl.scale_by_racs(), "Alice": fl.scale_by_alice(rank=16, leading=5)}.items():
    specs = fl.state_partition_specs(direction, layers, jax.tree.map(lambda _: P("fsdp", None), layers), mesh=mesh)
    states = jax.tree.leaves(jax.eval_shape(direction.init, layers))
    is_spec = {"is_leaf": lambda x: isinstance(x, P)}
    print(f"{name}, weights lying {P('fsdp', None)}")
    seen = set()
    for (path, spec), leaf in zip(jax.tree_util.tree_leaves_with_path(specs, **is_spec), states, strict=True):
        kind = name_of(path[1:]).split("/layer")[0]
        if leaf.size > 2 and kind not in seen:
            seen.add(kind)
            print(f"    {kind:36}{leaf.shape!s:16}{spec}")

# %% [markdown]
# ## In earnest
#
# The loop above has no checkpoints, and runs on one device and one host. The package's own loop has all three:
#
# ```sh
# fimlens pretrain --model cpu-1m --optimizer racs --rate 0.08 --steps 400
# fimlens pretrain --model llama-60m --optimizer alice --rate 0.02 --option rank=128 --option leading=40 --mesh data=2,fsdp=4
# ```
#
# If it is killed, the same command continues from its last checkpoint to the same losses. To rank optimizers, use
#
# ```sh
# fimlens compare --optimizers adam racs alice --seeds 3 --tune
# ```
#
# All optimizers have the same start and the same batches, rates by the rule used here, and several seeds. The table has
# their losses, how many steps they need to reach the first one's loss, and their time and memory.

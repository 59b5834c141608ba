"""A user's program for a type checker, run by `make lint` and `make release`, which refuse exactly the calls marked wrong."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax  # type: ignore[import-untyped]

import fimlens as fl

params = {"kernel": jnp.ones((3, 4)), "bias": jnp.zeros(4)}


def loss(params: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
    return jnp.mean((x @ params["kernel"] + params["bias"]) ** 2)


schedule = optax.cosine_decay_schedule(1e-2, 100)
chosen: list[optax.GradientTransformation] = [
    fl.adam(1e-3, 0.9, 0.95),
    fl.adamw(learning_rate=1e-3, weight_decay=0.1),
    fl.adafactor(1e-2),
    fl.racs(schedule, weight_decay=1e-4, mask={"kernel": True, "bias": False}),
    fl.soap(jnp.float32(1e-3), update_interval=10, dtypes=fl.StateDtypes(momentum=jnp.bfloat16)),
    fl.alice(1e-2, rank=2, leading=1),
    fl.muon(2e-2, axes=fl.flax_axes, ns_steps=3),
    fl.monitor(fl.racs(1e-2), interval=10),
    fl.matrices(fl.scale_by_racs(), route="kernel"),
    fl.scale_by_structure(fl.Rotated(fl.Diagonal(), "LR"), update_interval=5),
]
state = chosen[0].init(params)
updates, state = chosen[0].update(params, state, params)
params = optax.apply_updates(params, updates)

fishers: dict[str, fl.Fisher] = fl.empirical_fisher(loss, params, [jnp.ones((8, 3))])
fisher: fl.Fisher = fishers["kernel"]
comparison: fl.Comparison = fl.compare({"adam": fl.Diagonal(), "soap": fl.Rotated(fl.Diagonal(), "LR")}, fisher)
estimates: fl.Estimates = fl.estimate([fl.Rows(), fl.Columns()], jnp.ones((16, 3, 4)), divergence=fl.LogDet())
solution: fl.Solution = fl.solve(fl.Kronecker(), fisher)
size: int = fl.state_size(fl.RowColumn(), (3, 4), average="fits")
readings: Mapping[str, float] = fl.readings(state)

fl.racs("fast")  # wrong
fl.adam([1e-3])  # wrong
fl.soap()  # wrong
fl.estimate([fl.Rows()], jnp.ones((16, 3, 4)), folds="eight")  # wrong
fl.compare(fl.Diagonal(), fisher)  # wrong
fl.solve("adam", fisher)  # wrong
fl.LowRank(fl.Diagonal(), rank="four")  # wrong
rank: str = fl.dimension(fl.Diagonal(), (3, 4))  # wrong

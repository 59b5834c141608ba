"""Which settings of `racs` train better, on a small byte-level language model.

    python benchmarks/defaults.py [--steps 300] [--seeds 2]

Every run has the same data order and initialisation for a seed, warm-up over a tenth of the steps, and a cosine to a tenth of
the peak rate; the figure is the mean loss in nats per byte over fixed windows of files that were not trained on.
"""

import argparse
import statistics
from functools import partial

import jax
import jax.numpy as jnp
import optax
from rich.console import Console
from rich.progress import track
from rich.table import Table

import fimlens as fl
from fimlens import llama, text

CONFIG = llama.Config(vocabulary=256, hidden=64, mlp=172, heads=4, layers=4)
WINDOW, BATCH = 65, 16


def train(make, steps: int, seed: int, rate: float) -> float:
    files = text.standard_library()
    held_out, trained_on = files[::10], [file for i, file in enumerate(files) if i % 10]
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, steps // 10, steps, rate / 10)
    tx, loss = make(schedule), partial(llama.loss, CONFIG)
    params = llama.init(CONFIG, jax.random.key(seed))

    @jax.jit
    def step(params, state, batch):
        value, slope = jax.value_and_grad(loss)(params, batch)
        updates, state = tx.update(slope, state, params)
        return optax.apply_updates(params, updates), state, value

    state = tx.init(params)
    batches = text.batches(text.read(trained_on), size=BATCH, length=WINDOW, seed=seed)
    for _ in range(steps):
        params, state, _ = step(params, state, jnp.asarray(next(batches), jnp.int32))
    windows = text.batches(text.read(held_out), size=64, length=WINDOW, seed=1234)
    return statistics.mean(float(jax.jit(loss)(params, jnp.asarray(next(windows), jnp.int32))) for _ in range(4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    runs = {f"optax.adamw, {rate}": (optax.adamw, rate) for rate in (3e-3, 1e-2)}
    for rate in (0.02, 0.06):
        for corrected in (True, False):
            runs[f"racs, {rate}, bias_correction={corrected}"] = (partial(fl.racs, bias_correction=corrected), rate)
    for factor in (0.05, 0.15, 0.5):
        runs[f"racs, 0.06, Adam's rate {factor} x"] = (
            lambda schedule, factor=factor: fl.racs(schedule, adam_learning_rate=lambda t: factor * schedule(t)),
            0.06,
        )
    table = Table("run", "held-out loss, median over seeds", "each")
    for name, (make, rate) in track(runs.items(), "runs"):
        losses = [train(make, options.steps, seed, rate) for seed in range(options.seeds)]
        table.add_row(name, f"{statistics.median(losses):.3f}", " ".join(f"{x:.3f}" for x in losses))
    Console().print(table)


if __name__ == "__main__":
    main()

"""Time, FLOPs and memory of a compiled step of every optimizer, beside optax.adam, on the matrices of LLaMA-60M.

    python benchmarks/step_cost.py [--json FILE] [--only NAME] [--layers 8] [--rounds 7] [--processor-time]

Each optimizer takes turns with optax.adam, so that a drift of the machine's speed affects both; the ratio is one of medians.
FLOPs, bytes and temporary memory are XLA's counts for the compiled step, which do not depend on the load. Optimizers with
refreshes have three figures: a step between refreshes (compiled without any), a step with a refresh, and their average over the
interval of K steps. Of these, K - 1 are of the first kind.
"""

import argparse
import json
import statistics
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from rich.console import Console
from rich.progress import track
from rich.table import Table

import fimlens as fl

HIDDEN, MLP = 512, 1376


def products() -> optax.GradientTransformation:
    """Take the fifteen products of Muon's five steps with each matrix, and nothing else: the least that its step costs."""

    def factor(G: jax.Array) -> jax.Array:
        X = G if G.shape[0] <= G.shape[1] else G.T
        for _ in range(5):
            A = X @ X.T
            X = (A @ A) @ X
        return X if G.shape[0] <= G.shape[1] else X.T

    return optax.stateless(lambda updates, params: jax.tree.map(factor, updates))


OPTIMIZERS = {
    "optax.sgd": (partial(optax.sgd, 1e-3), 1),
    "optax.adam": (partial(optax.adam, 1e-3), 1),
    "optax.adafactor": (partial(optax.adafactor, 1e-3), 1),
    "optax.lars": (partial(optax.lars, 1e-3), 1),
    "optax.lamb": (partial(optax.lamb, 1e-3), 1),
    "optax.contrib.muon": (partial(optax.contrib.muon, 1e-3), 1),
    "sgd": (partial(fl.sgd, 1e-3), 1),
    "adam": (partial(fl.adam, 1e-3), 1),
    "adamw": (partial(fl.adamw, 1e-3), 1),
    "adafactor": (partial(fl.adafactor, 1e-3), 1),
    "lars": (partial(fl.lars, 1e-3), 1),
    "lamb": (partial(fl.lamb, 1e-3), 1),
    "racs": (partial(fl.racs, 1e-3), 1),
    "muon": (partial(fl.muon, 1e-3), 1),
    "muon, products alone": (products, 1),
    "muon, exact": (partial(fl.muon, 1e-3, root="exact"), 1),
    "muon, polar-express": (partial(fl.muon, 1e-3, coefficients="polar-express"), 1),
    "normuon": (partial(fl.normuon, 1e-3), 1),
    "soap_muon": (partial(fl.soap_muon, 1e-3), 10),
    "swan": (partial(fl.swan, 1e-3), 1),
    "shampoo": (partial(fl.shampoo, 1e-3), 10),
    "osoap": (partial(fl.osoap, 1e-3), 10),
    "soap": (partial(fl.soap, 1e-3), 10),
    "kl_shampoo": (partial(fl.kl_shampoo, 1e-3), 10),
    "kl_soap": (partial(fl.kl_soap, 1e-3), 10),
    "sinkgd": (partial(fl.sinkgd, 1e-3), 1),
    "soap, eigh": (partial(fl.soap, 1e-3, refresh="eigh"), 10),
    "adadiag": (partial(fl.adadiag, 1e-3), 200),
    "adadiag_pp": (partial(fl.adadiag_pp, 1e-3), 200),
    "adafacdiag": (partial(fl.adafacdiag, 1e-3), 200),
    "optax.contrib.galore": (partial(optax.contrib.galore, 1e-3, rank=128), 200),
    "alice": (partial(fl.alice, 1e-3, rank=128, leading=40), 200),
    "alice0": (partial(fl.alice0, 1e-3, rank=128, leading=40), 200),
    "alice, unswitched": (partial(fl.alice, 1e-3, rank=128, leading=40, switch="none"), 200),
    "alice, uncompensated": (partial(fl.alice, 1e-3, rank=128, leading=40, compensation="none"), 200),
    "galore": (partial(fl.galore, 1e-3, rank=128), 200),
    "fira": (partial(fl.fira, 1e-3, rank=128), 200),
    "apollo": (partial(fl.apollo, 1e-3, rank=128), 200),
    "low_rank_soap": (partial(fl.low_rank_soap, 1e-3, rank=128, leading=40), 200),
}


def matrices(layers: int) -> dict:
    """Draw the matrices of the layers: attention and SwiGLU."""
    shapes = dict.fromkeys(("query", "key", "value", "output"), (HIDDEN, HIDDEN))
    shapes |= {"gate": (HIDDEN, MLP), "up": (HIDDEN, MLP), "down": (MLP, HIDDEN)}
    keys = iter(jax.random.split(jax.random.key(0), layers * len(shapes)))
    return {f"layer {i}": {k: jax.random.normal(next(keys), s) for k, s in shapes.items()} for i in range(layers)}


class Stepper:
    """A compiled step. Each call makes one step and returns its seconds; weights and state are donated, as in a training."""

    clock = staticmethod(time.perf_counter)

    def __init__(self, tx: optax.GradientTransformation, params: dict) -> None:
        self.gradients = jax.tree.map(lambda x: 0.01 * x, params)
        self.params, self.state = jax.tree.map(jnp.copy, params), jax.jit(tx.init)(params)

        def step(G: dict, state: object, W: dict) -> tuple[dict, object]:
            updates, state = tx.update(G, state, W)
            return optax.apply_updates(W, updates), state

        start = time.perf_counter()
        self.compiled = jax.jit(step, donate_argnums=(1, 2)).lower(self.gradients, self.state, self.params).compile()
        self.compile_seconds = time.perf_counter() - start

    def __call__(self) -> float:
        start = self.clock()
        self.params, self.state = jax.block_until_ready(self.compiled(self.gradients, self.state, self.params))
        return self.clock() - start


def measure(name: str, adam: Stepper, params: dict, rounds: int) -> dict:
    """Measure an optimizer: a step between refreshes, a step with a refresh, and their average over the interval."""
    make, interval = OPTIMIZERS[name]
    whole = Stepper(make(), params)
    between, refresh = whole, None
    if interval > 1:
        keyword = "update_proj_gap" if name.startswith("optax.") else "update_interval"
        between = whole if keyword == "update_proj_gap" else Stepper(make(**{keyword: None}), params)
        refreshing = Stepper(make(**{keyword: 5}), params)
        refreshing()  # the first step starts the bases, which costs more than a later refresh
        # Of 15 steps with an interval of 5, the three slowest are those with a refresh.
        refresh = statistics.median(sorted(refreshing() for _ in range(15))[-3:])
    between()
    own, beside = [], []
    for _ in range(rounds):
        beside.append(adam())
        own.append(between())
    plain = statistics.median(own)
    cost, memory = between.compiled.cost_analysis(), between.compiled.memory_analysis()
    size = sum(x.size for x in jax.tree.leaves(params))
    return {
        "name": name,
        "step": plain,
        "turn": refresh,
        "interval": interval,
        "between": plain / statistics.median(beside),
        "ratio": (((interval - 1) * plain + refresh) / interval if refresh else plain) / statistics.median(beside),
        "compile": whole.compile_seconds,
        "flops": cost["flops"],
        "bytes": cost["bytes accessed"],
        "temporary": memory.temp_size_in_bytes,
        "state": sum(x.size for x in jax.tree.leaves(whole.state)) / size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", action="append", choices=OPTIMIZERS)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--processor-time", action="store_true", help="for one core of a machine that others use too")
    options = parser.parse_args()
    if options.processor_time:
        Stepper.clock = staticmethod(time.process_time)
    params = matrices(options.layers)
    adam = Stepper(optax.adam(1e-3), params)
    adam()
    names = options.only or list(OPTIMIZERS)
    rows = []
    for name in track(names, "optimizers"):
        rows.append(measure(name, adam, params, options.rounds))
        if options.json:  # after every row, since decompositions make a whole run long
            options.json.write_text(json.dumps(rows, indent=2) + "\n")
    cost, memory = adam.compiled.cost_analysis(), adam.compiled.memory_analysis()
    headings = (
        "",
        "step, ms",
        "x adam",
        "refresh, ms",
        "amortised, x",
        "compile, s",
        "x adam",
        "flops, x",
        "bytes, x",
        "temporary, MB",
        "state",
    )
    table = Table(
        *headings, title=f"{options.layers} layers of LLaMA-60M; x is relative to optax.adam; state is in numbers per parameter"
    )
    for row in rows:
        table.add_row(
            row["name"],
            f"{1e3 * row['step']:.0f}",
            f"{row['between']:.2f}",
            "" if row["turn"] is None else f"{1e3 * row['turn']:.0f} / {row['interval']}",
            f"{row['ratio']:.2f}",
            f"{row['compile']:.1f}",
            f"{row['compile'] / adam.compile_seconds:.1f}",
            f"{row['flops'] / cost['flops']:.2f}",
            f"{row['bytes'] / cost['bytes accessed']:.2f}",
            f"{row['temporary'] / 1e6:.0f}",
            f"{row['state']:.4f}",
        )
    Console().print(table)
    Console().print(f"optax.adam: temporary {memory.temp_size_in_bytes / 1e6:.0f} MB")


if __name__ == "__main__":
    main()

"""The optimizer's share of a training step: of the FLOPs and bytes that XLA counts, or of the measured time.

    python benchmarks/optimizer_share.py [--model llama-60m] [--batch 512] [--length 256] [--json FILE]
    python benchmarks/optimizer_share.py --timed --dtype bfloat16 --accumulate 4  # on an accelerator

Without --timed nothing runs: gradient and update are compiled for this machine from shapes alone. The update is one between
refreshes. The last column has the FLOPs of products and decompositions in the traced update (fimlens/costs/flops.py), with
refreshes averaged over the default interval. XLA counts the body of a loop once, so it counts one of the five sweeps of RACS;
the trace counts all five.

With --timed, the gradient and the update are run and timed alone (fimlens/pretrain/timing.py). The text is bytes, whatever the
model's vocabulary is.
"""

import argparse
import inspect
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fimlens.costs.flops import step_flops
from fimlens.experiments.comparison import Entry, make_entries, plan_for
from fimlens.optimizers import OPTIMIZERS
from fimlens.pretrain.data import read_files
from fimlens.pretrain.model import CONFIGS, initial_weights
from fimlens.pretrain.plan import Plan
from fimlens.pretrain.step import make_gradient
from fimlens.pretrain.timing import measure_step


def compiled_cost(call, *shapes) -> tuple[float, float]:
    """Return the FLOPs and bytes of a compiled call, by XLA's count."""
    cost = jax.jit(call).lower(*shapes).compile().cost_analysis()
    return cost["flops"], cost["bytes accessed"]


def counted(entries: list[Entry], base: Plan) -> list[dict[str, str]]:
    """Return a row for each optimizer: XLA's counts, and the formula."""
    base = replace(base, accumulate=1)  # XLA would count the loop over the parts of a batch once
    weights = jax.eval_shape(lambda: initial_weights(base.config, jax.random.key(0), dtype=base.weight_dtype))
    tokens = jax.ShapeDtypeStruct((1, base.batch, base.length + 1), jnp.int32)
    gradient = compiled_cost(make_gradient(base), weights, tokens)
    matrices = [leaf for leaf in jax.tree.leaves(weights["layers"]) if leaf.ndim == 2]
    rows = []
    for each in track(entries, "compiling"):
        make = partial(OPTIMIZERS[each.optimizer], 1e-3, **each.options)
        refreshes = "update_interval" in inspect.signature(make).parameters
        tx = make(update_interval=None) if refreshes else make()
        flops, moved = compiled_cost(tx.update, weights, jax.eval_shape(tx.init, weights), weights)
        rows.append(
            {
                "optimizer": each.name,
                "gradient, TFLOP": f"{gradient[0] / 1e12:.3g}",
                "update, GFLOP": f"{flops / 1e9:.3g}",
                "share of FLOPs": f"{flops / (flops + gradient[0]):.3%}",
                "gradient, GB": f"{gradient[1] / 1e9:.3g}",
                "update, GB": f"{moved / 1e9:.3g}",
                "share of bytes": f"{moved / (moved + gradient[1]):.3%}",
                "traced, GFLOP": f"{step_flops(make(), matrices) / 1e9:.3g}",
            }
        )
    return rows


def timed(entries: list[Entry], base: Plan) -> list[dict[str, str]]:
    """Return a row for each optimizer: measured times and shares."""
    corpus, rows = read_files(), []
    for each in track(entries, "timing"):
        cost = measure_step(plan_for(each, base, 0, 0), corpus)
        rows.append(
            {
                "optimizer": each.name,
                "gradient, ms": f"{1e3 * cost.gradient:.1f}",
                "optimizer, ms": f"{1e3 * cost.optimizer:.2f}",
                "share": f"{cost.share:.1%}",
                "state, MB": f"{cost.state / 1e6:.1f}",
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizers", nargs="+", default=["adam", "racs", "alice"])
    parser.add_argument("--timed", action="store_true")
    parser.add_argument("--model", choices=CONFIGS, default="llama-60m")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument(
        "--steps", type=int, default=4000, help="steps of the whole training, which determine the refresh interval of --timed"
    )
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--accumulate", type=int, default=1, help="parts of a batch, for --timed")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    base = Plan(
        given.model, steps=given.steps, batch=given.batch, length=given.length, dtype=given.dtype, accumulate=given.accumulate
    )
    rows = (timed if given.timed else counted)(make_entries(given.optimizers, base, {}), base)
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*row.values())
    Console(width=140).print(table)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()

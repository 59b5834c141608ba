"""The optimizer's share of a training step, by the FLOPs and bytes that XLA counts in the compiled gradient and update.

    python benchmarks/optimizer_share.py [--model llama-60m] [--batch 512] [--length 256] [--json FILE]

Nothing is run: gradient and update are compiled for this machine from shapes alone. Updates are those between refreshes; the
last column has what products and decompositions take by formula (fimlens/step_flops.py), refreshes shared out. XLA counts the
body of a loop once: RACS is counted with one of its five sweeps, and the other four are in its formula.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.progress import track
from rich.table import Table

import fimlens
from fimlens.pretrain.contest import entries
from fimlens.pretrain.model import CONFIGS, first_weights
from fimlens.pretrain.plan import Plan
from fimlens.pretrain.step import gradient_of
from fimlens.step_flops import REFRESH, step_flops

NAMES = ["adam", "racs", "alice"]


def counted(call, *shapes) -> tuple[float, float]:
    """FLOPs and bytes of a compiled call."""
    cost = jax.jit(call).lower(*shapes).compile().cost_analysis()
    return cost["flops"], cost["bytes accessed"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=CONFIGS, default="llama-60m")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    base = Plan(model=options.model, batch=options.batch, length=options.length, steps=10_000)
    weights = jax.eval_shape(lambda: first_weights(base.config, jax.random.key(0)))
    tokens = jax.ShapeDtypeStruct((1, options.batch, options.length + 1), jnp.int32)
    gradient = counted(gradient_of(base), weights, tokens)
    table = Table("optimizer", "update, GFLOP", "share of FLOPs", "update, GB", "share of bytes", "by formula, GFLOP")
    rows = []
    for each in track(entries(NAMES, base, {}), "optimizers"):
        between = {"update_interval": None} if each.optimizer in REFRESH else {}
        tx = getattr(fimlens, each.optimizer)(1e-3, **each.options | between)
        update = counted(tx.update, weights, jax.eval_shape(tx.init, weights), weights)
        matrices = [leaf for leaf in jax.tree.leaves(weights["layers"]) if leaf.ndim == 2]
        rank = each.options.get("rank", 0)
        formula = step_flops(each.optimizer, matrices, rank)
        rows.append({"optimizer": each.name, "update": update, "gradient": gradient, "by formula": formula})
        shares = [own / (own + alone) for own, alone in zip(update, gradient, strict=True)]
        table.add_row(
            each.name,
            f"{update[0] / 1e9:.2f}",
            f"{shares[0]:.3%}",
            f"{update[1] / 1e9:.2f}",
            f"{shares[1]:.3%}",
            f"{formula / 1e9:.2f}",
        )
    Console().print(table)
    Console().print(f"The gradient: {gradient[0] / 1e12:.2f} TFLOP, {gradient[1] / 1e9:.0f} GB.")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()

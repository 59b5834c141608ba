"""What `fl.monitor` adds to a step: between readings, at a reading, and as a share of a step.

    python benchmarks/monitor_cost.py [--model cpu-1m] [--optimizers adam soap alice] [--interval 100]

Gradient and updates take turns, and the least time of each is printed: that of the call which other processes disturbed least.
A step without the monitor is the gradient and the update alone.
"""

import argparse
from dataclasses import replace

import jax
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fimlens.experiments.comparison import make_entries, plan_for
from fimlens.pretrain.data import Batches, read_files
from fimlens.pretrain.mesh import make_mesh
from fimlens.pretrain.model import CONFIGS
from fimlens.pretrain.plan import Plan
from fimlens.pretrain.step import initial_state, load_batch, make_gradient, make_update
from fimlens.pretrain.timing import timed

NEVER = 10**9  # steps between readings, of which none is reached


def milliseconds(plan: Plan, batch: jax.Array, rounds: int) -> dict[str, float]:
    """Return the least times of the gradient and of the update without the monitor, between readings and with one."""
    plans = {"alone": plan, "between": replace(plan, monitor=NEVER), "reading": replace(plan, monitor=1)}
    updates, states = {}, {}
    for name, each in plans.items():
        tx = each.transform()
        states[name], updates[name] = initial_state(each, tx), jax.jit(make_update(tx), donate_argnums=0)
    gradient = jax.jit(make_gradient(plan))
    given = gradient(states["alone"].weights, batch)
    seconds = {name: [] for name in ("gradient", *plans)}
    for k in range(rounds + 1):
        spent, _ = timed(gradient, states["alone"].weights, batch)
        times = {"gradient": spent}
        for name, update in updates.items():
            times[name], (states[name], _) = timed(update, states[name], *given)
        if k:  # the first round compiles, and starts the bases
            for name, spent in times.items():
                seconds[name].append(spent)
    return {name: 1e3 * min(each) for name, each in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizers", nargs="+", default=["adam", "soap", "alice"])
    parser.add_argument("--model", choices=CONFIGS, default="cpu-1m")
    parser.add_argument("--interval", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=25)
    given = parser.parse_args()
    base = Plan(given.model)
    batch = load_batch(base, Batches(read_files().train, batch=base.batch, length=base.length, seed=0), make_mesh(), 0)
    columns = (
        "gradient, ms",
        "update, ms",
        "between readings, ms",
        "with a reading, ms",
        f"share at interval {given.interval}",
    )
    table = Table("optimizer", *columns)
    for each in track(make_entries(given.optimizers, base, {}), "timing"):
        ms = milliseconds(plan_for(each, base, 0, 0), batch, given.rounds)
        between, reading = (ms[name] - ms["alone"] for name in ("between", "reading"))
        share = (between + (reading - between) / given.interval) / (ms["gradient"] + ms["alone"])
        table.add_row(each.name, *(f"{ms[name]:.1f}" for name in ("gradient", "alone", "between", "reading")), f"{share:.1%}")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()

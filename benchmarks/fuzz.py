"""Hostile gradients: how often an update is not finite, over a thousand times its usual size, or frozen.

    python benchmarks/fuzz.py [NAME ...] [--sequences 146] [--dtype float32] [--kind sparse] [--json FILE]

Every optimizer meets the same sequences of gradients of one matrix, mapped by `jax.vmap`: `BURST` gradients of a hostile kind,
and then `RECOVERY` Gaussian ones. Bases are refreshed every third step. Half of the sequences have an ordinary scale, 1e-3 to
10, and the others any scale from 1e-38 to 1e30, as far as the dtype has it. By default there are 100,000 sequences, which take
about five minutes on two cores.

- not finite: an entry of an update, or of the last state.
- large: an entry of an update is over a thousand times the usual size, the median over Gaussian gradients of an ordinary scale
  of an update's largest entry. The updates of `sgd` are the gradients, so they have no usual size.
- frozen: after the recovery no entry reaches a thousandth of the usual size. This counts at an ordinary scale alone, since eps
  and remembered squares rightly stop updates at others.

Each line of the file is one optimizer, dtype and kind. A second run continues the file, and the table is of all its lines.
"""

import argparse
import inspect
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from fimlens._records import add_records, known_records
from fimlens.optimizers import OPTIMIZERS

BURST, RECOVERY = 15, 21
SHAPE = (8, 12)
DTYPES = ("float32", "bfloat16", "float16")
SIZES = {"rank": 3, "leading": 1, "update_interval": 3}
SCALES = {"ordinary": (-3.0, 1.0), "any": (-38.0, 30.0)}  # powers of ten
COUNTS = ("not finite", "large", "frozen")

Kind = Callable[[jax.Array, tuple[int, int, int]], jax.Array]


def sparse(key: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """Nine entries of ten are zero."""
    entries, kept = jax.random.split(key)
    return jax.random.normal(entries, shape) * jax.random.bernoulli(kept, 0.1, shape)


def few_tokens(key: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """Products of four tokens' inputs, nine of ten zero as after a ReLU, and their errors."""
    (steps, m, n), (left, right) = shape, jax.random.split(key)
    return sparse(left, (steps, m, 4)) @ jax.random.normal(right, (steps, 4, n))


def of_rank_one(key: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """Another matrix of rank one at each step."""
    (steps, m, n), (left, right) = shape, jax.random.split(key)
    return jax.random.normal(left, (steps, m, 1)) * jax.random.normal(right, (steps, 1, n))


def repeated(key: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """One gradient again and again, and then another: the basis turns at once."""
    two = jax.random.normal(key, (2, *shape[1:]))
    return two[(jnp.arange(shape[0]) >= shape[0] // 2).astype(int)]


def heavy_tailed(key: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """Student's t with two degrees of freedom."""
    return jax.random.t(key, 2.0, shape)


def log_normal(key: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """Log-normal entries of a spread of two, with random signs."""
    size, sign = jax.random.split(key)
    return jnp.exp(2 * jax.random.normal(size, shape)) * jax.random.rademacher(sign, shape)


def one_direction(key: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """One direction a hundred times the rest."""
    fixed, rest = jax.random.split(key)
    return 100 * of_rank_one(fixed, (1, *shape[1:])) + jax.random.normal(rest, shape)


def flipped(key: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """One gradient with a random sign at each step."""
    fixed, sign = jax.random.split(key)
    return jax.random.normal(fixed, shape[1:]) * jax.random.rademacher(sign, (shape[0], 1, 1))


def uneven_steps(key: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """Gaussian gradients, and one step of three up to 1e-12 times as large as the others."""
    entries, which, size = jax.random.split(key, 3)
    tiny = jax.random.bernoulli(which, 0.3, (shape[0], 1, 1))
    return jax.random.normal(entries, shape) * jnp.where(tiny, 10 ** jax.random.uniform(size, tiny.shape, minval=-12), 1)


def subnormal(key: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """Gradients of 1e-40."""
    return jax.random.normal(key, shape) * 1e-40


KINDS: dict[str, Kind] = {
    "gaussian": jax.random.normal,
    **{
        kind.__name__.replace("_", " "): kind
        for kind in (
            sparse, few_tokens, of_rank_one, repeated, heavy_tailed, log_normal, one_direction, flipped, uneven_steps,
            subnormal,
        )
    },
}  # fmt: skip


def gradients(kind: str, dtype: str, scales: str, count: int) -> jax.Array:
    """Draw `count` sequences of a kind, cast to a dtype within its range."""
    limits, (low, high) = jnp.finfo(dtype), np.array(SCALES[scales])
    low, high = (np.clip(p, np.log10(limits.tiny), np.log10(float(limits.max))) for p in (low, high))

    def one(key: jax.Array) -> jax.Array:
        burst, recovery, scale = jax.random.split(key, 3)
        hostile = KINDS[kind](burst, (BURST, *SHAPE))
        ordinary = jax.random.normal(recovery, (RECOVERY, *SHAPE))
        return jnp.concatenate([hostile, ordinary]) * 10 ** jax.random.uniform(scale, minval=low, maxval=high)

    G = jax.vmap(one)(jax.random.split(jax.random.key(list(KINDS).index(kind)), count))
    return jnp.clip(G, float(limits.min), float(limits.max)).astype(dtype)


def sizes_of_updates(name: str, dtype: str) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    """Return the program that maps sequences of gradients to each update's largest entry, NaN if it is not finite.

    Its second result says of each sequence whether the last state is finite.
    """
    make = OPTIMIZERS[name]
    tx = make(1.0, **{size: value for size, value in SIZES.items() if size in inspect.signature(make).parameters})
    weights = jax.random.normal(jax.random.key(0), SHAPE).astype(dtype)

    def sizes(sequence: jax.Array) -> tuple[jax.Array, jax.Array]:
        def step(state: Any, G: jax.Array) -> tuple[Any, jax.Array]:
            update, state = tx.update(G, state, weights)
            largest = jnp.abs(update.astype(jnp.float32)).max()
            return state, jnp.where(jnp.isfinite(largest), largest, jnp.nan)

        state, largest = jax.lax.scan(step, tx.init(weights), sequence)
        floating = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
        return largest, jnp.stack([jnp.isfinite(x).all() for x in floating]).all() if floating else jnp.bool(True)

    return jax.jit(jax.vmap(sizes))


def usual_size(name: str, dtype: str, program: Callable, count: int) -> float:
    """Return the median over Gaussian gradients of an update's largest entry."""
    largest, _ = program(gradients("gaussian", dtype, "ordinary", count))
    return np.inf if name == "sgd" else float(np.nanmedian(largest))


def counted(program: Callable, usual: float, kind: str, dtype: str, scales: str, count: int) -> dict[str, float]:
    """Count what went wrong in the sequences of a kind, and return the largest entry of all, over the usual size."""
    largest, sound = map(np.asarray, program(gradients(kind, dtype, scales, count)))
    finite = np.isfinite(largest).all(1) & sound
    rises = np.nan_to_num(largest).max(1) / usual
    frozen = finite & (largest[:, -1] < usual / 1000) & (scales == "ordinary") & np.isfinite(usual)
    counts = dict(zip(COUNTS, map(int, map(np.sum, (~finite, rises > 1000, frozen))), strict=True))
    return {"sequences": count, **counts, "largest": float(f"{rises.max():.3g}")}


def fuzz(
    names: Iterable[str],
    dtypes: Iterable[str],
    kinds: Iterable[str],
    count: int,
    done: Collection = (),
    program_of: Callable[[str, str], Callable] = sizes_of_updates,
) -> Iterable[dict]:
    """Yield one line for each optimizer, dtype and kind that is not done."""
    for name in names:
        for dtype in dtypes:
            left = [kind for kind in kinds if (name, dtype, kind) not in done]
            if not left:
                continue
            program = program_of(name, dtype)
            usual = usual_size(name, dtype, program, count // 2)
            for kind in left:
                each = {scales: counted(program, usual, kind, dtype, scales, count // 2) for scales in SCALES}
                yield {"optimizer": name, "dtype": dtype, "kind": kind, "usual": usual, **each}


def table(lines: list[dict]) -> Table:
    """Sum the counts of each optimizer and dtype."""
    shown = Table(
        "optimizer", "dtype", *(f"{scales}: {what}" for scales in SCALES for what in ("sequences", *COUNTS, "largest"))
    )
    for name, dtype in dict.fromkeys((line["optimizer"], line["dtype"]) for line in lines):
        own = [line for line in lines if (line["optimizer"], line["dtype"]) == (name, dtype)]
        row = []
        for scales in SCALES:
            row += [sum(line[scales][what] for line in own) for what in ("sequences", *COUNTS)]
            row.append(max(line[scales]["largest"] for line in own))
        shown.add_row(name, dtype, *(f"{x:.3g}" if isinstance(x, float) else str(x) for x in row))
    return shown


def main(
    optimizers: Iterable[str] = OPTIMIZERS,
    program_of: Callable[[str, str], Callable] = sizes_of_updates,
    dtypes: Iterable[str] = DTYPES,
    description: str | None = __doc__,
) -> None:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(optimizers), metavar="NAME")
    parser.add_argument("--sequences", type=int, default=146, help="of each optimizer, dtype and kind; half at any scale")
    parser.add_argument("--dtype", nargs="*", default=dtypes, choices=DTYPES)
    parser.add_argument("--kind", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--json", type=Path, help="a file of JSON lines to continue")
    options = parser.parse_args()
    lines = known_records(options.json) if options.json else []
    done = {(line["optimizer"], line["dtype"], line["kind"]) for line in lines}
    found = fuzz(options.names, options.dtype, options.kind, options.sequences, done, program_of)
    for line in track(found, "fuzz", total=len(options.names) * len(options.dtype) * len(options.kind) - len(done)):
        lines.append(line)
        if options.json:
            add_records(options.json, line)
    Console(width=200).print(table(lines))


if __name__ == "__main__":
    main()

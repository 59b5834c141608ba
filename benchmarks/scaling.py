"""Time and memory of fits and gaps from the sample form of a Fisher.

    python benchmarks/scaling.py [--json FILE] [--only NAME] [--runs 3]

The first part has 256 gradients of 512 x 512 in float32. It measures fit and gap of every structure, ||F||^2, the growth with
the number of gradients, and the peak memory of the process. The second part has 64 gradients of 32 x 32 in float64. It compares
the nearest Kronecker product with an independent computation, NumPy's SVD of the rearranged F (Van Loan and Pitsianis, 1993).
`--only NAME` fits one structure alone, so that the peak memory is its own.
"""

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import typer
from rich.console import Console
from rich.table import Column, Table

import fimlens as fl

D, M, S = fl.Diagonal(), fl.Marginals(), fl.GeometricMarginals()
SPECTRA = [D, fl.Rows(), fl.Columns(), fl.Scalar(), fl.RowColumn(), M, S]
ROTATIONS = [fl.Rotated(*given) for given in ((D, "L"), (D, "R"), (D, "LR"), (fl.Rows(), "L"), (S, "LR"), (M, "LR"))]
STRUCTURES = [*SPECTRA, *ROTATIONS, fl.LowRank(D, 64), fl.Kronecker(), fl.DiagonalKronecker()]


def gradients(N: int, m: int, n: int, rank: int, seed: int = 0) -> jax.Array:
    """Draw gradients P Z_k Q plus noise. All share P and Q, so that rows and columns are correlated."""
    p, q, keys = jax.random.split(jax.random.key(seed), 3)
    P, Q = jax.random.normal(p, (m, rank)), jax.random.normal(q, (rank, n))

    def one(key: jax.Array) -> jax.Array:
        z, noise = jax.random.split(key)
        return P @ jax.random.normal(z, (rank, rank)) @ Q / rank + 0.3 * jax.random.normal(noise, (m, n))

    # One gradient at a time: vmap would hold the intermediate products of all of them.
    return jax.lax.map(one, jax.random.split(keys, N))


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that a call takes, and its result."""
    start = time.perf_counter()
    out = jax.block_until_ready(call())
    return time.perf_counter() - start, out


def least(call: Callable[[], Any], runs: int = 3) -> float:
    """Return the shortest time of several runs: on a shared machine, the one that others disturbed least."""
    return min(timed(call)[0] for _ in range(runs))


def peak() -> float:
    """Return the peak of the process's resident memory so far, in GB."""
    # Linux reports KiB, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def large(structures: list[fl.Structure], runs: int) -> dict:
    """Measure the first part, on matrices of 512 x 512."""
    G = jax.block_until_ready(jax.jit(gradients, static_argnums=(0, 1, 2, 3))(256, 512, 512, 16))
    fisher = fl.Fisher.from_gradients(G)
    out: dict = {"GB before the first fit": peak(), "families": {}, "statistics at N = 64, 128, 256": {}}
    out["norm_squared"] = [timed(lambda: fisher.norm_squared)[0], least(lambda: fisher.norm_squared)]
    for s in structures:
        first, member = timed(partial(fl.fit, s, fisher))
        row = {"fit, first": first, "fit": least(partial(fl.fit, s, fisher), runs)}
        row["gap, first"], gap = timed(partial(fl.gap, s, member, fisher))
        row |= {"gap": least(partial(fl.gap, s, member, fisher), runs), "relative gap": float(gap.relative), "GB": peak()}
        out["families"][str(s)] = row
    out["GB"] = peak()
    if len(structures) > 1:
        for s in (D, fl.Rotated(D, "LR"), fl.Kronecker()):
            stats, frame = jax.jit(s.stats), s.frame(512, 512)
            seconds = []
            for few in (fl.Fisher.from_gradients(G[:N]) for N in (64, 128, 256)):
                timed(partial(stats, few, frame))  # compiles
                seconds.append(least(partial(stats, few, frame)))
            out["statistics at N = 64, 128, 256"][str(s)] = seconds
    return out


def beside_svd(m: int = 32, N: int = 64, runs: int = 7) -> dict:
    """Measure the second part: the fit beside NumPy's SVD, which shares no code with the package."""
    with jax.enable_x64(True):
        G = np.asarray(gradients(N, m, m, 8, seed=1))
        fisher, g = fl.Fisher.from_gradients(G), G.reshape(N, -1)

        def rearranged_svd() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            R = (g.T @ g / N).reshape(m, m, m, m).transpose(0, 2, 1, 3).reshape(m * m, m * m)  # [(i, k), (j, l)] = E[G_ij G_kl]
            U, s, Vt = np.linalg.svd(R)
            return s, s[0] * U[:, 0].reshape(m, m), Vt[0].reshape(m, m)

        first, member = timed(partial(fl.fit, fl.Kronecker(), fisher))
        ours = statistics.median(timed(partial(fl.fit, fl.Kronecker(), fisher))[0] for _ in range(runs))
        svd = statistics.median(timed(rearranged_svd)[0] for _ in range(3))
        s, B, A = rearranged_svd()
        product, best = np.kron(A, B), np.sum(s[1:] ** 2)  # the signs of the singular vectors cancel in the product
        difference = np.linalg.norm(np.asarray(fl.Kronecker().dense(member)) - product) / np.linalg.norm(product)
        gap = float(fl.gap(fl.Kronecker(), member, fisher).total) / best - 1
    return {"fit, first": first, "fit": ours, "SVD": svd, "ratio": svd / ours, "difference": difference, "gap difference": gap}


def main(json_file: Path = typer.Option(None, "--json"), only: str = typer.Option(None), runs: int = 3) -> None:  # noqa: B008
    out = large([s for s in STRUCTURES if only in (None, str(s))], runs)
    label = Column("512 x 512, N = 256", no_wrap=True)
    table = Table(label, "fit, first", "fit", "gap, first", "gap", "relative gap", "peak so far, GB")
    for name, row in out["families"].items():
        table.add_row(name, *(f"{value:.4f}" if "relative" in key else f"{value:.2f}" for key, value in row.items()))
    for name, seconds in out["statistics at N = 64, 128, 256"].items():
        table.add_row(f"statistics of {name}", "at N = 64, 128, 256:", *(f"{value:.3f}" for value in seconds))
    console = Console(width=110)
    console.print(table, f"Times are in seconds. The first call compiles; the other time is the least of {runs} more calls.")
    console.print("||F||^2 takes {:.2f} s, and {:.1e} s when it is asked for again.".format(*out["norm_squared"]))
    console.print(f"Peak {out['GB']:.2f} GB, of which {out['GB before the first fit']:.2f} before the first fit.")
    if only is None:
        out["32 x 32, N = 64"] = small = beside_svd()
        console.print("32 x 32:", ", ".join(f"{key} {value:.2g}" for key, value in small.items()))
    if json_file:
        json_file.write_text(json.dumps(out, indent=1))


if __name__ == "__main__":
    typer.run(main)

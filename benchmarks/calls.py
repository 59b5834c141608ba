"""How far a reader has to walk: calls into fimlens, and changes of file between them, in one update of an optimizer.

The update of one 4 x 6 matrix is traced (`jax.make_jaxpr`), and every call of a function of fimlens is counted, as
sys.setprofile reports it. JAX caches what it has traced, so the caches are emptied before each optimizer.

    python benchmarks/calls.py [name ...]                        # this checkout
    PYTHONPATH=../other python benchmarks/calls.py               # another one

At c785b48, before the package was divided into rooms, adam had 155 calls and 56 changes of file, racs 244 and
74, and soap 416 and 130. The numbers of alice were 651 and 222, those of low_rank_soap 892 and 282.
"""

import os
import sys
from collections.abc import Callable
from itertools import pairwise

import jax
import jax.numpy as jnp
import optax

import fimlens as fl

PACKAGE = os.path.dirname(fl.__file__) + os.sep
OPTIMIZERS = {
    "adam": lambda: fl.adam(1e-3),
    "racs": lambda: fl.racs(0.02),
    "soap": lambda: fl.soap(3e-3),
    "alice": lambda: fl.alice(0.02, rank=2, leading=1),
    "low_rank_soap": lambda: fl.low_rank_soap(0.02, rank=2, leading=1),
}


def calls(make: Callable[[], optax.GradientTransformation]) -> list[tuple[str, str]]:
    """Return the file and the name of each function of fimlens that one traced update calls, in order."""
    jax.clear_caches()
    params = {"w": jnp.ones((4, 6))}
    tx = make()
    state = tx.init(params)
    found = []

    def record(frame, event, _):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE):
            found.append((code.co_filename, code.co_qualname))

    sys.setprofile(record)
    try:
        jax.make_jaxpr(tx.update)(params, state, params)
    finally:
        sys.setprofile(None)
    return found


def main(names: list[str]) -> None:
    print("| optimizer | calls | changes of file | functions | files |\n|---|---|---|---|---|")
    for name in names or OPTIMIZERS:
        found = calls(OPTIMIZERS[name])
        files = [file for file, _ in found]
        changes = sum(before != after for before, after in pairwise(files))
        print(f"| {name} | {len(found)} | {changes} | {len(set(found))} | {len(set(files))} |")


if __name__ == "__main__":
    main(sys.argv[1:])

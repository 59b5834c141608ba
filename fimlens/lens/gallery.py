"""A picture of the families: one exact Fisher, and the closed form of each. Run as python -m fimlens.lens.gallery FILE."""

import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from fimlens.fisher.fisher import Fisher
from fimlens.lens.compare import STRUCTURES
from fimlens.plotting import Matrix, portraits
from fimlens.solver.fit import fit, gap
from fimlens.structures import Blocks, Dense, Diagonal, LowRank

SHAPE = (4, 6)


COLUMNS = 4


SMALL = {name: replace(each, rank=2) if isinstance(each, LowRank) else each for name, each in STRUCTURES.items()}


FAMILIES = SMALL | {"low-rank soap": LowRank(Diagonal(), 2, sides="LR"), "blocks": Blocks(Dense(), columns=SHAPE[1])}


def example() -> Fisher:
    """Of 48 correlated gradients, so that no family but the free one holds it."""
    m, n = SHAPE
    keys = jax.random.split(jax.random.key(3), 3)
    left, right, noise = (jax.random.normal(key, shape) for key, shape in zip(keys, ((m, m), (n, n), (48, m, n)), strict=True))
    ramp = jnp.linspace(1.6, 0.4, n)  # columns of unequal size, for those that weigh them
    return Fisher.from_gradients((jnp.eye(m) + 0.5 * left) @ (noise * ramp) @ (jnp.eye(n) + 0.2 * right))


def members(fisher: Fisher) -> dict[str, Matrix]:
    """F and the F~ of every family, written out, by name and relative error."""
    found = {"F": np.asarray(fisher.dense())}
    for name, structure in FAMILIES.items():
        member = fit(structure, fisher)
        error = abs(float(gap(structure, member, fisher).relative))  # rounding may leave a zero just below
        found[f"{name}: {error:.2f}"] = np.asarray(structure.dense(member))
    return found


if __name__ == "__main__":
    panels = list(members(example()).items())
    rows = [dict(panels[start : start + COLUMNS]) for start in range(0, len(panels), COLUMNS)]
    portraits(rows, block=SHAPE[0]).savefig(sys.argv[1])

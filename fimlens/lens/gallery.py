"""A picture of every family: one exact Fisher, and the member that each closed form makes of it.

Run as python -m fimlens.lens.gallery FILE.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from fimlens.fisher.fisher import Fisher
from fimlens.plotting import Matrix, portraits
from fimlens.solver.fit import fit, gap
from fimlens.structures import Blocks, Dense, Diagonal, LowRank
from fimlens.structures.named import named_structures

SHAPE = (4, 6)


COLUMNS = 4  # panels side by side


FAMILIES = named_structures(rank=2) | {
    "low-rank soap": LowRank(Diagonal(), 2, sides="LR"),
    "blocks": Blocks(Dense(), columns=SHAPE[1]),
}


def example() -> Fisher:
    """Return the Fisher of 48 correlated gradients: no family but the dense one contains it."""
    m, n = SHAPE
    keys = jax.random.split(jax.random.key(3), 3)
    left, right, noise = (jax.random.normal(key, shape) for key, shape in zip(keys, ((m, m), (n, n), (48, m, n)), strict=True))
    ramp = jnp.linspace(1.6, 0.4, n)  # columns of unequal size, which some families can tell apart
    return Fisher.from_gradients((jnp.eye(m) + 0.5 * left) @ (noise * ramp) @ (jnp.eye(n) + 0.2 * right))


def members(fisher: Fisher) -> dict[str, Matrix]:
    """Return F and the F~ of every family as dense matrices, by name and relative error."""
    found = {"F": np.asarray(fisher.dense())}
    for name, structure in FAMILIES.items():
        member = fit(structure, fisher)
        error = abs(float(gap(structure, member, fisher).relative))  # rounding may make a zero negative
        found[f"{name}: {error:.2f}"] = np.asarray(structure.dense(member))
    return found


if __name__ == "__main__":
    panels = list(members(example()).items())
    rows = [dict(panels[start : start + COLUMNS]) for start in range(0, len(panels), COLUMNS)]
    portraits(rows, block=SHAPE[0]).savefig(sys.argv[1])

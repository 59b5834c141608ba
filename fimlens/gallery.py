"""A picture of the families: one exact Fisher, and the closed form of each. Run as python -m fimlens.gallery FILE."""

import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from fimlens._fit import fit, gap
from fimlens.fisher import Fisher
from fimlens.lens import STRUCTURES
from fimlens.structure import Claim
from fimlens.structures import Blocks, Corner, Dense, LowRank

SHAPE = (4, 6)
COLUMNS = 6
COLOURS = "PuOr_r"  # from -1 to 1, white at 0; told apart by colour-blind readers
SMALL = {name: replace(each, rank=2) if isinstance(each, LowRank) else each for name, each in STRUCTURES.items()}
FAMILIES = SMALL | {"low-rank soap": Corner(2), "blocks": Blocks(Dense(), columns=SHAPE[1])}
WORTH = {
    Claim.EXACT: "exact",
    Claim.LIMIT: "exact in the limit",
    Claim.ONE_STEP: "one step",
    Claim.BOUND: "an upper bound",
    Claim.OTHER: "another divergence",
}


def example() -> Fisher:
    """Of 48 correlated gradients, so that no family but the free one holds it."""
    m, n = SHAPE
    keys = jax.random.split(jax.random.key(3), 3)
    left, right, noise = (jax.random.normal(key, shape) for key, shape in zip(keys, ((m, m), (n, n), (48, m, n)), strict=True))
    ramp = jnp.linspace(1.6, 0.4, n)  # columns of unequal size, for those that weigh them
    return Fisher.from_gradients((jnp.eye(m) + 0.5 * left) @ (noise * ramp) @ (jnp.eye(n) + 0.2 * right))


def picture(path: Path) -> None:
    """Write F and the F~ of every family, entry by entry, all on one scale; the ending of `path` names its format."""
    fisher = example()
    panels = [("F", "the exact Fisher", np.asarray(fisher.dense()))]
    for name, structure in FAMILIES.items():
        member = fit(structure, fisher)
        error = float(gap(structure, member, fisher).relative)
        panels.append((name, f"{error:.2f}, {WORTH[structure.claim]}", np.asarray(structure.dense(member))))
    largest = np.abs(panels[0][2]).max()
    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(2.2 * COLUMNS, 2.55 * rows), layout="constrained")
    grid = figure.subplots(rows, COLUMNS)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (name, below, matrix) in zip(grid.flat, panels, strict=False):
        image = axes.imshow(_stretched(matrix / largest), cmap=COLOURS, vmin=-1, vmax=1, interpolation="nearest")
        axes.set(title=name, xticks=[], yticks=[])
        axes.set_xlabel(below, fontsize=8)
        for edge in range(SHAPE[0], matrix.shape[0], SHAPE[0]):  # the blocks of one column of G each
            axes.axhline(edge - 0.5, color="0.8", linewidth=0.4)
            axes.axvline(edge - 0.5, color="0.8", linewidth=0.4)
    bar = figure.colorbar(image, ax=grid, shrink=0.5, ticks=_stretched(np.array([-1, -0.1, 0, 0.1, 1])))
    bar.ax.set_yticklabels(["-1", "-0.1", "0", "0.1", "1"])
    bar.set_label("entry over the largest of F, its root drawn")
    figure.savefig(path, dpi=110)


def _stretched(x: np.ndarray) -> np.ndarray:
    """The root with its sign, so that small entries show."""
    return np.sign(x) * np.sqrt(np.abs(x))


if __name__ == "__main__":
    picture(Path(sys.argv[1]))

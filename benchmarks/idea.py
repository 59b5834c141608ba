"""The picture of README: one Fisher, what the closed form of three structures makes of it, the error, and the optimizer.

Run as python benchmarks/idea.py docs/idea.png.
"""

import sys

import fimlens as fl
from fimlens.lens.gallery import example
from fimlens.plotting import portraits

STRUCTURES = {"adam": fl.Diagonal(), "muon": fl.Rotated(fl.Rows(), "L"), "soap": fl.Rotated(fl.Diagonal(), "LR")}


def panels(fisher):
    """F, and the fit of each structure, as matrices by what is written above them."""
    found = {"F, the Fisher of\na 4 x 6 matrix": fisher.dense()}
    for name, structure in STRUCTURES.items():
        member = fl.fit(structure, fisher)
        found[f"{structure}\nerror {fl.gap(structure, member, fisher).relative:.2f} → fl.{name}"] = structure.dense(member)
    return found


if __name__ == "__main__":
    first, second, third, fourth = panels(example()).items()
    figure = portraits([dict([first, second]), dict([third, fourth])], block=4, side=2.1)
    figure.savefig(sys.argv[1], dpi=240)

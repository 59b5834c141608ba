"""The figure of what `fl.monitor` has read in a run."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fimlens._records import known_records
from fimlens.plotting import BASIS, legend_below, panels
from fimlens.pretrain.run_directory import READINGS_FILE

LOGARITHMIC = ("update_rms", "relative_update")


def write_figure(directory: Path) -> None:
    """Draw the readings of a run into readings.png; nothing where a run was too short for any."""
    lines = known_records(directory / READINGS_FILE)
    if lines:
        readings_figure(lines).savefig(directory / "readings.png")


def readings_figure(lines: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw each reading over the steps: its median over the matrices, and the range that holds the middle 80 % of them.

    Args:
        lines: those of readings.jsonl, each with its step and its readings by name.
    """
    keys = defaultdict(list)
    for key in lines[0].keys() - {"step"}:
        keys[key.rsplit("/", 1)[-1]].append(key)
    figure = panels(len(keys), height=2.4)
    steps = [line["step"] for line in lines]
    for axes, (reading, of) in zip(figure.axes, sorted(keys.items()), strict=True):
        values = np.array([[line[key] for key in of] for line in lines], float)  # None becomes NaN
        low, median, high = np.nanquantile(values, (0.1, 0.5, 0.9), axis=1)
        axes.fill_between(steps, low, high, color=BASIS, alpha=0.2, linewidth=0, label="middle 80 % of matrices")
        axes.plot(steps, median, color=BASIS, label="median")
        axes.set_yscale("log" if reading in LOGARITHMIC and (low > 0).all() else "linear")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(title=reading.replace("_", " "), xlabel="step")
    legend_below(figure)
    return figure

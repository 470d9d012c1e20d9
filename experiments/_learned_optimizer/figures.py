"""Losses on problems held out, and while meta-training."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments._command.experiment import Record
from experiments._report.style import panels

_SMOOTHED = 10
"""Rounds whose mean is drawn: each has problems of its own."""


def curves(rows: Sequence[Record]) -> Figure:
    """A panel for each dimension, and one for meta-training."""
    dimensions = sorted({row["d"] for row in rows})
    ways = list(dict.fromkeys(row["way"] for row in rows))
    figure, axes = panels(len(dimensions) + 1)
    for row in rows:
        panel, index = axes[dimensions.index(row["d"])], ways.index(row["way"])
        steps = np.arange(1, len(row["curve"]) + 1)
        style = "--" if row["way"].startswith("Adam") else "-"
        panel.plot(steps, row["curve"], style, color=f"C{index}", label=row["way"])
        if row["d"] == dimensions[0] and "meta_training" in row:
            values = np.asarray(row["meta_training"])
            width = min(_SMOOTHED, len(values))
            mean = np.convolve(values, np.ones(width) / width, "valid")
            axes[-1].plot(np.arange(len(mean)) + width, mean, color=f"C{index}")
    for panel, dimension in zip(axes, dimensions, strict=False):
        panel.set(yscale="log", xlabel="inner step s", ylabel="loss after s steps")
        panel.set_title(f"held-out problems, d = {dimension}", fontsize=10)
    axes[0].legend(fontsize=7)
    axes[-1].set(yscale="log", xlabel="rounds of T inner steps")
    axes[-1].set(ylabel="mean loss of the runs")
    axes[-1].set_title("meta-training", fontsize=10)
    return figure

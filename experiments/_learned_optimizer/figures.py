"""Losses on problems held out, and while meta-training."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments._command.experiment import Record
from experiments._report.style import panels

_SMOOTHED = 10
"""Rounds whose mean is drawn: each has problems of its own."""


def curves(rows: Sequence[Record]) -> Figure:
    """A panel for each dimension, one for meta-training, and one for the names."""
    dimensions = sorted({row["d"] for row in rows})
    ways = list(dict.fromkeys(row["way"] for row in rows))
    figure, axes = panels(2, -(-(len(dimensions) + 2) // 2))
    learning, names = axes[len(dimensions)], axes[-1]
    for row in rows:
        panel, index = axes[dimensions.index(row["d"])], ways.index(row["way"])
        steps = np.arange(1, len(row["curve"]) + 1)
        style = "--" if row["way"].startswith("Adam") else "-"
        panel.plot(steps, row["curve"], style, color=f"C{index}", label=row["way"])
        if row["d"] == dimensions[0] and "meta_training" in row:
            values = np.asarray(row["meta_training"])
            width = min(_SMOOTHED, len(values))
            mean = np.convolve(values, np.ones(width) / width, "valid")
            learning.plot(np.arange(len(mean)) + width, mean, color=f"C{index}")
    for panel, dimension in zip(axes, dimensions, strict=False):
        panel.set(yscale="log", xlabel="inner step s", ylabel="loss after s steps")
        panel.set_title(f"held-out problems, d = {dimension}", fontsize=10)
    learning.set(yscale="log", xlabel="rounds of T inner steps")
    learning.set(ylabel="mean loss of the runs")
    learning.set_title("meta-training", fontsize=10)
    for panel in axes[len(dimensions) + 1 :]:
        panel.set_axis_off()
    names.legend(*axes[0].get_legend_handles_labels(), loc="center")
    return figure

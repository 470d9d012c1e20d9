"""The figure of `experiments.maml`."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments._command.experiment import Record
from experiments._report.style import panels


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """Errors on new tasks against inner steps; the objective while learning."""
    rows = [r for r in records if r.get("curve")]
    if not rows:
        return {}
    figure, (left, right) = panels(2)
    for index, row in enumerate(rows):
        color = f"C{index}"
        after = [int(k.removeprefix("after_")) for k in row if k.startswith("after_")]
        errors = [row[f"after_{n}"] for n in after]
        left.plot(after, errors, "o-", color=color, label=row["method"])
        for steps, value, half in row.get("printed", []):
            left.errorbar(steps, value, half, fmt="x", color=color, capsize=4)
        if row["method"] != "reptile":  # whose objective is a distance
            share = np.linspace(0.0, 1.0, len(row["curve"]))
            right.plot(share, row["curve"], color=color, linewidth=1)
    title = f"{rows[0]['shots']} points to adapt to; ×: as published, where comparable"
    left.set_title(title, fontsize=8)
    left.set(yscale="log", xlabel="inner steps", ylabel="mean squared error, new tasks")
    left.legend(fontsize=7)
    right.set(yscale="log", xlabel="outer steps, share", ylabel="objective in training")
    return {"maml": figure}

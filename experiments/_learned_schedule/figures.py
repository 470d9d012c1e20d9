"""Rates, momenta, and the losses they lead to."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from experiments._command.experiment import Record
from experiments._report.style import panels


def schedules(rows: Sequence[Record]) -> Figure:
    """A column of panels for each method."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure, axes = panels(len(methods), 3, height=2.8)
    for index, method in enumerate(methods):
        rates, momenta, losses = axes[index :: len(methods)]
        own = [row for row in rows if row["method"] == method]
        for place, row in enumerate(own):
            color = f"C{place}"
            rates.plot(row["rates"], color=color, label=row["schedule"])
            momenta.plot(row["momenta"], color=color)
            error = 2 * row["standard_error"]
            losses.errorbar(place, row["validation_loss"], error, fmt="o", color=color)
            unseen = row["test_loss"]
            losses.plot(place, unseen, "x", color=color)
        rates.set(xlabel="step s", ylabel="learning rate", ylim=(0.0, None))
        rates.set_title(method, fontsize=10)
        rates.legend(fontsize=8)
        momenta.set(xlabel="step s", ylabel="b1" if method == "adam" else "momentum")
        losses.set_xticks(range(len(own)), [row["schedule"] for row in own])
        losses.set(ylabel="loss after T steps", xlim=(-0.5, len(own) - 0.5))
        losses.set_title("● validation ± 2 s.e., × test", fontsize=9)
    return figure

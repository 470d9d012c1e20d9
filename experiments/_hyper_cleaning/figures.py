"""Weights of right and of wrong labels; the validation loss; F1 and accuracies."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments._command.experiment import Record
from experiments._report.style import panels


def cleaned(rows: Sequence[Record]) -> Figure:
    """One panel each; the first row's weights."""
    figure, (left, middle, right) = panels(3, height=3.8)
    _weights(left, rows[0])
    engines = list(dict.fromkeys(row["engine"] for row in rows))
    kinds = list(dict.fromkeys(_kind(row) for row in rows))
    for row in rows:
        style = ("-", "--", ":", "-.")[kinds.index(_kind(row)) % 4]
        curve, color = row["curve"], f"C{engines.index(row['engine'])}"
        middle.plot(np.linspace(0, 1, len(curve)), curve, style, color=color)
    for index, name in enumerate(engines):
        middle.plot([], [], color=f"C{index}", label=name)
    for index, kind in enumerate(kinds):
        style = ("-", "--", ":", "-.")[index % 4]
        middle.plot([], [], style, color="gray", label=kind)
    middle.set(xlabel="part of the outer steps", ylabel="validation loss", yscale="log")
    middle.legend(fontsize=5.5, ncols=2)
    _accuracies(right, rows)
    return figure


def _kind(row: Record) -> str:
    return f"{row['model']}, {row['batch']}, {row['protocol']}"


def _weights(ax: Axes, row: Record) -> None:
    bins = np.linspace(0.0, 1.0, 31).tolist()
    for kind in ("right", "wrong"):
        ax.hist(row["weights"][kind], bins, alpha=0.6, label=f"{kind} labels")
    ax.set(xlabel="learned weight", ylabel="examples", yscale="log")
    ax.set_title(f"{row['model']}, {row['protocol']}, {row['engine']}", fontsize=9)
    ax.legend(fontsize=8)


def _accuracies(ax: Axes, rows: Sequence[Record]) -> None:
    """From the baseline to the oracle of the same setting, and where a row is."""
    places = np.arange(len(rows))[::-1]
    for place, row in zip(places, rows, strict=True):
        ax.plot([row["baseline"], row["oracle"]], [place, place], color="0.7", lw=4)
        ax.plot(row["retrained"], place, "o", color="C0", markersize=4)
    names = [f"{_kind(row)}, {row['engine']}" for row in rows]
    ax.set_yticks(places, names, fontsize=5.5)
    ax.set_xlabel("test accuracy, retrained; gray: baseline to oracle")

"""The figures of `tuned_rate`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments._command.experiment import Record
from experiments._report.style import panels

_LABELS = {
    "sgd": "gradient descent",
    "heavy_ball": "heavy ball",
    "nesterov": "Nesterov",
    "adam": "Adam",
}


def agreement(records: Sequence[Record]) -> Figure:
    """Learned against closed form, and the distance to the nearest minimum."""
    figure, (left, right) = panels(2, height=4.2)
    for index, (method, some) in enumerate(_by_method(records).items()):
        style: dict[str, Any] = {"color": f"C{index}", "markersize": 4}
        for minimum, marker in (("global", "o"), ("local", "x"), ("none", "^")):
            chosen = [r for r in some if r["minimum"] == minimum]
            if chosen:
                left.plot(
                    [r["eta_closed"] for r in chosen],
                    [r["eta_learned"] for r in chosen],
                    marker,
                    markerfacecolor="none",
                    label=f"{method}: {minimum} ({len(chosen)})",
                    **style,
                )
        seen = [r for r in some if r["to_minimum"]]
        right.plot(
            [r["T"] for r in seen], [r["to_minimum"] for r in seen], ".", **style
        )
    rates = [r["eta_closed"] for r in records]
    ends = [min(rates), max(rates)]
    left.plot(ends, ends, color="black", linewidth=0.8, zorder=0)
    left.set(xscale="log", yscale="log", xlabel="closed form, global minimum η*")
    left.set(ylabel="learned rate η", title=f"{len(records)} points")
    right.axhline(1e-6, color="black", linestyle=":", linewidth=1)
    right.set(xscale="log", yscale="log", xlabel="horizon T (steps)")
    right.set(ylabel="|η/η* − 1|", title="to the nearest minimum η*")
    figure.legend(loc="outside lower center", ncols=4, fontsize=7)
    return figure


def horizons(records: Sequence[Record]) -> Figure:
    """η*_T against T for each data set and method: median and range over points."""
    names = list(dict.fromkeys(record["data"] for record in records))
    figure, axes = panels(len(names), height=4.2)
    for axis, name in zip(axes, names, strict=True):
        for index, (method, some) in enumerate(_by_method(records).items()):
            rates: dict[int, list[float]] = {}
            for record in some:
                if record["data"] == name:
                    rates.setdefault(record["T"], []).append(record["eta_closed"])
            steps = sorted(rates)
            low, middle, high = (
                [float(np.quantile(rates[T], q)) for T in steps] for q in (0, 0.5, 1)
            )
            label = method if axis is axes[0] else None
            axis.plot(steps, middle, "o-", color=f"C{index}", markersize=3, label=label)
            axis.fill_between(steps, low, high, color=f"C{index}", alpha=0.15)
        axis.set(xscale="log", yscale="log", xlabel="horizon T (steps)", title=name)
        axis.set_ylabel("optimal learning rate η*")
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    return figure


def _by_method(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The records of each optimizer, and of each momentum where it has one."""
    found: dict[str, list[Record]] = {}
    for record in records:
        name, momentum = _LABELS[record["optimizer"]], record["momentum"]
        name = name if momentum is None else f"{name}, α = {momentum:g}"
        found.setdefault(name, []).append(record)
    return found

"""‖∇h‖² against passes, one panel a regime."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from experiments._command.experiment import Record
from experiments._report.style import panels


def curves(records: Sequence[Record]) -> Figure:
    """One color a method, the same in all panels; what was started cold is dotted."""
    rows = [record for record in records if "curve" in record]
    regimes = list(dict.fromkeys(record["batches"] for record in rows))
    methods = list(dict.fromkeys(record["method"] for record in rows))
    figure, axes = panels(len(regimes), height=3.8)
    for ax, regime in zip(axes, regimes, strict=True):
        for record in rows:
            if record["batches"] != regime:
                continue
            name, curve = record["method"], record["curve"]
            order = methods.index(name)
            style = {"warm": "--", "cold": ":"}.get(name.rpartition(" ")[2], "-")
            ax.plot(
                curve["passes"],
                curve["gradient²"],
                style,
                color=f"C{order % 7}",
                linewidth=1.2,
                label=name,
            )
        ax.set(yscale="log", xscale="log", xlabel="passes over the rows")
        ax.set_title(regime, fontsize=9)
        ax.legend(fontsize=6, loc="lower left")
    axes[0].set_ylabel(r"$\|\nabla h(x)\|^2$, closed form")
    return figure

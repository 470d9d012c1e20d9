"""Validation loss against inner gradients; strengths; hypergradients against t."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from experiments._command.experiment import Record
from experiments._report.style import panels


def curves(learned: Sequence[Record], iterations: Sequence[Record]) -> Figure:
    """One panel each."""
    figure, (left, middle, right) = panels(3, height=3.8)
    methods = list(dict.fromkeys(record["method"] for record in learned))
    for record in learned:
        style = "-" if record["start"] == "warm" else "--"
        name = f"{record['method']}, {record['start']}"
        curve, color = record["curve"], f"C{methods.index(record['method'])}"
        left.plot(curve["gradients"], curve["loss"], style, color=color, label=name)
        mark = "o" if record["start"] == "warm" else "x"
        middle.plot(
            record["strengths"], mark, color=color, label=name, markersize=4, alpha=0.7
        )
    left.set(xscale="log", xlabel="inner gradients and Hessian products")
    left.set_ylabel("validation loss")
    left.legend(fontsize=7)
    middle.set(yscale="log", xlabel="feature", ylabel="learned strength")
    middle.legend(fontsize=6)
    for column, name in COLUMNS.items():
        counts = [row["t"] for row in iterations]
        right.plot(counts, [row[column] for row in iterations], ".-", label=name)
    right.set(xscale="log", yscale="log", xlabel="t inner steps, and t products")
    right.set_ylabel("error of the hypergradient")
    if iterations:
        right.legend(fontsize=7)
    return figure


COLUMNS = {
    "unrolled": "unrolled (ITD)",
    "neumann": "implicit, Neumann (AID-FP)",
    "cg": "implicit, cg (AID-CG)",
}
"""Columns of a row of iterations, and their names in the paper."""

"""The figure of `experiments.frameworks`."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments._command.experiment import Record
from experiments._report.style import panels

_ZERO = 1e-18
"""Where a difference of exactly 0 is drawn on the logarithmic axis."""

_MARKERS = "osD^v"


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """How far each model is from plain functions; the weights' derivatives."""
    figure, (left, right) = panels(2)
    names = [record["framework"] for record in records]
    kinds = [k for k in records[0] if k.endswith("_difference")]
    for kind, marker in zip(kinds, _MARKERS, strict=True):
        apart = [max(record[kind], _ZERO) for record in records]
        label = kind.removesuffix("_difference")
        left.plot(apart, names, marker, label=label, markersize=5, alpha=0.8)
    left.axvline(1e-6, color="black", linewidth=0.8)
    left.invert_yaxis()
    left.set(xscale="log", xlim=(0.3 * _ZERO, 3.0), xlabel="difference, relative")
    left.set_title("from plain functions (left edge: 0; line: the claim)", fontsize=8)
    left.legend(fontsize=7)
    by_nnx = [r for r in records if r["framework"].startswith("flax_nnx")]
    for record in sorted(by_nnx or records[:1], key=lambda r: -r["weights_difference"]):
        right.plot(
            record["weights_plain"],
            record["weights"],
            ".",
            markersize=4,
            label=record["framework"],
        )
    right.axline((0, 0), slope=1, color="black", linewidth=0.6)
    right.set(xlabel="plain functions", ylabel="the framework's model", aspect="equal")
    right.xaxis.set_major_locator(MaxNLocator(4))
    right.set_title("∂L/∂w, one point an example", fontsize=8)
    right.legend(fontsize=7)
    return {"frameworks": figure}

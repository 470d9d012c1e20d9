"""Predicted against retrained losses; bytes and times against the horizon."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure

from experiments._command.experiment import Record
from experiments._report.style import panels

_SMALL = 8
"""Of legends and titles, in points: two panels side by side are about 9 inches."""


def drawn(records: Sequence[Record]) -> dict[str, Figure]:
    """A panel for each run and part left out, one for the bytes, one for the times."""
    scored = [r for r in records if "points" in r]
    titles = dict.fromkeys((r["run"], r["left_out"]) for r in scored)
    draw: list[Callable[[Any], None]] = [
        partial(_losses, [r for r in scored if (r["run"], r["left_out"]) == title])
        for title in titles
    ]
    costs = [r for r in records if r.get("table", "").startswith("cost of")]
    for key, label in _COSTS.items():
        rows = [r for r in costs if key in r]
        draw += [partial(_against_horizon, rows, key, label)] if rows else []
    if not draw:
        return {}
    columns = min(2, len(draw))
    figure, axes = panels(columns, -(-len(draw) // columns))
    for panel, drawn in zip(axes, draw, strict=False):
        drawn(panel)
    for panel in axes[len(draw) :]:
        panel.set_axis_off()
    return {"example_weights": figure}


_COSTS = {
    "temp_bytes": "temporary memory (bytes)",
    "times_training": "seconds, of a training's",
}


def _losses(rows: Sequence[Record], panel: Any) -> None:
    for r in rows:
        label = f"{r['engine']}: {r['score']:.2f} ± {r['standard_error']:.2f}"
        panel.plot(r["points"]["predicted"], r["points"]["retrained"], ".", label=label)
    ends = panel.get_ylim()
    panel.plot(ends, ends, "k:", linewidth=1)
    panel.set(xlabel="predicted held-out loss", ylabel="retrained held-out loss")
    title = f"{rows[0]['run']}, {rows[0]['left_out']:.0%} left out"
    panel.set_title(title, fontsize=_SMALL)
    panel.legend(fontsize=_SMALL)


def _against_horizon(rows: Sequence[Record], key: str, label: str, panel: Any) -> None:
    for way in dict.fromkeys(r["way"] for r in rows):
        mine = [r for r in rows if r["way"] == way]
        panel.plot([r["T"] for r in mine], [r[key] for r in mine], "o-", label=way)
    horizons = sorted({r["T"] for r in rows})
    panel.set(xscale="log", yscale="log" if key == "temp_bytes" else "linear")
    panel.set(xlabel="horizon T (steps)", ylabel=label)
    panel.set_xticks(horizons, [str(horizon) for horizon in horizons])
    panel.set_xticks([], minor=True)
    panel.set_title(rows[0]["table"], fontsize=_SMALL)
    panel.legend(fontsize=_SMALL)

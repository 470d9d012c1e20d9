"""One style for all figures: legible at column width, colour-blind-safe."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.figure import Figure

_OKABE_ITO = [
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
]
_STYLE: dict[Any, Any] = {
    "axes.prop_cycle": cycler(color=_OKABE_ITO),
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "figure.dpi": 150,
    "font.size": 10,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "metalr",
}


@contextmanager
def figure_style() -> Iterator[None]:
    """Apply the style to the figures made inside."""
    with mpl.rc_context(_STYLE):
        yield


def panels(
    columns: int = 1, rows: int = 1, *, height: float = 3.4
) -> tuple[Figure, list]:
    """A figure without a display, and its axes row by row."""
    figure = Figure(figsize=(4.6 * columns, height * rows))
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(np.ravel(axes))

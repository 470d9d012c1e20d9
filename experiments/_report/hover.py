"""Figures as SVG files whose points say their values when a pointer rests on them."""

import io
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree as ET

import numpy as np
from matplotlib.artist import Artist
from matplotlib.collections import PathCollection
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

MAX_POINTS = 2000
"""A line with more points than this says only its name."""

_SVG = "http://www.w3.org/2000/svg"
_NAMES = {"": _SVG, "xlink": "http://www.w3.org/1999/xlink"}


class _Curve(NamedTuple):
    """An artist: its name, its points as data, and where they are drawn (points)."""

    artist: Artist
    label: str
    data: np.ndarray
    places: np.ndarray


def to_svg(figure: Figure) -> str:
    """The figure as an SVG file.

    Markers of lines and scatter plots have a `<title>` with their coordinates, bars one
    with their length, lines one with their label: browsers show it on hovering.
    """
    curves, bars = _found(figure)
    for index, artist in enumerate([*curves, *(bar for bar, _ in bars)]):
        artist.set_gid(f"hover-{index}")
    target = io.StringIO()
    figure.savefig(target, format="svg")
    for prefix, address in _NAMES.items():
        ET.register_namespace(prefix, address)
    root = ET.fromstring(target.getvalue())
    groups = {element.get("id"): element for element in root.iter(f"{{{_SVG}}}g")}
    height = 72 * figure.get_figheight()
    for artist in curves:
        group = groups.get(artist.get_gid())
        if group is not None:
            _title_points(group, _curve(artist, figure), height)
    for bar, text in bars:
        group = groups.get(bar.get_gid())
        if group is not None:
            _title(group, text)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, "unicode")


def _found(figure: Figure) -> tuple[list[Any], list[tuple[Any, str]]]:
    curves: list[Any] = []
    bars = []
    for axes in figure.axes:
        curves += axes.lines
        curves += [c for c in axes.collections if isinstance(c, PathCollection)]
        for container in axes.containers:
            if isinstance(container, BarContainer):
                label = _named(container.get_label())
                values = np.asarray(container.datavalues, float)
                bars += [
                    (bar, f"{label}{value:.7g}")
                    for bar, value in zip(container.patches, values, strict=True)
                ]
    return curves, bars


def _curve(artist: Any, figure: Figure) -> _Curve:
    """Read after drawing, when the layout is final."""
    if isinstance(artist, PathCollection):
        data = np.ma.filled(np.ma.asarray(artist.get_offsets(), float), np.nan)
        transform = artist.get_offset_transform()
    else:
        data, transform = np.asarray(artist.get_xydata(), float), artist.get_transform()
    with np.errstate(all="ignore"):
        places = transform.transform(data) * 72 / figure.dpi
    return _Curve(artist, _named(artist.get_label()), data, places)


def _title_points(group: ET.Element, curve: _Curve, height: float) -> None:
    if curve.label:
        _title(group, curve.label.removesuffix(": "))
    if len(curve.data) > MAX_POINTS:
        return
    for use, place in _uses(group, height):
        distance = np.hypot(*(curve.places - place).T)
        if np.any(distance < 0.5):
            x, y = curve.data[np.nanargmin(distance)]
            _title(use, f"{curve.label}x = {x:.7g}, y = {y:.7g}")


def _uses(
    group: ET.Element, height: float
) -> Iterator[tuple[ET.Element, Sequence[float]]]:
    """The markers, and where they are, from the lower left corner."""
    for use in group.iter(f"{{{_SVG}}}use"):
        yield use, (float(use.get("x", "nan")), height - float(use.get("y", "nan")))


def _title(element: ET.Element, text: str) -> None:
    title = ET.Element(f"{{{_SVG}}}title")
    title.text = text
    element.insert(0, title)


def _named(label: object) -> str:
    text = str(label)
    return "" if text.startswith("_") or not text else f"{text}: "

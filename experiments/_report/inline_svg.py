"""An SVG file made safe to stand inside a page next to others."""

import re
from xml.etree import ElementTree as ET

from experiments._command.config import ConfigError

_SHAPES = "path rect circle ellipse line polyline polygon image use text tspan textPath"
_PARTS = "svg g defs symbol clipPath mask pattern marker linearGradient radialGradient"
_ALLOWED = {*_SHAPES.split(), *_PARTS.split(), "stop", "title", "desc"}
_SVG = "{http://www.w3.org/2000/svg}"
_POINTS = {"pt": 1.0, "px": 0.75, "": 0.75, "in": 72.0, "cm": 28.35, "mm": 2.835}


def inline(text: str, prefix: str, label: str) -> str:
    """The drawing as an element of an HTML page.

    Only drawing elements are kept: no scripts, handlers, style sheets, links or
    references out of the file. Ids get a prefix, so that figures do not share them.

    Args:
        text: an SVG file.
        prefix: put before each id; it must differ from those of the page's other
            figures.
        label: what a screen reader says.

    Raises:
        ConfigError: if the text is no SVG.
    """
    try:
        root = ET.fromstring(text)
    except ET.ParseError as error:
        msg = f"not readable as SVG: {error}"
        raise ConfigError(msg) from error
    if root.tag != f"{_SVG}svg":
        msg = f"not an SVG file, but <{root.tag}>"
        raise ConfigError(msg)
    width, height = (_points(root.get(name, "")) for name in ("width", "height"))
    _clean(root, prefix)
    for name in ("width", "height"):
        root.attrib.pop(name, None)
    if width and height:
        root.attrib.setdefault("viewBox", f"0 0 {width:g} {height:g}")
        # As large as it was made where there is room; smaller by a quarter at most.
        root.set("style", f"min-width: {width:g}px; max-width: {width / 0.75:g}px")
    root.set("role", "img")
    root.set("aria-label", label)
    return ET.tostring(root, encoding="unicode")


def _clean(element: ET.Element, prefix: str) -> None:
    element.tag = _local(element.tag)
    kept = {_local(name): value for name, value in element.attrib.items()}
    element.attrib.clear()
    for name, value in kept.items():
        found = _attribute(element.tag, name, value, prefix)
        if found is not None:
            element.set(name, found)
    for child in list(element):
        tag = child.tag
        known = isinstance(tag, str) and tag.startswith(_SVG)
        if known and _local(tag) in _ALLOWED:
            _clean(child, prefix)
        else:
            element.remove(child)


def _attribute(tag: str, name: str, value: str, prefix: str) -> str | None:
    """What becomes of an attribute; None: it goes."""
    if name.lower().startswith("on") or name in {"class", "space", "base", "lang"}:
        return None
    if name == "id":
        return prefix + value
    if name == "href":
        if value.startswith("#"):
            return f"#{prefix}{value[1:]}"
        picture = re.match(r"data:image/(png|jpeg);base64,", value)
        return value if tag == "image" and picture else None
    if re.search(r"url\(\s*[\"']?\s*(?!#)[^\s\"'#]", value, re.IGNORECASE):
        return None
    return re.sub(r"url\(\s*[\"']?#([^\"')]*)[\"']?\s*\)", rf"url(#{prefix}\1)", value)


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _points(length: str) -> float | None:
    match = re.fullmatch(r"\s*([\d.]+)\s*([a-z]*)\s*", length)
    if match is None or match[2] not in _POINTS:
        return None
    return float(match[1]) * _POINTS[match[2]]

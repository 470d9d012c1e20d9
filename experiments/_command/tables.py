"""Tables as a terminal shows them: four digits, points aligned, as wide as it is.

`cell` is how a value looks in every table: on a terminal, in a report, in RESULTS.md.
"""

import math
import re
import shutil
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

MAX_TEXT = 40
"""Characters of a text in a table; the rest is cut."""

_GAP = "  "


class Column(NamedTuple):
    """A column ready to be printed."""

    head: list[str]  # lines
    cells: list[str]
    numeric: bool
    width: int


def cell(value: Any) -> str:
    """A value in a table, on one line."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value)
    if value is None:
        return ""
    try:
        return printable(str(value), lines=False)
    except ValueError:  # an int of more digits than Python prints
        return f"an int of {value.bit_length()} bits"


def number(value: float) -> str:
    """Four significant digits."""
    whole = math.isfinite(value) and 1e3 <= abs(value) < 1e5
    return f"{value:.0f}" if whole else f"{value:.4g}"


def printable(text: str, *, lines: bool = True) -> str:
    r"""Text that cannot steer a terminal: control characters as `\x1b`."""
    return "".join(
        c if c.isprintable() or (lines and c == "\n") else _escape(c) for c in text
    )


def is_number(value: Any) -> bool:
    """Whether a table aligns and sorts it as a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def shown(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The fields that tables show: all of any row, but lists and mappings."""
    names = dict.fromkeys(name for row in rows for name in row if name != "table")
    return [
        name
        for name in names
        if not any(isinstance(row.get(name), list | tuple | Mapping) for row in rows)
    ]


def render(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    whole: str,
    names: Sequence[str] | None = None,
    width: int | None = None,
) -> str:
    """A table that fits the terminal, and a word on what does not.

    Args:
        title: printed above.
        rows: fields that are lists or mappings are left out.
        whole: where all of it is; said where something is left out.
        names: the columns; by default all fields that can be shown.
        width: of the terminal; by default its own, 80 where there is none.
    """
    width = width or shutil.get_terminal_size().columns
    names = shown(rows) if names is None else names
    columns = [_column(name, [row.get(name) for row in rows]) for name in names]
    fitting, left = [], width
    for column in columns:
        if fitting and column.width > left:
            break
        fitting.append(column)
        left -= column.width + len(_GAP)
    lines = [printable(title, lines=False), *_lines(fitting, width)]
    if dropped := [printable(name, lines=False) for name in names[len(fitting) :]]:
        text = f"Further columns ({', '.join(dropped)}): {printable(whole)}"
        lines += _folded(text, width)
    return "\n".join(lines) + "\n"


def _column(name: str, values: Sequence[Any]) -> Column:
    present = [value for value in values if value is not None]
    numeric = bool(present) and all(is_number(value) for value in present)
    texts = [cell(value) for value in values]
    cells = _aligned(texts) if numeric else [_cut(text) for text in texts]
    widest = max(map(size, cells), default=0)
    head = _folded(printable(name.replace("_", " "), lines=False), max(widest, 8))
    return Column(head, cells, numeric, max(widest, *map(size, head)))


def _aligned(texts: Sequence[str]) -> list[str]:
    """Numbers padded on the right, so that their points stand below each other."""
    tails = [len(text) - len(re.split(r"[.e]", text)[0]) for text in texts]
    longest = max(tails, default=0)
    return [
        text + " " * (longest - tail) for text, tail in zip(texts, tails, strict=True)
    ]


def _lines(columns: Sequence[Column], width: int) -> list[str]:
    tall = max((len(column.head) for column in columns), default=0)
    heads = [[""] * (tall - len(c.head)) + c.head for c in columns]
    rows = list(zip(*heads, strict=True))
    body = list(zip(*(column.cells for column in columns), strict=True))
    rule = tuple("-" * column.width for column in columns)
    return [
        _clip(
            _GAP.join(_pad(t, c) for t, c in zip(row, columns, strict=True)), width
        ).rstrip()
        for row in [*rows, rule, *body]
    ]


def _pad(text: str, column: Column) -> str:
    room = " " * (column.width - size(text))
    return room + text if column.numeric else text + room


def _folded(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split() or [""]:
        longer = f"{lines[-1]} {word}".strip()
        lines = (
            [*lines[:-1], longer]
            if size(longer) <= width or not lines[-1]
            else [*lines, word]
        )
    return [_clip(line, max(width, MAX_TEXT)) for line in lines]


def _cut(text: str) -> str:
    return _clip(text, MAX_TEXT)


def _clip(text: str, width: int) -> str:
    if size(text) <= width:
        return text
    while size(text) > width - 1:
        text = text[:-1]
    return f"{text}…"


def size(text: str) -> int:
    """Columns of a terminal that a text takes."""
    return sum(
        0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()

"""A published figure, as it is printed, beside ours."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NamedTuple


class Figure(NamedTuple):
    """A number that somebody published, and how far rounding may have moved it."""

    value: float | int
    rounding: float = 0.0


def exact(value: float | int) -> Figure:
    """A figure that is exact: a count, a theorem's value, a fraction."""
    return Figure(value)


def printed(digits: str) -> Figure:
    """A rounded figure, as it is printed: half a unit of its last digit is open.

    Example:
        >>> printed("0.8544")
        Figure(value=0.8544, rounding=5e-05)
    """
    number = Decimal(digits)
    exponent = number.as_tuple().exponent
    return Figure(float(number), 0.5 * 10.0 ** int(exponent))


class Row(NamedTuple):
    """A published figure, or what is said of one, beside ours."""

    setting: str
    published: float | int | str
    ours: float | int
    holds: bool
    allowed: float | int | None = None
    note: str = ""
    more: Mapping[str, Any] = {}  # kept for the figure

    def record(self, part: str, source: str) -> dict[str, Any]:
        """As the table shows it."""
        figure = self.published
        return {
            "table": "published figures",
            "source": source,
            "setting": self.setting,
            "published": figure,
            "ours": self.ours,
            "difference": None if isinstance(figure, str) else self.ours - figure,
            "allowed": self.allowed,
            "holds": self.holds,
            "note": self.note,
            "command": f"python -m experiments.published 'parts=[{part}]'",
            **self.more,
        }


def compared(
    setting: str,
    published: Figure,
    ours: float,
    error: float = 0.0,
    note: str = "",
    **more: Any,
) -> Row:
    """A row that holds where the difference is rounding or within our own error.

    Args:
        setting: what was computed.
        published: the figure.
        ours: what we find.
        error: of ours: of the arithmetic, or four standard errors.
        note: shown beside it.
        more: kept for the figure.
    """
    allowed = published.rounding + error
    holds = bool(abs(ours - published.value) <= allowed)
    return Row(setting, published.value, ours, holds, allowed, note, more)


def ordered(setting: str, claim: str, ours: float, *, holds: bool, note: str) -> Row:
    """A row of which the order is held, not the size: other data than the paper's."""
    return Row(setting, claim, ours, holds, None, note)

"""What a report shows: sections of tables, figures and failures."""

import json
import math
import shlex
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from experiments._command.config import dotted
from experiments._command.registry import questions
from experiments._command.tables import cell, is_number, shown


class Table(NamedTuple):
    """Rows under a title; their fields may differ."""

    title: str
    rows: list[dict[str, Any]]


def summary(table: Table) -> Table:
    """Each column in a row: its range and median, or how often it has which value."""
    rows = [
        {"column": name} | _summarized([row.get(name) for row in table.rows])
        for name in shown(table.rows)
    ]
    return Table(f"{table.title}, summarized", rows)


def _summarized(values: list[Any]) -> dict[str, Any]:
    present = [value for value in values if value is not None]
    counts = Counter(cell(value) for value in present)
    common = [f"{text} ({count})" for text, count in counts.most_common(_COMMON)]
    more = len(counts) - _COMMON
    found: dict[str, Any] = {"least": None, "median": None, "greatest": None}
    if present and all(map(is_number, present)):
        finite = sorted(value for value in present if math.isfinite(value))
        if finite:
            found["least"], found["greatest"] = finite[0], finite[-1]
            found["median"] = statistics.median(finite)
        if len(finite) < len(present):
            counts = Counter(cell(v) for v in present if not math.isfinite(v))
            common = [f"{text} ({count})" for text, count in counts.items()]
            more = 0
        elif len(counts) > _COMMON:
            common, more = [f"{len(counts)} different"], 0
    found["values"] = ", ".join(common) + (f", … {more} more" if more > 0 else "")
    found["missing"] = len(values) - len(present)
    return found


_COMMON = 6
"""Values named in a summary."""


class Picture(NamedTuple):
    """An SVG file."""

    name: str
    svg: str


class Failure(NamedTuple):
    """A point without a result."""

    status: str
    point: str
    error: str


class Section(NamedTuple):
    """A run, or what a store holds of one experiment."""

    title: str
    question: str  # what the experiment asks
    source: str
    status: str  # the word that is shown first
    good: bool
    summary: str
    provenance: dict[str, str]
    config: str  # YAML
    data: dict[str, str]
    tables: list[Table]
    pictures: list[Picture]
    failures: list[Failure]
    notes: list[str]


def tables(
    name: str, pairs: Iterable[tuple[dict[str, Any], dict[str, Any]]]
) -> list[Table]:
    """One table for each `table` entry of the records."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row, record in pairs:
        shown = {n: v for n, v in row.items() if n not in {"table", "record.table"}}
        found.setdefault(str(record.get("table", name)), []).append(shown)
    return [Table(title, rows) for title, rows in found.items()]


def flat(content: Mapping[str, Any]) -> dict[str, str]:
    """Nested mappings under dotted names, their values as text."""
    return {name: _plain(name, value) for name, value in dotted(content).items()}


def _plain(name: str, value: Any) -> str:
    if name == "command" and isinstance(value, list):
        return shlex.join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def question(name: str) -> str:
    """What an experiment asks; empty if there is none of that name here."""
    asked = questions().get(name, "")
    return asked[:1].upper() + asked[1:]

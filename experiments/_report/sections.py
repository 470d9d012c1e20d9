"""What a report shows: sections of tables, figures and failures."""

import json
import shlex
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from experiments._command.config import dotted
from experiments._command.registry import questions


class Table(NamedTuple):
    """Rows under a title; their fields may differ."""

    title: str
    rows: list[dict[str, Any]]


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

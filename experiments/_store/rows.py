"""Rows of a store as values, and as columns for NumPy and pandas."""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments._command.config import dotted


class Row(NamedTuple):
    """One point of a sweep."""

    key: str
    experiment: str
    config: dict[str, Any]
    status: str  # "finished", "failed" or "timed_out"
    error: str | None  # the traceback of a failed point
    records: list[dict[str, Any]]
    provenance: dict[str, Any]
    seconds: float
    attempts: int  # over all sweeps that tried it
    finished_at: str  # UTC, ISO 8601


def latest(rows: Iterable[Row]) -> list[Row]:
    """Of the rows with the same experiment and config, the one finished last.

    There are several only where the code changed between two sweeps.
    """
    rows, chosen = list(rows), {}
    for row in sorted(rows, key=lambda row: row.finished_at):
        question = json.dumps([row.experiment, row.config], sort_keys=True)
        chosen[question] = row
    keys = {row.key for row in chosen.values()}
    return [row for row in rows if row.key in keys]


_ROW_COLUMNS = ("key", "experiment", "status", "seconds", "attempts", "finished_at")


def as_columns(rows: Iterable[Row]) -> dict[str, np.ndarray]:
    """Rows as columns of equal length.

    One entry for each entry of `entries`. Numbers are float64, int64 or bool arrays;
    where an entry lacks a number it is nan, where it lacks anything else it is None.
    Texts, lists and mappings are object arrays.
    """
    return arrays(entries(rows))


def entries(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Rows as flat mappings: one for each record, and one for a point without records.

    Their names are those of the row (key, experiment, status, seconds, attempts,
    finished_at, code_version, error), the config's fields under their dotted names
    (`data.name`), and the record's fields. A field that would have the name of an
    earlier one is `config.NAME` or `record.NAME`; the latter is left out where it says
    the same in all entries. Records of several tables differ by their `table`.
    """
    found = [entry for row in rows for entry in _entries(row)]
    names = {name for entry in found for name in entry}
    for name in (name for name in names if name.startswith("record.")):
        short = name.removeprefix("record.")
        if all(entry[name] == entry[short] for entry in found if name in entry):
            for entry in found:
                entry.pop(name, None)
    return found


def arrays(found: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Flat mappings as columns, as in `as_columns`."""
    names = dict.fromkeys(name for entry in found for name in entry)
    return {name: _array([entry.get(name) for entry in found]) for name in names}


def _entries(row: Row) -> Iterator[dict[str, Any]]:
    common = {name: getattr(row, name) for name in _ROW_COLUMNS}
    common["code_version"] = row.provenance.get("code_version")
    common["error"] = row.error
    config = {k: v for k, v in row.config.items() if k != "experiment"}
    for name, value in dotted(config).items():
        common[f"config.{name}" if name in common else name] = value
    for record in row.records or [{}]:
        renamed = {
            f"record.{name}" if name in common else name: value
            for name, value in record.items()
        }
        yield common | renamed


def _array(values: Sequence[Any]) -> np.ndarray:
    kinds = {type(value) for value in values}
    if kinds == {bool}:
        return np.array(values, bool)
    if kinds == {int} and all(-(2**63) <= value < 2**63 for value in values):
        return np.array(values, np.int64)
    if kinds <= {int, float, type(None)} and kinds != {type(None)}:
        with contextlib.suppress(OverflowError):  # an int beyond any float is text
            return np.array([np.nan if v is None else v for v in values], np.float64)
    result = np.empty(len(values), object)
    for index, value in enumerate(values):  # a list stays one entry
        result[index] = value
    return result

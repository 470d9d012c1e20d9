"""Results of a store: those that are asked for, in the form that is asked for."""

import csv
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from experiments._command import strict_json, tables
from experiments._command.config import ConfigError, parse
from experiments._store.rows import arrays, entries
from experiments._store.store import latest, read
from experiments._sweep.conditions import Comparisons, holds

Entry: TypeAlias = Mapping[str, Any]

_OPERATORS = {"<": "lt", "<=": "le", ">": "gt", ">=": "ge", "!=": "ne"}

_NO_LIMIT = 10**6
"""Columns of a table in a file."""

FORMATS = ("table", "csv", "json", "parquet")


def query(path: Path, where: Iterable[str], *, every: bool = False) -> list[Entry]:
    """The entries of a store (`rows.entries`) that meet all conditions.

    Args:
        path: the store.
        where: such as `data.name=digits`, `T<100`, `status!=finished`.
        every: also results of earlier versions of the code, where there are newer ones.

    Raises:
        ConfigError: if a condition is malformed, or about a field that no entry has.
    """
    rows = read(path)
    found = entries(rows if every else latest(rows))
    conditions = [_condition(text) for text in where]
    names = sorted({name for entry in found for name in entry})
    for condition in conditions:
        for name in condition:
            if name not in names:
                msg = f"--where {name}: no such field; there are {', '.join(names)}"
                raise ConfigError(msg)
    return [e for e in found if all(holds(condition, e) for condition in conditions)]


def render(found: Sequence[Entry], form: str, out: Path | None) -> None:
    """Print the entries, or write them to the file `out`.

    Raises:
        ConfigError: if the file cannot be written, is there and no such table, or a
            binary form has no file.
    """
    if form == "parquet":
        if out is None:
            msg = "--format parquet is binary: it needs --out FILE"
            raise ConfigError(msg)
        _write(out, _parquet(found))
    elif out is not None:
        text = _table(found, _NO_LIMIT) if form == "table" else _TEXTS[form](found)
        _write(out, text.encode(errors="backslashreplace"))
    else:
        text = _TEXTS[form](found)
        sys.stdout.write(tables.printable(text) if sys.stdout.isatty() else text)


def _condition(text: str) -> dict[str, Any]:
    match = re.fullmatch(r"([^<>=!]+)(<=|>=|!=|<|>|=)(.*)", text.strip(), re.DOTALL)
    if match is None:
        msg = f"--where {text!r}: write KEY=VALUE, or one of != < <= > >= for the ="
        raise ConfigError(msg)
    name, sign, value = match[1].strip(), match[2], parse(match[3], text)
    if sign == "=":  # a table shows true as yes
        return {name: [value, value == "yes"] if value in ("yes", "no") else value}
    try:
        return {name: Comparisons(**{_OPERATORS[sign]: value})}
    except ValueError as error:
        msg = f"--where {text!r}: {value!r} has no order"
        raise ConfigError(msg) from error


def _table(found: Sequence[Entry], width: int | None = None) -> str:
    """Numbers and short texts; what is the same everywhere is said once, below."""
    if not found:
        return "0 results\n"
    names = [name for name in tables.shown(found) if name not in _LONG]
    same = [n for n in names if n != "status" and _constant(found, n)]
    varying = [name for name in names if name not in same]
    whole = "--format csv has all fields"
    title = f"{len(found)} results"
    text = tables.render(title, found, whole=whole, names=varying, width=width)
    pairs = [f"{name} = {tables.cell(found[0].get(name))}" for name in same]
    return text + (f"Everywhere: {', '.join(pairs)}\n" if pairs else "")


_LONG = {"key", "experiment", "finished_at", "code_version", "error"}


def _constant(found: Sequence[Entry], name: str) -> bool:
    return len(found) > 1 and len({repr(entry.get(name)) for entry in found}) == 1


def as_csv(found: Sequence[Entry]) -> str:
    """All fields with a header; lists and mappings as JSON."""
    target = io.StringIO()
    writer = csv.DictWriter(target, _names(found), lineterminator="\n")
    writer.writeheader()
    for entry in found:
        writer.writerow({name: _flat(value) for name, value in entry.items()})
    return target.getvalue()


def _json(found: Sequence[Entry]) -> str:
    """Strict JSON: what is not finite is the text "NaN", "Infinity" or "-Infinity"."""
    return strict_json.dumps(list(found), indent=1) + "\n"


_TEXTS: dict[str, Callable[[Sequence[Entry]], str]] = {
    "table": _table,
    "csv": as_csv,
    "json": _json,
}


def _parquet(found: Sequence[Entry]) -> bytes:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        msg = "--format parquet needs pyarrow: pip install 'metalr[parquet]'"
        raise ConfigError(msg) from error

    table = {
        name: [_flat(value) for value in column] if column.dtype == object else column
        for name, column in arrays(found).items()
    }
    target = io.BytesIO()
    made = pa.table(table).replace_schema_metadata({_OURS: "results"})
    parquet.write_table(made, target)
    return target.getvalue()


def _names(found: Sequence[Entry]) -> list[str]:
    return list(dict.fromkeys(name for entry in found for name in entry))


def _nested(value: Any) -> bool:
    return isinstance(value, list | dict)


def _flat(value: Any) -> Any:
    """Lists and mappings as JSON; a column of anything but numbers is text."""
    if value is None or isinstance(value, str):
        return value
    return strict_json.dumps(value) if _nested(value) else str(value)


def _write(path: Path, content: bytes) -> None:
    try:
        if path.exists() and not path.is_file():  # a pipe or a device; never read
            path.write_bytes(content)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not _is_ours(path):
            msg = (
                f"--out {path} exists and is not one of these tables: it is not "
                "overwritten; choose another name, or remove it"
            )
            raise ConfigError(msg)
        _replace(path.resolve(), content)
    except OSError as error:
        msg = f"cannot write {path}: {error.strerror}"
        raise ConfigError(msg) from error


def _replace(path: Path, content: bytes) -> None:
    """The file is the old one or the new one, never a part."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    with draft.open("xb") as file:
        try:
            file.write(content)
            file.flush()
            draft.replace(path)
        except OSError:
            draft.unlink()
            raise


_OURS = "metalr"
"""The key of a Parquet table's metadata that says whose it is."""

_HEADS = tuple(
    re.compile(pattern)
    for pattern in (
        rb"$",
        rb"\s*\d+ results\s*\n",
        rb"key,experiment,status,",
        rb"\[\]\n$",
        rb'\[\n \{\n  "key": ',
        rb"PAR1(?s:.*)" + _OURS.encode(),
    )
)


def _is_ours(path: Path) -> bool:
    """Whether a file is what `render` writes, in whatever form."""
    with path.open("rb") as file:
        head = file.read(1000)
        if head.startswith(b"PAR1"):  # its metadata are at the end
            head += file.read()[-20_000:]
    return any(pattern.match(head) for pattern in _HEADS)

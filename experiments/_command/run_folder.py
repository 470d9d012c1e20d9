"""The folder of a run: what is written in it, and how it is read back.

config.yaml      the whole validated config
provenance.json  command, code, versions, machine; whether it finished
data.json        what data was read, if any
records.jsonl    one record a line, on disk as soon as it is known
traceback.txt    of a run that failed
NAME.png, .svg   figures
"""

import datetime as dt
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from experiments._command import strict_json
from experiments._command.config import ConfigError


class Run(NamedTuple):
    """A run as its folder tells it."""

    folder: Path
    config: str  # YAML; empty where there is none
    provenance: dict[str, Any]
    data: Any
    records: list[dict[str, Any]]
    cut: bool  # the last record was cut short by a kill, and is left out


def new_folder(parent: Path, key: str) -> Path:
    """Make an empty folder named after the time and the config.

    Raises:
        OSError: if it cannot be made.
    """
    parent.mkdir(parents=True, exist_ok=True)
    stamp = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%SZ")
    attempt = 0
    while True:
        folder = parent / (f"{stamp}-{key}" + (f"-{attempt}" if attempt else ""))
        try:
            folder.mkdir()
        except FileExistsError:
            attempt += 1
            continue
        return folder


def write(path: Path, content: str | bytes) -> None:
    """Write a file that is there whole or not at all.

    Raises:
        OSError: if it cannot be written; what was there before stays.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    raw = content.encode(errors="replace") if isinstance(content, str) else content
    try:
        draft.write_bytes(raw)
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write strict JSON, whole or not at all."""
    write(path, strict_json.dumps(content, indent=2) + "\n")


@contextmanager
def environment(what: str) -> Iterator[None]:
    """What the machine refuses is the user's to mend, not a fault of the code.

    Raises:
        ConfigError: in place of an OSError, in one line.
    """
    try:
        yield
    except OSError as error:
        name = f"{error.filename}: " if error.filename is not None else ""
        msg = f"cannot {what}: {name}{error.strerror or error}"
        raise ConfigError(msg) from error


def read_run(folder: Path) -> Run:
    """What is in a run's folder.

    Raises:
        ConfigError: if it is no run's, or a file in it is damaged.
    """
    if not (folder / "provenance.json").is_file():
        msg = (
            f"{folder} is neither a run folder (it has no provenance.json) nor a "
            "store: name a folder RUNS/EXPERIMENT/ID or a file RUNS/NAME.sqlite"
        )
        raise ConfigError(msg)
    provenance = _json(folder / "provenance.json")
    if not isinstance(provenance, dict):
        msg = f"{folder / 'provenance.json'} holds no mapping: not a run of ours"
        raise ConfigError(msg)
    described = folder / "data.json"
    records, cut = _records(folder / "records.jsonl")
    return Run(
        folder,
        read_text(folder / "config.yaml", ""),
        provenance,
        _json(described) if described.is_file() else {},
        records,
        cut,
    )


def read_text(path: Path, missing: str | None = None) -> str:
    """A file's text.

    Raises:
        ConfigError: if it cannot be read, and `missing` is not what to return then.
    """
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        if isinstance(error, FileNotFoundError) and missing is not None:
            return missing
        msg = f"cannot read {path}: {error.strerror}"
        raise ConfigError(msg) from error


def _records(path: Path) -> tuple[list[dict[str, Any]], bool]:
    lines = read_text(path, "").splitlines()
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = strict_json.loads(line)
        except ValueError as error:
            if number == len(lines):
                return records, True
            msg = f"{path}, line {number} is not JSON: {error}"
            raise ConfigError(msg) from error
        if not isinstance(record, dict):
            msg = f"{path}, line {number} is not a record (a JSON object)"
            raise ConfigError(msg)
        records.append(record)
    return records, False


def _json(path: Path) -> Any:
    try:
        return strict_json.loads(read_text(path))
    except ValueError as error:
        msg = f"{path} is not JSON: {error}"
        raise ConfigError(msg) from error

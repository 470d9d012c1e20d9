"""A run's folder as a section of a report."""

import json
from pathlib import Path
from typing import Any

from experiments._command.config import ConfigError, parse
from experiments._report.sections import (
    Failure,
    Picture,
    Section,
    flat,
    question,
    tables,
)


def run_section(folder: Path) -> Section:
    """What is to be shown of a run, finished or not.

    Raises:
        ConfigError: if the folder is no run's, or a file in it is damaged.
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
    config = _text(folder / "config.yaml", "")
    name = _experiment(config, folder / "config.yaml") or folder.resolve().parent.name
    described = folder / "data.json"
    data = _json(described) if described.is_file() else {}
    records, notes = _records(folder / "records.jsonl")
    message = str(provenance.pop("status", "unfinished"))
    seconds = provenance.pop("wall_seconds", None)
    status = {"running": "unfinished"}.get(message, message.partition(":")[0])
    if message == "running":
        notes.append("This run was still going on, or was killed, when last noted.")
    pictures = [Picture(p.name, _text(p)) for p in sorted(folder.glob("*.svg"))]
    summary = f"{len(records)} records"
    if isinstance(seconds, int | float) and message != "running":
        summary += f" in {seconds:.1f} s"
    failed = message.startswith("failed")
    return Section(
        title=name,
        question=question(name),
        source=str(folder),
        status=status,
        good=message == "finished",
        summary=summary,
        provenance=flat(provenance),
        config=config,
        data=flat(data if isinstance(data, dict) else {"data": data}),
        tables=tables(name, ((record, record) for record in records)),
        pictures=pictures,
        failures=[Failure("failed", "the run", message)] if failed else [],
        notes=notes,
    )


def _experiment(config: str, path: Path) -> str | None:
    content = parse(config, str(path))
    name = content.get("experiment") if isinstance(content, dict) else None
    return name if isinstance(name, str) else None


def _records(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The records; a last line cut short by a kill is left out."""
    lines = _text(path, "").splitlines()
    records, notes = [], []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                notes.append("The last record is incomplete and left out.")
                break
            msg = f"{path}, line {number} is not JSON: {error}"
            raise ConfigError(msg) from error
        if not isinstance(record, dict):
            msg = f"{path}, line {number} is not a record (a JSON object)"
            raise ConfigError(msg)
        records.append(record)
    return records, notes


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except ValueError as error:
        msg = f"{path} is not JSON: {error}"
        raise ConfigError(msg) from error


def _text(path: Path, missing: str | None = None) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        if missing is not None:
            return missing
        raise
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror}"
        raise ConfigError(msg) from error

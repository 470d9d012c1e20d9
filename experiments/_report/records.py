"""Records of finished runs, kept in `configs/records/` for RESULTS.md and the gallery.

A record is a small JSON file: the command, how long it took, on what, from which code,
and the rows of its tables. What no record holds cannot be shown as a result.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, NonNegativeFloat

from experiments._command import strict_json, tables
from experiments._command.config import ConfigError, Model, validate
from experiments._command.experiment import Experiment, experiment
from experiments._command.registry import find
from experiments._command.run_folder import environment, write

CONFIGS = Path(__file__).parents[2] / "configs"
"""Where records, figures and RESULTS.md are."""


class KeptTable(Model):
    """A table: its rows are mappings of numbers and texts."""

    title: str
    rows: list[dict[str, Any]]


class Kept(Model):
    """A finished run."""

    name: str
    experiment: str
    command: str
    seconds: NonNegativeFloat
    undisturbed: bool  # nothing else ran, and no compiled program was at hand
    started: str
    dtype: str
    git_commit: str | None
    git_dirty: bool
    python: str
    versions: dict[str, str]
    device: list[str]
    backend: str
    headline: str
    tables: list[KeptTable]
    figures: dict[str, str] = Field(default_factory=dict)  # file name: SHA-256


class Drawn(NamedTuple):
    """A record, and the figures that go with it."""

    kept: Kept
    pictures: dict[str, bytes]  # PNG


def keep(drawn: Drawn, configs: Path) -> None:
    """Write a record and its figures; those of its predecessor go.

    Raises:
        ConfigError: if they cannot be written.
    """
    path = configs / "records" / f"{drawn.kept.name}.json"
    with environment("keep the record"):
        path.parent.mkdir(parents=True, exist_ok=True)
        (configs / "figures").mkdir(exist_ok=True)
        if path.is_file():
            for file in read_record(path).figures.keys() - drawn.pictures.keys():
                (configs / "figures" / file).unlink(missing_ok=True)
        for file, raw in drawn.pictures.items():
            write(configs / "figures" / file, raw)
        content = drawn.kept.model_dump()
        write(path, strict_json.dumps(content, indent=1) + "\n")


def read_all(configs: Path) -> list[Kept]:
    """All records, by name.

    Raises:
        ConfigError: if one is damaged.
    """
    return [read_record(path) for path in sorted((configs / "records").glob("*.json"))]


def read_record(path: Path) -> Kept:
    """One record.

    Raises:
        ConfigError: if it is damaged.
    """
    with environment("read the record"):
        try:
            kept = validate(Kept, strict_json.loads(path.read_text()))
        except ValueError as error:
            msg = f"{path} is not JSON: {error}"
            raise ConfigError(msg) from error
    if kept.name != path.stem:
        msg = f"{path} holds the record {kept.name!r}"
        raise ConfigError(msg)
    return kept


def record_faults(records: Sequence[Kept], configs: Path) -> list[str]:
    """Figures that are missing, changed or of no record; headlines of no table."""
    held = {file: known for kept in records for file, known in kept.figures.items()}
    folder = configs / "figures"
    there = {path.name for path in folder.glob("*")} if folder.is_dir() else set()
    faults = [f"figures/{file} is of no record" for file in sorted(there - held.keys())]
    for file, known in held.items():
        if file not in there:
            faults.append(f"figures/{file} is missing")
        elif sha256((folder / file).read_bytes()) != known:
            faults.append(f"figures/{file} is not the one of its record")
    for kept in records:
        line = said(experiment(find(kept.experiment)), kept.tables)
        if line != kept.headline:
            faults.append(f"{kept.name}: the headline of its tables is {line!r}")
    return faults


def said(subject: Experiment, found: Sequence[KeptTable]) -> str:
    """The headline of these tables: the experiment's own, or the general one."""
    rows = [row | {"table": table.title} for table in found for row in table.rows]
    return subject.headline(rows) or headline(found)


def headline(found: Iterable[KeptTable]) -> str:
    """The result in a line: how many rows agree, and the largest error of each kind."""
    columns: dict[str, list[Any]] = {}
    rows = 0
    for table in found:
        rows += len(table.rows)
        for name in tables.shown(table.rows):
            values = [row[name] for row in table.rows if row.get(name) is not None]
            columns.setdefault(name, []).extend(values)
    parts = []
    for name, values in columns.items():
        if name == "verdict":
            said = Counter(map(str, values)).most_common()
            parts.append(", ".join(f"{count} {verdict}" for verdict, count in said))
            continue
        judged = re.search(r"agrees|holds|converged|reached", name)
        if judged and values and all(isinstance(value, bool) for value in values):
            parts.append(f"{_words(name)}: yes in {sum(values)} of {len(values)}")
        elif name.endswith("error") and values and all(map(tables.is_number, values)):
            worst = tables.cell(max(values, key=abs))
            parts.append(f"largest {_words(name)} {worst}")
    return "; ".join(parts[:3]) or f"{rows} rows"


def _words(name: str) -> str:
    return name.replace("_", " ")


def sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()

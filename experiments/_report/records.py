"""Records of finished runs, kept in `configs/records/` for RESULTS.md and the gallery.

A record is a small JSON file: the command, how long it took, on what, from which code,
and the rows of its tables. What no record holds cannot be shown as a result.
"""

import hashlib
import io
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, NonNegativeFloat

from experiments._command import strict_json, tables
from experiments._command.config import ConfigError, Model, parse, validate
from experiments._command.experiment import Experiment, experiment
from experiments._command.registry import find
from experiments._command.run_folder import environment, read_run, write

CONFIGS = Path(__file__).parents[2] / "configs"
"""Where records, figures and RESULTS.md are."""

MAX_POINTS = 60
"""A sweep of more points is kept as its summary."""

BUSY = 0.5
"""Processes that others kept running, from which a run counts as disturbed."""


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


def from_source(source: Path, name: str | None = None) -> Drawn:
    """The record of a finished run, or of a sweep's store.

    Args:
        source: the run's folder, or the store.
        name: of the record; by default the name of the config file.

    Raises:
        ConfigError: if the run has not finished, points of the sweep have no result, or
            the source is damaged.
    """
    return _from_run(source, name) if source.is_dir() else _from_store(source, name)


def _from_run(folder: Path, name: str | None) -> Drawn:
    run = read_run(folder)
    origin = run.provenance
    if origin.get("status") != "finished":
        msg = f"{folder}: its status is {origin.get('status')!r}, not 'finished'"
        raise ConfigError(msg)
    config = parse(run.config, str(folder / "config.yaml"))
    subject = experiment(find(config["experiment"]))
    name = name or _name(origin["command"], subject.name)
    pictures = {
        _figure(name, subject.name, path.stem): _small(path.read_bytes())
        for path in sorted(folder.glob("*.png"))
    }
    busy = origin.get("load_before", BUSY) >= BUSY
    undisturbed = not busy and not origin.get("compilation_cache", False)
    seconds = origin["wall_seconds"]
    given = origin | {"dtype": config["dtype"], "undisturbed": undisturbed}
    return _drawn(name, subject, given, seconds, run.records, pictures)


def _from_store(path: Path, name: str | None) -> Drawn:
    """A sweep: its points' axes beside what they found; long tables summarized."""
    from experiments._report.sections import summary
    from experiments._report.sweep_sections import pictures_png, point_tables
    from experiments._store.store import latest, read

    rows = latest(read(path))
    lost = [row for row in rows if row.status != "finished"]
    if lost or not rows:
        msg = f"{path}: {len(lost)} of {len(rows)} points have no result"
        raise ConfigError(msg)
    subject = experiment(find(rows[0].experiment))
    origin = rows[-1].provenance
    name = name or _name(origin["command"], path.stem)
    pictures = {
        _figure(name, subject.name, figure): _small(raw)
        for figure, raw in pictures_png(subject, rows).items()
    }
    given = origin | {
        "dtype": rows[0].config["dtype"],
        "started": min(row.finished_at for row in rows),
        "undisturbed": False,
    }
    seconds = sum(row.seconds for row in rows)
    whole = point_tables(subject.name, rows)
    short = [summary(t) if len(t.rows) > MAX_POINTS else t for t in whole]
    records = [row | {"table": table.title} for table in short for row in table.rows]
    return _drawn(name, subject, given, seconds, records, pictures)


def _drawn(
    name: str,
    subject: Experiment,
    origin: Mapping[str, Any],
    seconds: float,
    records: Sequence[Mapping[str, Any]],
    pictures: dict[str, bytes],
) -> Drawn:
    found = _tables(records, subject.name, timed=origin["undisturbed"])
    own = {
        "name": name,
        "experiment": subject.name,
        "command": command(origin["command"]),
        "seconds": round(seconds, 1),
        "headline": _said(subject, found),
        "tables": [table.model_dump() for table in found],
        "figures": {file: _hash(raw) for file, raw in pictures.items()},
    }
    same = (Kept.model_fields.keys() & origin.keys()) - own.keys()
    kept = validate(Kept, own | {field: origin[field] for field in same})
    return Drawn(kept, pictures)


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
        elif _hash((folder / file).read_bytes()) != known:
            faults.append(f"figures/{file} is not the one of its record")
    for kept in records:
        said = _said(experiment(find(kept.experiment)), kept.tables)
        if said != kept.headline:
            faults.append(
                f"{kept.name}: its headline is not what its tables say: {said}"
            )
    return faults


def _said(subject: Experiment, found: Sequence[KeptTable]) -> str:
    """The headline of these tables: the experiment's own, or the general one."""
    rows = [row | {"table": table.title} for table in found for row in table.rows]
    return subject.headline(rows) or headline(found)


def command(words: Sequence[str]) -> str:
    """A run's command as one would give it again."""
    program, *rest = words
    kept, skip = [], False
    for word in rest:
        if skip or word == "--runs":
            skip = word == "--runs"
        elif not word.startswith("--runs="):
            kept.append(word)
    module = "" if program == "__main__.py" else f".{program.removesuffix('.py')}"
    return shlex.join(["python", "-m", f"experiments{module}", *kept])


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


def _name(words: Sequence[str], subject: str) -> str:
    configs = [Path(word) for word in words if word.endswith((".yaml", ".yml"))]
    return configs[0].stem if configs else subject


def _figure(name: str, subject: str, figure: str) -> str:
    return f"{name}.png" if figure == subject else f"{name}-{figure}.png"


def _tables(
    records: Sequence[Mapping[str, Any]], subject: str, *, timed: bool
) -> list[KeptTable]:
    """What tables show of the records; times only of a run that nothing disturbed."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        found.setdefault(str(record.get("table", subject)), []).append(record)
    result = []
    for title, rows in found.items():
        names = [n for n in tables.shown(rows) if timed or not _TIME.search(n)]
        kept = [{name: row.get(name) for name in names} for row in rows]
        result.append(KeptTable(title=title, rows=kept))
    return result


_TIME = re.compile(r"seconds|per_second|_m?s$|^ms$|(^|_)time($|_)")


def _small(raw: bytes) -> bytes:
    """The picture in 128 colors: a third of the bytes, and lines look the same."""
    from PIL import Image

    target = io.BytesIO()
    with environment("read a figure"), Image.open(io.BytesIO(raw)) as picture:
        small = picture.convert("RGB").quantize(128, dither=Image.Dither.NONE)
        small.save(target, "png", optimize=True)
    return target.getvalue()


def _hash(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()

"""The record of a finished run, or of a sweep: what its folder or store tells."""

import io
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments._command import tables
from experiments._command.config import ConfigError, parse, validate
from experiments._command.experiment import Experiment, experiment
from experiments._command.registry import find
from experiments._command.run_folder import environment, read_run
from experiments._report.records import Drawn, Kept, KeptTable, said, sha256

MAX_POINTS = 60
"""A sweep of more points is kept as its summary."""

BUSY = 0.1
"""Cores that others kept busy, from which a run counts as disturbed."""


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
    busy = origin.get("other_cores", BUSY) >= BUSY
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
        "headline": said(subject, found),
        "tables": [table.model_dump() for table in found],
        "figures": {file: sha256(raw) for file, raw in pictures.items()},
    }
    same = (Kept.model_fields.keys() & origin.keys()) - own.keys()
    kept = validate(Kept, own | {field: origin[field] for field in same})
    return Drawn(kept, pictures)


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


_TIME = re.compile(r"seconds|per_second|_m?s$|^ms$|(^|_)times?($|_)|cost_ratio")


def _small(raw: bytes) -> bytes:
    """The picture in 128 colors: a third of the bytes, and lines look the same."""
    from PIL import Image

    target = io.BytesIO()
    with environment("read a figure"), Image.open(io.BytesIO(raw)) as picture:
        small = picture.convert("RGB").quantize(128, dither=Image.Dither.NONE)
        small.save(target, "png", optimize=True)
    return target.getvalue()

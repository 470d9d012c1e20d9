"""A sweep's store as sections of a report."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from experiments._command.config import ConfigError, dotted
from experiments._command.experiment import Experiment, experiment
from experiments._report.sections import (
    Failure,
    Picture,
    Section,
    Table,
    flat,
    question,
    tables,
)
from experiments._store.rows import Row
from experiments._store.store import latest, read, read_meta

MAX_GROUPS = 12
"""Figures are drawn for so many parts of a sweep; the tables show all of it."""

_Pair: TypeAlias = tuple[dict[str, Any], dict[str, Any]]
"""What is shown of a record, and the record."""

_STATUSES = ("finished", "failed", "timed_out")


def sweep_sections(path: Path) -> list[Section]:
    """What is to be shown of a store, one section for each experiment in it.

    Raises:
        StoreError: if it is no store, or cannot be read.
    """
    every = read(path)
    rows = latest(every)
    config = read_meta(path).get("sweep", {})
    notes = []
    if len(rows) < len(every):
        count = len(every) - len(rows)
        notes.append(f"{count} results of earlier versions of the code are not shown.")
    if not rows:
        notes.append("No point has been computed yet.")
    experiments: dict[str, list[Row]] = {}
    for row in rows:
        experiments.setdefault(row.experiment, []).append(row)
    if not experiments:
        experiments[path.stem] = []
    return [
        _sweep(path, name, found, config, notes) for name, found in experiments.items()
    ]


def _sweep(
    path: Path, name: str, rows: list[Row], config: Any, notes: list[str]
) -> Section:
    varying = _varying(rows)
    counts = {s: sum(row.status == s for row in rows) for s in _STATUSES}
    lost = counts["failed"] + counts["timed_out"]
    pictures, remarks = _draw(name, [row for row in rows if row.records])
    points = [
        _axes(row, varying)
        | {"status": _word(row.status), "seconds": row.seconds}
        | {"attempts": row.attempts, "finished at": row.finished_at}
        for row in rows
    ]
    listed = [Table("points", points)] if points else []
    bad = [row for row in rows if row.status != "finished"]
    return Section(
        title=name,
        question=question(name),
        source=str(path),
        status=f"{lost} without result" if lost else "finished" if rows else "empty",
        good=not lost and bool(rows),
        summary=", ".join(f"{n} {_word(s)}" for s, n in counts.items() if n)
        + f" of {len(rows)} points in the store",
        provenance=_common([flat(row.provenance) for row in rows]),
        config=yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
        data={},
        tables=[*point_tables(name, rows), *listed],
        pictures=pictures,
        failures=[_failure(row, varying) for row in bad],
        notes=[*notes, *remarks],
    )


def point_tables(name: str, rows: Sequence[Row]) -> list[Table]:
    """What the points found, each record beside the axes of its point."""
    varying = _varying(rows)
    pairs = _without_repetition(
        [(_merged(row, varying, r), r) for row in rows for r in row.records]
    )
    return tables(name, pairs)


def pictures_png(subject: Experiment, rows: Sequence[Row]) -> dict[str, bytes]:
    """The experiment's figures of all points together, as PNG files."""
    from experiments._report.style import figure_style

    drawn = {}
    with figure_style():
        records = [record for row in rows for record in row.records]
        for name, figure in subject.figures(records).items():
            target = io.BytesIO()
            figure.savefig(target, format="png")
            drawn[name] = target.getvalue()
    return drawn


def _word(status: str) -> str:
    return status.replace("_", " ")


def _failure(row: Row, varying: Sequence[str]) -> Failure:
    point = _named(_axes(row, varying)) or row.key
    return Failure(_word(row.status), point, row.error or "no traceback was kept")


def _fields(row: Row) -> dict[str, Any]:
    return dotted({k: v for k, v in row.config.items() if k != "experiment"})


def _varying(rows: Sequence[Row]) -> list[str]:
    """The fields of the config that are not the same in all rows."""
    values: dict[str, set[str]] = {}
    for row in rows:
        for name, value in _fields(row).items():
            values.setdefault(name, set()).add(json.dumps(value))
    held = [set(_fields(row)) for row in rows]
    return [n for n, v in values.items() if len(v) > 1 or any(n not in h for h in held)]


def _axes(row: Row, varying: Sequence[str]) -> dict[str, Any]:
    fields = _fields(row)
    return {name: _scalar(fields.get(name)) for name in varying}


def _merged(row: Row, varying: Sequence[str], record: dict) -> dict[str, Any]:
    """The point's axes, then the record; an equal name is `record.NAME`."""
    axes = _axes(row, varying)
    named = {f"record.{n}" if n in axes else n: v for n, v in record.items()}
    return axes | named


def _without_repetition(pairs: Sequence[_Pair]) -> Sequence[_Pair]:
    """`record.NAME` goes where it says in every row what NAME says."""
    names = dict.fromkeys(name for row, _ in pairs for name in row)
    for name in [name for name in names if name.startswith("record.")]:
        short = name.removeprefix("record.")
        if all(row[name] == row[short] for row, _ in pairs if name in row):
            for row, _ in pairs:
                row.pop(name, None)
    return pairs


def _draw(name: str, rows: Sequence[Row]) -> tuple[list[Picture], list[str]]:
    """The experiment's own figures, one set for each group of comparable points."""
    from experiments._command.registry import find

    if not rows:
        return [], []
    try:
        subject = experiment(find(name))
    except ConfigError:
        return [], [f"No figures: there is no experiment {name} here."]
    pictures, notes = [], []
    groups = _groups(rows, together=bool(subject.batched))
    for title, records in list(groups.items())[:MAX_GROUPS]:
        label = f" ({title})" if title else ""
        try:
            drawn = _svgs(subject.figures, records)
        except Exception as error:  # noqa: BLE001 (the report says so and goes on)
            notes.append(f"No figure{label}: {type(error).__name__}: {error}")
        else:
            pictures += [Picture(f"{key}.svg{label}", svg) for key, svg in drawn]
    if len(groups) > MAX_GROUPS:
        notes.append(f"Figures of the first {MAX_GROUPS} of {len(groups)} settings.")
    return pictures, notes


def _groups(rows: Sequence[Row], *, together: bool) -> dict[str, list[dict[str, Any]]]:
    """Records by setting: points that differ in the experiment's own lists only.

    `steps: [[1], [10]]` as an axis is `steps: [1, 10]` in a run: one figure. An
    experiment that is made of points (`BATCHED`) draws all of them `together`.
    """
    if together:
        return {"": [record for row in rows for record in row.records]}
    lists = {n for row in rows for n, v in _fields(row).items() if isinstance(v, list)}
    varying = [name for name in _varying(rows) if name not in lists]
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(_named(_axes(row, varying)), []).extend(row.records)
    return groups


def _svgs(
    figures: Callable[[Sequence[dict[str, Any]]], Mapping[str, Any]],
    records: Sequence[dict[str, Any]],
) -> list[tuple[str, str]]:
    from experiments._report.hover import to_svg
    from experiments._report.style import figure_style

    with figure_style():
        return [(name, to_svg(figure)) for name, figure in figures(records).items()]


def _named(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in values.items())


def _scalar(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def _common(found: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What rows say alike; where they differ, the first few values."""
    names = dict.fromkeys(name for content in found for name in content)
    result = {}
    for name in names:
        values = list(dict.fromkeys(c[name] for c in found if name in c))
        more = f", … ({len(values)} values)" if len(values) > 3 else ""
        result[name] = ", ".join(values[:3]) + more
    return result

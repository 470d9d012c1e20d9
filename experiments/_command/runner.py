"""Run one experiment: folder, provenance, records as they come, table, figures."""

import datetime as dt
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import jax
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from experiments._command.config import ExperimentConfig, digest, to_yaml
from experiments._command.provenance import origin

Record: TypeAlias = Mapping[str, Any]
"""One result. Numbers and text are shown; lists and mappings are kept for figures.
Records with a `table` entry are shown in a table of that name."""

_kept_in: ContextVar[Path | None] = ContextVar("_kept_in", default=None)


def output_folder() -> Path | None:
    """`runs/<experiment>/` while `execute` runs it, the same for each run; else None.

    For what an experiment keeps from one run to the next, such as checkpoints.
    """
    return _kept_in.get()


def execute(module: ModuleType, config: ExperimentConfig, runs: Path) -> Path:
    """Run `module` on `config` and keep everything under `runs/<experiment>/<id>/`.

    The folder is new for each run. Records are on disk as soon as they are known;
    `provenance.json` says `running`, then `finished` or `failed`.

    Returns:
        The folder.
    """
    parent = runs / module.__name__.rpartition(".")[2]
    token = _kept_in.set(parent)
    try:
        with jax.enable_x64(config.dtype == "float64"):
            return _execute(module, config, parent)
    finally:
        _kept_in.reset(token)


def _execute(module: ModuleType, config: ExperimentConfig, parent: Path) -> Path:
    console = Console(width=None if sys.stdout.isatty() else 140)
    folder = _new_folder(parent, digest(config))
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    provenance = {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        **origin(config),
    }
    start = time.perf_counter()

    def note(status: str) -> None:
        provenance.update(status=status, wall_seconds=time.perf_counter() - start)
        _write_json(folder / "provenance.json", provenance)

    note("running")
    try:
        _describe_data(config, folder)
        records = []
        with (folder / "records.jsonl").open("w", encoding="utf-8") as file:
            for record in _with_progress(module, config):
                file.write(json.dumps(record) + "\n")
                file.flush()
                records.append(record)
        _show(records, module, console)
        _save_figures(module, records, folder)
    except BaseException as error:
        note(f"failed: {type(error).__name__}: {error}")
        raise
    note("finished")
    console.print(f"{folder}  ({provenance['wall_seconds']:.1f} s)", highlight=False)
    return folder


def _new_folder(parent: Path, key: str) -> Path:
    stamp = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%SZ")
    for attempt in range(1000):
        folder = parent / (f"{stamp}-{key}" + (f"-{attempt}" if attempt else ""))
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    msg = f"no free folder name under {parent}"
    raise RuntimeError(msg)


def _describe_data(config: ExperimentConfig, folder: Path) -> None:
    """Keep what was read and how it was standardized; a bad file fails here."""
    data = getattr(config, "data", None)
    if data is not None:
        from experiments._settings.data import load_regression

        seed = getattr(config, "data_seed", config.seed)
        problem = load_regression(data, seed=seed, dtype=config.dtype)
        _write_json(folder / "data.json", problem.description)


def _with_progress(module: ModuleType, config: ExperimentConfig) -> Iterator[Record]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    total = module.size(config) if hasattr(module, "size") else None
    name = module.__name__.rpartition(".")[2]
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=total)
        for record in module.run(config):
            yield record
            bar.advance(task)


def _show(records: list[Record], module: ModuleType, console: Console) -> None:
    tables: dict[str, list[Record]] = {}
    for record in records:
        tables.setdefault(record.get("table", module.__name__), []).append(record)
    for title, rows in tables.items():
        keys = [
            key
            for key, value in rows[0].items()
            if key != "table" and not isinstance(value, list | dict)
        ]
        table = Table(title=title.removeprefix("experiments."))
        for key in keys:
            right = not isinstance(rows[0][key], str)
            table.add_column(
                key.replace("_", " "), justify="right" if right else "left"
            )
        for row in rows:
            table.add_row(*(escape(cell(row.get(key))) for key in keys))
        console.print(table)


def cell(value: Any) -> str:
    """A value as tables show it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.7g}" if 1e-3 <= abs(value) < 1e5 else f"{value:.2e}"
    return "" if value is None else str(value)


def _save_figures(module: ModuleType, records: list[Record], folder: Path) -> None:
    if not hasattr(module, "figures"):
        return
    from experiments._report.hover import to_svg
    from experiments._report.style import figure_style

    with figure_style():
        for name, figure in module.figures(records).items():
            figure.savefig(folder / f"{name}.png")
            (folder / f"{name}.svg").write_text(to_svg(figure), encoding="utf-8")


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

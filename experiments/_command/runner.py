"""Run one experiment: folder, provenance, records as they come, table, figures."""

import datetime as dt
import io
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

import metalr
from experiments._command import strict_json, tables
from experiments._command.config import ConfigError, digest, to_yaml
from experiments._command.experiment import (
    Experiment,
    ExperimentConfig,
    Record,
    experiment,
    kept_in,
)
from experiments._command.others import Others
from experiments._command.provenance import origin
from experiments._command.run_folder import (
    environment,
    new_folder,
    write,
    write_json,
)
from experiments._command.streams import say


def execute(module: ModuleType, config: ExperimentConfig, runs: Path) -> Path:
    """Run `module` on `config` and keep everything under `runs/<experiment>/<id>/`.

    The folder is new for each run (`run_folder`). Records are on disk as soon as they
    are known; `provenance.json` says `running`, then `finished` or `failed`.

    Returns:
        The folder.

    Raises:
        ConfigError: if the data, the machine or the library refuse what the config
            asks for.
    """
    subject = experiment(module)
    parent = runs / subject.name
    with kept_in(parent), jax.enable_x64(config.dtype == "float64"):
        with environment("keep results"):
            folder = new_folder(parent, digest(config))
        return _execute(subject, config, folder)


def _execute(subject: Experiment, config: ExperimentConfig, folder: Path) -> Path:
    provenance = {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "compilation_cache": bool(os.environ.get("JAX_COMPILATION_CACHE_DIR")),
        **origin(config),
    }
    start, others = time.perf_counter(), Others()

    def note(status: str) -> None:
        provenance.update(status=status, wall_seconds=time.perf_counter() - start)
        provenance.update(other_cores=others.cores())
        write_json(folder / "provenance.json", provenance)

    try:
        with environment(f"finish {subject.name}"):
            write(folder / "config.yaml", to_yaml(config))
            note("running")
            records = _kept(subject, config, folder)
            _save_figures(subject, records, folder)
            note("finished")
    except BaseException as error:
        with suppress(OSError):
            note(f"failed: {type(error).__name__}: {error}")
            write(folder / "traceback.txt", traceback.format_exc())
        if refusal := _refusal(error):
            raise ConfigError(refusal) from error
        raise
    _show(subject, records, folder)
    say(f"{folder}  ({provenance['wall_seconds']:.1f} s)")
    return folder


def _refusal(error: BaseException) -> str | None:
    """What the machine or the library could not do, in a line; None: a fault."""
    if isinstance(error, MemoryError):
        return f"out of memory: {error}".removesuffix(": ")
    if isinstance(error, OverflowError):
        return f"a number is too large: {error}"
    if isinstance(error, jax.errors.JaxRuntimeError):
        text = str(error).partition("\n")[0]
        full = "RESOURCE_EXHAUSTED" in text or "Out of memory" in text
        return f"out of memory: {text}" if full else None
    if isinstance(error, ValueError) and _raised_in_metalr(error):
        return str(error)
    return None


def _raised_in_metalr(error: BaseException) -> bool:
    """Whether the library itself refused a value, which it does by `ValueError`."""
    frames = list(traceback.walk_tb(error.__traceback__))
    home = str(Path(metalr.__file__).parent) + os.sep
    return bool(frames) and frames[-1][0].f_code.co_filename.startswith(home)


def _kept(
    subject: Experiment, config: ExperimentConfig, folder: Path
) -> list[dict[str, Any]]:
    """Run, each record on disk as soon as it is known."""
    data = config.describe()
    if data is not None:
        write_json(folder / "data.json", data)
    records = []
    with (folder / "records.jsonl").open("w", encoding="utf-8") as file:
        for record in _with_progress(subject, config):
            file.write(strict_json.dumps(record) + "\n")
            file.flush()
            records.append(dict(record))
    return records


def _with_progress(subject: Experiment, config: ExperimentConfig) -> Iterator[Record]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(subject.name, total=subject.size(config))
        for record in subject.run(config):
            yield record
            bar.advance(task)


def _show(subject: Experiment, records: Sequence[Record], folder: Path) -> None:
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(str(record.get("table", subject.name)), []).append(record)
    for title, rows in found.items():
        whole = f"python -m experiments report {folder}"
        say(tables.render(title, rows, whole=whole))


def _save_figures(subject: Experiment, records: Sequence[Record], folder: Path) -> None:
    if not records:
        return
    from experiments._report.hover import to_svg
    from experiments._report.style import figure_style

    with figure_style():
        for name, figure in subject.figures(records).items():
            picture = io.BytesIO()
            figure.savefig(picture, format="png")
            write(folder / f"{name}.png", picture.getvalue())
            write(folder / f"{name}.svg", to_svg(figure))

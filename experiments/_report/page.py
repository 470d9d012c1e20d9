"""A self-contained HTML page of runs and sweeps: opens from disk, needs no network.

All text is escaped by the template; the page's policy (CSP) allows no request and no
script but its own.
"""

import base64
import datetime as dt
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from experiments._command.config import ConfigError
from experiments._command.run_folder import environment as environment_of, write
from experiments._command.tables import cell, is_number, shown
from experiments._report.gallery import groups
from experiments._report.inline_svg import inline
from experiments._report.records import CONFIGS, read_all
from experiments._report.run_section import run_section
from experiments._report.sections import Picture, Section, Table, summary
from experiments._report.sweep_sections import sweep_sections
from experiments._store.results import as_csv

MAX_ROWS = 60
"""A longer table is shown as its summary; its rows are folded."""

MAX_TEXT = 120
"""Characters of a text in a cell; the whole is shown on hovering."""

MAX_FIGURES = 4
"""Figures of a section shown at once; further ones are folded."""

MAX_FAILURES = 50
"""Points without a result shown at once; further ones are folded."""

GENERATOR = '<meta name="generator" content="metalr">'
"""By this line a report of ours is known."""

_FOLDER = Path(__file__).parent


class Cell(NamedTuple):
    """A cell: what is shown, and what hovering and sorting see."""

    text: str
    exact: str  # shown on hovering; empty if the text says all
    number: str  # sorted by this; empty if it is not a number


class Column(NamedTuple):
    """A column's head."""

    name: str
    numeric: bool


def write_report(sources: Sequence[Path], out: Path) -> None:
    """Write the page of run folders and stores.

    Raises:
        ConfigError: if a source is neither, or `out` is a file that is no report, or
            cannot be written. Nothing is written then.
    """
    _check_target(out)
    found = [section for source in sources for section in _sections(source)]
    _write(out, render(found))


def write_gallery(out: Path, configs: Path = CONFIGS) -> None:
    """Write the page of all published results.

    Raises:
        ConfigError: if a record is damaged or has lost its figure, or `out` is a file
            that is no report, or cannot be written. Nothing is written then.
    """
    _check_target(out)
    records = read_all(configs)
    if not records:
        msg = f"{configs / 'records'} holds no record: name a run or a store"
        raise ConfigError(msg)
    title = "What metalr does: the gallery"
    shown = groups(records, configs)
    _write(out, _page("gallery.html.jinja", title, groups=shown))


def render(found: Sequence[Section]) -> str:
    """The page of these sections as text."""
    title = ", ".join(dict.fromkeys(section.title for section in found))
    return _page(
        "report.html.jinja",
        f"metalr: {title}",
        heading=title,
        sections=found,
        columns=columns,
        row=row,
        summary=summary,
        csv=_csv,
        file_name=_file_name,
        figure=_figure,
        max_rows=MAX_ROWS,
        max_figures=MAX_FIGURES,
        max_failures=MAX_FAILURES,
    )


def _page(template: str, title: str, **content: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script, style = (
        (_FOLDER / f"report.{kind}").read_text(encoding="utf-8").strip()
        for kind in ("js", "css")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(
        generator=Markup(GENERATOR),
        title=title,
        made=dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        script=Markup(script),
        script_hash=digest,
        style=Markup(style),
        **content,
    )


def _write(out: Path, page: str) -> None:
    with environment_of("write"):
        out.parent.mkdir(parents=True, exist_ok=True)
        write(out, page)


def columns(table: Table) -> list[Column]:
    """The columns to show: all fields but lists and mappings."""
    result = []
    for name in shown(table.rows):
        values = [row.get(name) for row in table.rows]
        present = [value for value in values if value is not None]
        numeric = bool(present) and all(is_number(value) for value in present)
        result.append(Column(name, numeric))
    return result


def row(content: dict[str, Any], heads: Sequence[Column]) -> list[Cell]:
    """The cells of a row."""
    return [_cell(content.get(head.name)) for head in heads]


def _sections(source: Path) -> list[Section]:
    if source.is_dir():
        return [run_section(source)]
    if not source.exists():
        msg = f"{source}: there is no such run folder or store"
        raise ConfigError(msg)
    return sweep_sections(source)


def _cell(value: Any) -> Cell:
    text = cell(value)
    if not is_number(value):
        short = text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"
        return Cell(short, "" if short == text else text, "")
    exact = repr(value)
    number = exact.replace("inf", "Infinity").replace("nan", "NaN")
    whole = text == exact or float(text) == value
    return Cell(text, "" if whole else exact, number)


def _csv(table: Table) -> str:
    content = base64.b64encode(as_csv(table.rows).encode(errors="replace")).decode()
    return f"data:text/csv;charset=utf-8;base64,{content}"


def _file_name(*parts: str) -> str:
    return re.sub(r"[^\w.-]+", "_", "-".join(parts)) + ".csv"


def _figure(picture: Picture, prefix: str) -> Markup:
    """The drawing, or why there is none."""
    try:
        return Markup(inline(picture.svg, prefix, f"Figure {picture.name}"))
    except ConfigError as error:
        return Markup("<p>{}</p>").format(str(error))


def _check_target(out: Path) -> None:
    if not out.exists():
        return
    try:
        with out.open(encoding="utf-8", errors="replace") as file:
            ours = GENERATOR in file.read(4000)
    except OSError as error:
        msg = f"cannot write {out}: {error.strerror}"
        raise ConfigError(msg) from error
    if not ours:
        msg = f"--out {out} exists and is not a report: it is not overwritten"
        raise ConfigError(msg)

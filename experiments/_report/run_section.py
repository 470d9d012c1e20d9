"""A run's folder as a section of a report."""

from pathlib import Path

from experiments._command.config import parse
from experiments._command.run_folder import read_run, read_text
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
    run = read_run(folder)
    provenance, records = dict(run.provenance), run.records
    name = _experiment(run.config, folder / "config.yaml")
    name = name or folder.resolve().parent.name
    notes = ["The last record is incomplete and left out."] if run.cut else []
    message = str(provenance.pop("status", "unfinished"))
    seconds = provenance.pop("wall_seconds", None)
    status = {"running": "unfinished"}.get(message, message.partition(":")[0])
    if message == "running":
        notes.append("This run was still going on, or was killed, when last noted.")
    pictures = [Picture(p.name, read_text(p)) for p in sorted(folder.glob("*.svg"))]
    summary = f"{len(records)} records"
    if isinstance(seconds, int | float) and message != "running":
        summary += f" in {seconds:.1f} s"
    failed = message.startswith("failed")
    trace = read_text(folder / "traceback.txt", message)
    return Section(
        title=name,
        question=question(name),
        source=str(folder),
        status=status,
        good=message == "finished",
        summary=summary,
        provenance=flat(provenance),
        config=run.config,
        data=flat(run.data if isinstance(run.data, dict) else {"data": run.data}),
        tables=tables(name, ((record, record) for record in records)),
        pictures=pictures,
        failures=[Failure("failed", "the run", trace)] if failed else [],
        notes=notes,
    )


def _experiment(config: str, path: Path) -> str | None:
    content = parse(config, str(path))
    name = content.get("experiment") if isinstance(content, dict) else None
    return name if isinstance(name, str) else None

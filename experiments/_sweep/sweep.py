"""The driver of a sweep: skips what is finished, has the rest computed, keeps it."""

import sys
from collections import Counter, deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from experiments._command import tables
from experiments._command.config import dotted
from experiments._command.paths import inside
from experiments._command.progress import sweep_progress
from experiments._command.streams import say
from experiments._store.rows import Row
from experiments._store.store import read, writing
from experiments._sweep.batches import Point, batches
from experiments._sweep.executors import execute
from experiments._sweep.jobs import Job, Outcome
from experiments._sweep.plan import Plan, short_name

_SHOWN = 20
"""Failures named in the summary."""


class Totals(NamedTuple):
    """What a sweep came to."""

    skipped: int
    finished: int
    failed: int
    timed_out: int


def store_path(plan: Plan, runs: Path, name: str, chosen: Path | None) -> Path:
    """Where the results go: as chosen on the command line, or inside `runs`.

    Raises:
        ConfigError: if the config's `store` leaves that folder.
    """
    if chosen is not None:
        return chosen
    return inside(runs, plan.sections.store or f"{name}.sqlite", field="store")


def run_sweep(plan: Plan, path: Path) -> Totals:
    """Compute the points that the store does not have as finished.

    A point is written as soon as its outcome is known. The sweep may be killed at any
    moment: the next one goes on from there.

    Raises:
        StoreError: if another sweep writes to the store, or it cannot be written.
        ConfigError: if the executor cannot work.
    """
    console = Console(stderr=True)
    with writing(path) as store:
        store.note("sweep", plan.content)
        known = store.statuses()
        todo = [p for p in plan.points if known.get(p.key, ("",))[0] != "finished"]
        skipped = len(plan.points) - len(todo)
        tries = {point.key: known.get(point.key, ("", 0))[1] for point in todo}
        with sweep_progress(
            short_name(plan.module),
            total=len(plan.points),
            skipped=skipped,
            console=console,
        ) as tell:
            failures = []
            counts: Counter[str] = Counter()
            with closing(_rows(plan, todo, tries)) as rows:
                for row in rows:
                    store.write(row)
                    counts[row.status] += 1
                    tell(row.status)
                    if row.status != "finished":
                        failures.append(row)
    _show(failures, plan)
    return Totals(skipped, counts["finished"], counts["failed"], counts["timed_out"])


def preview(plan: Plan, path: Path) -> None:
    """Print the points and what a sweep would do with each; nothing is written."""
    stored = read(path) if path.exists() else []
    known = {row.key: row.status for row in stored}
    verbs = {"finished": "skip", "failed": "retry", "timed_out": "retry"}
    varied = plan.sections.sweep.names()
    actions: Counter[str] = Counter()
    shown = []
    for point in plan.points:
        action = verbs.get(known.get(point.key, ""), "run")
        actions[action] += 1
        shown.append({"": action} | _values(point.content, varied))
    title = f"{short_name(plan.module)}: {len(plan.points)} points"
    say(tables.render(title, shown, whole=f"they are in {path} when computed"))
    say(_summary(plan, actions))
    old = sum(row.provenance.get("code_version") != plan.code for row in stored)
    if old:
        say(f"{old} results of other versions of the code stay in {path}")


def _summary(plan: Plan, actions: Mapping[str, int]) -> str:
    programs = list(_jobs(plan, plan.points))
    parts = [f"{actions[name]} to {name}" for name in actions]
    parts += [f"{plan.excluded} excluded"] if plan.excluded else []
    parts += [f"{plan.merged} equal to another, merged"] if plan.merged else []
    return f"{', '.join(parts)}; as {len(programs)} jobs"


def _rows(
    plan: Plan, todo: Sequence[Point], tries: dict[str, int]
) -> Generator[Row, None, None]:
    """A row for each point, when it is done or given up."""
    executor = plan.sections.executor
    points = {point.key: point for point in todo}
    before = dict(tries)
    jobs = deque(_jobs(plan, todo))
    together = {key for job in jobs if len(job.keys) > 1 for key in job.keys}
    for outcome in execute(executor, jobs):
        point = points.get(outcome.key)
        if point is None:  # a repetition of what has been written
            continue
        trouble = outcome.status in ("lost", "timed_out")
        if trouble and outcome.key in together:
            # Whose fault it was shows when they run alone; it does not count.
            together.discard(outcome.key)
            jobs.append(_job(plan, [point]))
            continue
        tries[outcome.key] += 1
        again = outcome.status in ("failed", "lost") and not outcome.final
        if again and tries[outcome.key] - before[outcome.key] <= executor.retries:
            together.discard(outcome.key)
            jobs.append(_job(plan, [point]))
            continue
        yield _row(plan, points.pop(outcome.key), outcome, tries[outcome.key])


def _jobs(plan: Plan, points: Sequence[Point]) -> Iterator[Job]:
    executor = plan.sections.executor
    options = {"memory": executor.memory, "most": executor.batch}
    for batch in batches(plan.module, points, **options):
        yield _job(plan, batch)


def _job(plan: Plan, points: Sequence[Point]) -> Job:
    keys = tuple(point.key for point in points)
    configs = tuple(point.content for point in points)
    return Job(plan.module.__name__, plan.code, keys, configs)


def _row(plan: Plan, point: Point, outcome: Outcome, attempts: int) -> Row:
    status = "failed" if outcome.status == "lost" else outcome.status
    command = {"command": [Path(sys.argv[0]).name, *sys.argv[1:]]}
    return Row(
        key=point.key,
        experiment=short_name(plan.module),
        config=point.content,
        status=status,
        error=outcome.error,
        records=outcome.records,
        provenance=command | {"code_version": plan.code} | outcome.provenance,
        seconds=outcome.seconds,
        attempts=attempts,
        finished_at=outcome.finished_at,
    )


def _show(failures: Sequence[Row], plan: Plan) -> None:
    if not failures:
        return
    varied = plan.sections.sweep.names()
    shown = [
        {"status": row.status}
        | {"why": (row.error or "").strip().rpartition("\n")[2]}
        | _values(row.config, varied)
        for row in failures[:_SHOWN]
    ]
    title = f"{len(failures)} points failed"
    say(tables.render(title, shown, whole="see `results`"), error=True)
    if len(failures) > _SHOWN:
        say(f"… and {len(failures) - _SHOWN} more: see `results`", error=True)


def _values(content: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The fields that vary; a list or a mapping as text."""
    flat = content | dotted(content)
    found = {name: flat.get(name, "") for name in names}
    return {n: str(v) if isinstance(v, list | dict) else v for n, v in found.items()}

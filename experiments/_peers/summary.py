"""The row of each way in a case: medians over its processes, ratios, aims."""

import statistics
from collections.abc import Iterator
from typing import Any, NamedTuple

from experiments._command.experiment import Record
from experiments._peers import work
from experiments._peers.ways import Way

FLOOR_MB = 0.1
"""Rises of a process's memory below this are noise."""

_TORCH_AIMS: dict[work.Problem, tuple[float, float]] = {
    "regression": (20, 1),
    "mlp": (1, 100),
}
"""Times the time and the memory of `Forward()` that a PyTorch peer takes, at least."""


class Row(NamedTuple):
    """The processes of one way and case, and what they gave."""

    way: Way
    case: work.Case
    results: list[dict[str, Any]]
    verdicts: list[str]
    errors: list[float | None]


def summary(rows: list[Row], *, aimed: bool) -> Iterator[Record]:
    """One row for each way: medians over its processes, ratios to metalr's best."""
    table = [_row(row) for row in rows]
    ours = [
        entry
        for row, entry in zip(rows, table, strict=True)
        if row.way.ours and entry["verdict"] == "right"
    ]
    for entry in table:
        for ratio, key in (("times_slower", "ms"), ("times_larger", "memory_mb")):
            best = min((our[key] for our in ours), default=None)
            floor = FLOOR_MB if key == "memory_mb" else 0.0
            if best is not None and entry[key] is not None:
                entry[ratio] = max(entry[key], floor) / max(best, floor)
    if aimed:
        _judge_aim(rows, table)
    yield from table


def _judge_aim(rows: list[Row], table: list[dict[str, Any]]) -> None:
    """Hold each right peer against `Forward()`, time and memory both."""
    entries = {row.way.name: entry for row, entry in zip(rows, table, strict=True)}
    forward = entries.get("metalr Forward()", {"verdict": "absent"})
    for row in rows:
        entry = entries[row.way.name]
        entry["aim"], entry["reached"] = "", None
        if row.way.ours or not entry["verdict"] == forward["verdict"] == "right":
            continue
        torch = row.way.framework == "torch"
        time, size = _TORCH_AIMS[row.case.problem] if torch else (1, 1)
        key = "memory_mb" if torch else "xla_temp_mb"
        entry["aim"] = f"≥ {time} × time, {size} × memory of Forward()"
        entry["reached"] = (
            entry["ms"] >= time * forward["ms"] and entry[key] >= size * forward[key]
        )


def _row(row: Row) -> dict[str, Any]:
    done = [result for result in row.results if "seconds" in result]
    middle = lambda values: statistics.median(values) if done else None
    temps = [r["xla_temp_bytes"] for r in done if r.get("xla_temp_bytes") is not None]
    words = [text.partition(": ") for text in dict.fromkeys(row.verdicts)]
    return {
        "table": str(row.case),
        "way": row.way.name,
        "verdict": " / ".join(dict.fromkeys(word for word, _, _ in words)),
        "ms": middle([1e3 * statistics.median(r["seconds"]) for r in done]),
        "times_slower": None,
        "memory_mb": middle(
            [max(r["peak_bytes"], r.get("xla_temp_bytes") or 0) / 1e6 for r in done]
        ),
        "times_larger": None,
        "error": max((e for e in row.errors if e is not None), default=None),
        "first_call_s": middle([r["first_seconds"] for r in done]),
        "xla_temp_mb": statistics.median(temps) / 1e6 if temps else None,
        "lines": done[0]["lines"] if done else None,
        "why": " / ".join(why for _, _, why in words if why),
        "versions": done[0]["versions"] if done else {},
    }

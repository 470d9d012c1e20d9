"""Which points of a sweep run as one program: those that differ in `BATCHED` only."""

import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from experiments._command.config import dotted
from experiments._command.experiment import Experiment, ExperimentConfig, experiment


class Point(NamedTuple):
    """One point of a sweep."""

    key: str
    config: ExperimentConfig
    content: dict[str, Any]  # the config as the store keeps it


def batches(
    module: ModuleType, points: Sequence[Point], *, memory: int, most: int
) -> Iterator[Sequence[Point]]:
    """Points grouped by program, so that each is compiled in one go, and cut to size.

    The batches of a group differ in length by one at most: a program is compiled anew
    for another length.

    Args:
        module: the experiment.
        points: in any order.
        memory: bytes of a batch, where the experiment says what a point takes.
        most: points in a batch.
    """
    subject = experiment(module)
    if subject.run_batch is None:
        yield from ((point,) for point in points)
        return
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(program(subject, point.content), []).append(point)
    for group in groups.values():
        length = most
        if subject.point_bytes is not None:
            length = min(most, memory // _bytes(subject.point_bytes, group[0]))
        count = math.ceil(len(group) / max(1, length))
        ends = [round(index * len(group) / count) for index in range(count + 1)]
        yield from (group[a:b] for a, b in itertools.pairwise(ends))


def _bytes(point_bytes: Callable[[Any], int], point: Point) -> int:
    """Of a point; where that cannot be told, it runs alone and says why."""
    try:
        return max(1, int(point_bytes(point.config)))
    except Exception:  # noqa: BLE001 (anybody's code)
        return sys.maxsize


def program(subject: Experiment, content: dict[str, Any]) -> str:
    """What two configs share exactly if they run as one program."""
    fixed = {
        name: value
        for name, value in dotted(content).items()
        if not any(
            name == field or name.startswith(f"{field}.") for field in subject.batched
        )
    }
    return json.dumps(fixed, sort_keys=True)

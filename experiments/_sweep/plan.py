"""A sweep before it runs: its config, every point validated, what each would do."""

import copy
import hashlib
import json
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

from pydantic import Field

from experiments._command.config import ConfigError, Model, dotted, put, validate
from experiments._command.registry import find
from experiments._command.sources import code_version
from experiments._sweep.axes import Sweep, assignments, flatten
from experiments._sweep.batches import Point
from experiments._sweep.conditions import holds
from experiments._sweep.executors import Executor, Serial

_SHOWN = 20
"""Mistakes named in an error."""


class Sections(Model):
    """What a sweep's config has besides the experiment's own fields."""

    sweep: Sweep = Sweep()
    executor: Executor = Serial()
    store: str | None = Field(default=None, min_length=1)  # in the folder of results


class Plan(NamedTuple):
    """What is to be computed, and how."""

    module: ModuleType
    code: str
    sections: Sections
    content: dict[str, Any]  # the sweep's config as it was given
    points: list[Point]
    excluded: int
    merged: int  # points equal to an earlier one


def make_plan(content: Mapping[str, Any]) -> Plan:
    """Validate everything.

    Raises:
        ConfigError: with the mistakes of the sections, or of all points, at once.
    """
    module = find(content.get("experiment"))
    own = {name: content[name] for name in Sections.model_fields if name in content}
    if "sweep" in own:
        own["sweep"] = flatten(own["sweep"])
    base = {name: value for name, value in content.items() if name not in own}
    sections = _sections(own, module, base)
    points, excluded = _points(module, base, sections.sweep)
    distinct = {point.key: point for point in points}
    if not distinct:
        msg = f"sweep.exclude leaves none of the {excluded} points"
        raise ConfigError(msg)
    return Plan(
        module,
        code_version(module),
        sections,
        dict(content),
        list(distinct.values()),
        excluded,
        len(points) - len(distinct),
    )


def point_key(experiment: str, content: Mapping[str, Any], code: str) -> str:
    """The hash under which a point's result is kept."""
    text = json.dumps([experiment, content, code], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def short_name(module: ModuleType) -> str:
    """An experiment's name: the last part of its module's."""
    return module.__name__.rpartition(".")[2]


def _sections(
    own: Mapping[str, Any], module: ModuleType, base: Mapping[str, Any]
) -> Sections:
    try:
        return validate(Sections, own)
    except ConfigError as error:
        messages = [str(error)]
        try:
            validate(module.Config, base)
        except ConfigError as further:
            messages.append(str(further))
        raise ConfigError("\n".join(messages)) from error


def _points(
    module: ModuleType, base: Mapping[str, Any], sweep: Sweep
) -> tuple[list[Point], int]:
    points: list[Point] = []
    mistakes: dict[str, int] = {}
    excluded, wrong, seen = 0, 0, set()
    code, name = code_version(module), short_name(module)
    for changes in assignments(sweep, base.get("seed", 0)):
        given = copy.deepcopy(dict(base))
        for key, value in changes.items():
            put(given, key, value)
        problem, fields, content, config = None, dotted(given), given, None
        try:
            config = validate(module.Config, given)
            content = config.model_dump(mode="json")
            fields = content | dotted(content)
        except ConfigError as error:
            problem = error
        seen |= fields.keys()
        if _excluded(sweep, fields, valid=config is not None):
            excluded += 1
        elif config is None:
            wrong += 1
            for line in str(problem).splitlines()[1:]:
                mistakes[line] = mistakes.get(line, 0) + 1
        else:
            points.append(Point(point_key(name, content, code), config, content))
    _check(mistakes, wrong, seen, sweep)
    return points, excluded


def _excluded(sweep: Sweep, fields: Mapping[str, Any], *, valid: bool) -> bool:
    for conditions in sweep.exclude:
        try:
            if holds(conditions, fields):
                return True
        except ConfigError:  # a wrong value, which is reported as such, has no order
            if valid:
                raise
    return False


def _check(
    mistakes: Mapping[str, int], wrong: int, seen: set[str], sweep: Sweep
) -> None:
    lines = [
        f"  sweep.exclude.{index}.{name}: no point has such a field"
        for index, conditions in enumerate(sweep.exclude)
        for name in conditions
        if name not in seen
    ]
    lines += [
        line + (f"  (in {count} points)" if count > 1 else "")
        for line, count in mistakes.items()
    ]
    if lines:
        more = len(lines) - _SHOWN
        lines = [*lines[:_SHOWN], f"  … and {more} more"] if more > 0 else lines
        heading = f"{len(lines)} mistake(s) in the sweep ({wrong} points are wrong):"
        raise ConfigError("\n".join([heading, *lines]))

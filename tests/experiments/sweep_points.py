"""Question: does a sweep survive its points? An experiment for the tests of sweeps.

What runs is noted in the file $SWEEP_LOG, a line at the start and the end of a point.
"""

import contextlib
import math
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from experiments._command.experiment import ConfigError, ExperimentConfig

BATCHED = ("x",)


class Part(ExperimentConfig):
    """A nested part, so that keys are dotted."""

    y: float = 0.5


Behavior: TypeAlias = (
    Literal["ok", "nan", "raise", "refuse", "hang", "die", "die_once", "child"]
    | Literal["surrogate", "escapes", "unprintable", "exit", "base", "interrupt"]
    | Literal["no mapping", "no list", "lone surrogate", "huge", "deep", "odd"]
)


class Config(ExperimentConfig):
    """Options of this experiment."""

    experiment: Literal["sweep_points"] = "sweep_points"
    x: int = 0
    part: Part = Part()
    behavior: Behavior = "ok"
    bad: int | None = None  # the x that misbehaves; all by default
    pause: float = 0.0
    jax: bool = True  # whether a point computes with it


def run(config: Config) -> Iterator[dict[str, Any]]:
    """Yield two records of two tables, or misbehave."""
    note("start", config.x)
    time.sleep(config.pause)
    _behave(config)
    note("end", config.x)
    yield {"square": _square(config)} | (_precision() if config.jax else {})
    yield {"table": "second", "x": config.x, "curve": [1, 2]}
    if _is_bad(config) and config.behavior in ODD:
        yield ODD[config.behavior]


def run_batch(configs: Sequence[Config]) -> Iterator[list[dict[str, Any]]]:
    """All together: one that misbehaves spoils all."""
    note("batch", len(configs))
    for config in configs:
        _behave(config)
    yield from ([{"square": _square(config)}] for config in configs)


def point_bytes(config: Config) -> int:
    """As if a point took a MiB."""
    return 2**20


def note(what: str, x: int) -> None:
    """A line in the log, whoever else writes to it."""
    with Path(os.environ["SWEEP_LOG"]).open("a", encoding="utf-8") as file:
        file.write(f"{what} {x}\n")


def _deep(levels: int) -> Any:
    return [_deep(levels - 1)] if levels else []


ODD: dict[str, Any] = {
    "no mapping": ["square", 1.0],
    "no list": {"square": {1.0}},
    "lone surrogate": {"text": "\ud800"},
    "huge": {"square": 10**400},
    "deep": {"square": _deep(60)},
    "odd": {(1, 2): 3},
}
"""What is no record of a store."""


class Unprintable(Exception):
    """An error whose text cannot be had."""

    def __str__(self) -> str:
        """Raise, and no mere Exception."""
        raise KeyboardInterrupt


RAISED: dict[str, BaseException] = {
    "raise": RuntimeError("[bold]point {} is broken"),
    "refuse": ConfigError("this point makes no sense"),
    "surrogate": RuntimeError("a lone \ud800 in point {}"),
    "escapes": RuntimeError("\x1b]0;title\x07\x1b[31mred\0 in point {}"),
    "unprintable": Unprintable(),
    "exit": SystemExit(0),
    "base": BaseException("neither an Exception nor a signal"),
    "interrupt": KeyboardInterrupt(),
}


def _precision() -> dict[str, str]:
    import jax.numpy as jnp  # here, as experiments do with what is slow to import

    return {"dtype_of_one": str(jnp.ones(()).dtype)}


def _square(config: Config) -> float:
    return math.nan if config.behavior == "nan" else float(config.x**2)


def _is_bad(config: Config) -> bool:
    return config.bad is None or config.x == config.bad


def _behave(config: Config) -> None:
    if not _is_bad(config):
        return
    if config.behavior in RAISED:
        error = RAISED[config.behavior]
        with contextlib.suppress(IndexError):
            error.args = (str(error.args[0]).format(config.x),)
        raise error
    if config.behavior == "child":
        subprocess.Popen(["sleep", "1000"])
    if config.behavior in ("hang", "child"):
        time.sleep(1e6)
    starts = Path(os.environ["SWEEP_LOG"]).read_text(encoding="utf-8").splitlines()
    first = starts.count(f"start {config.x}") <= 1
    if config.behavior == "die" or (config.behavior == "die_once" and first):
        os.kill(os.getpid(), signal.SIGKILL)

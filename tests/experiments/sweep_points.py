"""Question: does a sweep survive its points? An experiment for the tests of sweeps.

What runs is noted in the file $SWEEP_LOG, a line at the start and the end of a point.
"""

import math
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp

from experiments._command.experiment import ConfigError, ExperimentConfig

BATCHED = ("x",)


class Part(ExperimentConfig):
    """A nested part, so that keys are dotted."""

    y: float = 0.5


class Config(ExperimentConfig):
    """Options of this experiment."""

    experiment: Literal["sweep_points"] = "sweep_points"
    x: int = 0
    part: Part = Part()
    behavior: Literal["ok", "raise", "refuse", "nan", "hang", "die", "die_once"] = "ok"
    bad: int | None = None  # the x that misbehaves; all by default
    pause: float = 0.0


def run(config: Config) -> Iterator[dict[str, Any]]:
    """Yield two records of two tables, or misbehave."""
    note("start", config.x)
    time.sleep(config.pause)
    _behave(config)
    note("end", config.x)
    yield {"square": _square(config), "dtype_of_one": str(jnp.ones(()).dtype)}
    yield {"table": "second", "x": config.x, "curve": [1, 2]}


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


def _square(config: Config) -> float:
    return math.nan if config.behavior == "nan" else float(config.x**2)


def _behave(config: Config) -> None:
    if config.bad is not None and config.x != config.bad:
        return
    if config.behavior == "raise":
        message = f"[bold]point {config.x} is broken"
        raise RuntimeError(message)
    if config.behavior == "refuse":
        message = "this point makes no sense"
        raise ConfigError(message)
    if config.behavior == "hang":
        time.sleep(1e6)
    starts = Path(os.environ["SWEEP_LOG"]).read_text(encoding="utf-8").splitlines()
    first = starts.count(f"start {config.x}") <= 1
    if config.behavior == "die" or (config.behavior == "die_once" and first):
        os.kill(os.getpid(), signal.SIGKILL)

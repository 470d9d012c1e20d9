"""The work of a sweep, as workers import it: compute the points of a job."""

import datetime as dt
import gc
import importlib
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

from experiments._command.config import ConfigError, validate
from experiments._command.experiment import ExperimentConfig, experiment
from experiments._command.interrupt import wanted
from experiments._command.provenance import origin
from experiments._command.sources import code_version
from experiments._sweep.boundary import error_text, plain

_JOBS = 10
"""After so many what JAX keeps of their programs goes: each compiles its own."""

_computed = itertools.count(1)


class Job(NamedTuple):
    """Points to compute together; they differ in batched fields only."""

    module: str  # dotted name of the experiment's module
    code: str  # the code version that the driver has
    keys: tuple[str, ...]
    configs: tuple[dict[str, Any], ...]  # validated, one for each key


class Outcome(NamedTuple):
    """How one try of one point ended."""

    key: str
    status: str  # "finished", "failed", "timed_out", or "lost": its worker died
    error: str | None = None
    records: list[dict[str, Any]] = []  # noqa: RUF012 (never changed)
    provenance: dict[str, Any] = {}  # noqa: RUF012
    seconds: float = 0.0
    final: bool = False  # trying again cannot help
    finished_at: str = ""


Point: TypeAlias = tuple[str, dict[str, Any]]
"""A key, and the config's content."""


class WrongCode(ConfigError):
    """A worker would compute with other sources than the driver's."""


def compute(job: Job) -> Iterator[Outcome]:
    """Compute the points of a job, each outcome as soon as it is known.

    Several points go to the experiment's `run_batch`. Where that raises, the points
    that it has not delivered are run one by one, so that only the guilty one fails.

    Raises:
        WrongCode: if this process imports other sources than the driver.
    """
    try:
        module = importlib.import_module(job.module)
    except Exception as error:
        msg = (
            f"a worker cannot import {job.module} ({type(error).__name__}: {error}): "
            "install the same metalr there"
        )
        raise WrongCode(msg) from error
    if code_version(module) != job.code:
        msg = (
            f"a worker has code version {code_version(module)} of {job.module} "
            f"({module.__file__}), the driver {job.code}: install the same metalr there"
        )
        raise WrongCode(msg)
    points = list(zip(job.keys, job.configs, strict=True))
    delivered = 0
    if len(points) > 1 and experiment(module).run_batch is not None:
        for outcome in _batched(module, points):
            yield outcome
            delivered += 1
    for key, content in points[delivered:]:
        yield _alone(module, key, content)
    if next(_computed) % _JOBS == 0:
        _forget()


def _forget() -> None:
    """Let go of programs: else a process grows by some 2 MB with each point."""
    if "jax" in sys.modules:
        import jax

        jax.clear_caches()
        gc.collect()


def _batched(module: ModuleType, points: Sequence[Point]) -> Iterator[Outcome]:
    """As far as it goes: those that do not come are then run alone, and say why."""
    start = time.perf_counter()
    results: Iterator[Any] | None = None
    for key, content in points:
        try:
            if results is None:
                results = _together(module, [content for _, content in points])
            config, records = next(results)
            kept = plain(records)
        except BaseException as error:  # whatever it is: a point's failure is its row
            if wanted(error):
                raise
            return
        elapsed = time.perf_counter() - start
        # One program computes all: what it took is shared.
        yield _finished(module, key, config, kept, elapsed / len(points))


def _together(
    module: ModuleType, contents: Sequence[dict[str, Any]]
) -> Iterator[tuple[ExperimentConfig, Any]]:
    """Each config with its records."""
    configs = [validate(module.Config, content) for content in contents]
    results = _stepwise(lambda: module.run_batch(configs), _x64(configs[0]))
    return zip(configs, results, strict=False)


def _alone(module: ModuleType, key: str, content: dict[str, Any]) -> Outcome:
    start, config = time.perf_counter(), None
    try:
        config = validate(module.Config, content)
        records = plain(_stepwise(lambda: module.run(config), _x64(config)))
    except BaseException as error:
        if wanted(error):
            raise
        return Outcome(
            key,
            "failed",
            error=error_text(error),
            provenance=_provenance(module, config),
            seconds=time.perf_counter() - start,
            final=isinstance(error, ConfigError),
            finished_at=now(),
        )
    return _finished(module, key, config, records, time.perf_counter() - start)


def _finished(
    module: ModuleType,
    key: str,
    config: ExperimentConfig,
    records: list[dict[str, Any]],
    seconds: float,
) -> Outcome:
    provenance = _provenance(module, config)
    return Outcome(
        key,
        "finished",
        records=records,
        provenance=provenance,
        seconds=seconds,
        finished_at=now(),
    )


def _provenance(module: ModuleType, config: ExperimentConfig | None) -> dict[str, Any]:
    """What can be told, where the machine itself is at fault."""
    found: dict[str, Any] = {"code_version": code_version(module)}
    try:
        if config is not None:
            with _precision(_x64(config)):
                found |= origin(config)
    except Exception as error:  # noqa: BLE001 (such as a device that does not start)
        found["unknown"] = f"{type(error).__name__}: {error}"[:200]
    return found


def _stepwise(make: Callable[[], Iterable[Any]], wide: bool) -> Iterator[Any]:
    """Iterate with x64 set as the config asks, and as it was in between."""
    with _precision(wide):
        iterator = iter(make())
    while True:
        with _precision(wide):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item


@contextmanager
def _precision(wide: bool) -> Iterator[None]:
    """JAX with or without x64: what is imported, or what will be, if any is."""
    if "jax" in sys.modules:
        import jax

        with jax.enable_x64(wide):
            yield
        return
    before = os.environ.get("JAX_ENABLE_X64")
    os.environ["JAX_ENABLE_X64"] = str(int(wide))  # read at its import
    try:
        yield
    finally:
        del os.environ["JAX_ENABLE_X64"]
        if before is not None:
            os.environ["JAX_ENABLE_X64"] = before


def _x64(config: ExperimentConfig) -> bool:
    return config.dtype == "float64"


def now() -> str:
    """UTC, ISO 8601."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")

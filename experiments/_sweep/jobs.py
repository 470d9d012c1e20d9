"""The work of a sweep, as workers import it: compute the points of a job."""

import datetime as dt
import importlib
import json
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

import jax

from experiments._command.config import ConfigError, validate
from experiments._command.experiment import ExperimentConfig, experiment
from experiments._command.provenance import origin
from experiments._command.sources import code_version


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


Point: TypeAlias = tuple[str, ExperimentConfig]


class WrongCode(ConfigError):
    """A worker would compute with other sources than the driver's."""


def compute(job: Job) -> Iterator[Outcome]:
    """Compute the points of a job, each outcome as soon as it is known.

    Several points go to the experiment's `run_batch`. Where that raises, the points
    that it has not delivered are run one by one, so that only the guilty one fails.

    Raises:
        WrongCode: if this process imports other sources than the driver.
    """
    module = importlib.import_module(job.module)
    if code_version(module) != job.code:
        msg = (
            f"a worker has code version {code_version(module)} of {job.module} "
            f"({module.__file__}), the driver {job.code}: install the same metalr there"
        )
        raise WrongCode(msg)
    points = [
        (key, validate(module.Config, config))
        for key, config in zip(job.keys, job.configs, strict=True)
    ]
    delivered = 0
    if len(points) > 1 and experiment(module).run_batch is not None:
        for outcome in _batched(module, points):
            yield outcome
            delivered += 1
    for key, config in points[delivered:]:
        yield _alone(module, key, config)


def _batched(module: ModuleType, points: Sequence[Point]) -> Iterator[Outcome]:
    configs = [config for _, config in points]
    wide, start = _x64(configs[0]), time.perf_counter()
    try:
        results = _stepwise(lambda: module.run_batch(configs), wide)
        for (key, config), records in zip(points, results, strict=False):
            kept = _plain(records)
            elapsed = time.perf_counter() - start
            # One program computes all: what it took is shared.
            yield _finished(module, key, config, kept, elapsed / len(points))
    except (Exception, SystemExit):  # noqa: BLE001 (each is then run alone, and says why)
        return


def _alone(module: ModuleType, key: str, config: ExperimentConfig) -> Outcome:
    start = time.perf_counter()
    try:
        records = _plain(_stepwise(lambda: module.run(config), _x64(config)))
    except (Exception, SystemExit) as error:  # noqa: BLE001 (recorded)
        return Outcome(
            key,
            "failed",
            error=traceback.format_exc(),
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


def _provenance(module: ModuleType, config: ExperimentConfig) -> dict[str, Any]:
    with jax.enable_x64(_x64(config)):
        return origin(config) | {"code_version": code_version(module)}


def _stepwise(make: Callable[[], Iterable[Any]], wide: bool) -> Iterator[Any]:
    """Iterate with x64 set as the config asks, and as it was in between."""
    with jax.enable_x64(wide):
        iterator = iter(make())
    while True:
        with jax.enable_x64(wide):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item


def _x64(config: ExperimentConfig) -> bool:
    return config.dtype == "float64"


def _plain(records: Iterable[Any]) -> list[dict[str, Any]]:
    """Records as the store keeps them; what JSON cannot hold fails here."""
    return json.loads(json.dumps(list(records)))


def now() -> str:
    """UTC, ISO 8601."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")

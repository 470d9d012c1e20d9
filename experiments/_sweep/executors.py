"""Where the points of a sweep are computed: here, or by Dask's workers.

An executor takes jobs from a queue; its caller may add to it while taking outcomes.
"""

import logging
import os
import shutil
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    Discriminator,
    Field,
    NonNegativeInt,
    PositiveInt,
    Tag,
    field_validator,
    model_validator,
)

from experiments._command.config import ConfigError, Model
from experiments._sweep.jobs import Job, Outcome, WrongCode, compute, now
from experiments._sweep.supervised import Supervised

Queue: TypeAlias = deque[Job]


class _Options(Model):
    time_limit: Annotated[float, Field(gt=0)] | None = None  # seconds for a point
    retries: NonNegativeInt = 1  # of a point that raises, or whose worker dies
    memory_limit: PositiveInt | str = "1GiB"  # for the points that run as one program
    batch: PositiveInt = 64  # points in one program, at most

    @field_validator("memory_limit")
    @classmethod
    def _is_a_size(cls, limit: int | str) -> int | str:
        from metalr.profiling import parse_bytes

        parse_bytes(limit)
        return limit


class Serial(_Options):
    """One point (or batch) after the other.

    In this process; with a time limit in one process beside it, which is killed and
    replaced where a point exceeds the limit.
    """

    kind: Literal["serial"] = "serial"


class Dask(_Options):
    """Dask's workers: a cluster made for the sweep, or the one at `address`."""

    kind: Literal["dask"]
    address: str | None = None  # of a running scheduler, e.g. tcp://10.0.0.1:8786
    workers: PositiveInt | None = (
        None  # default: one a GPU if there are several, or a core
    )

    @model_validator(mode="after")
    def _is_one_cluster(self) -> "Dask":
        if self.address is not None and self.workers is not None:
            msg = "address and workers exclude each other: start workers there instead"
            raise ValueError(msg)
        return self


def _kind(value: Any) -> str | None:
    if isinstance(value, dict):
        return value.get("kind", "serial")
    return getattr(value, "kind", None)


Executor = Annotated[
    Annotated[Serial, Tag("serial")] | Annotated[Dask, Tag("dask")],
    Discriminator(
        _kind,
        custom_error_type="executor",
        custom_error_message="must be a mapping with kind: serial or kind: dask",
    ),
]
"""`executor:` of a config; `kind` says which, serial by default."""


def execute(executor: Serial | Dask, jobs: Queue) -> Iterator[Outcome]:
    """Compute all jobs, yielding outcomes as they arrive.

    The queue is looked at again after each outcome: put jobs in to have them (again).

    Raises:
        ConfigError: if the scheduler cannot be reached or is lost, or a worker has
            other sources.
    """
    if isinstance(executor, Serial):
        return _serial(executor, jobs)
    return _dask(executor, jobs)


def _serial(executor: Serial, jobs: Queue) -> Iterator[Outcome]:
    with ExitStack() as stack:
        run: Callable[[Job], Iterator[Outcome]] = compute
        if executor.time_limit is not None:
            run = stack.enter_context(closing(Supervised(executor.time_limit))).compute
        while jobs:
            yield from run(jobs.popleft())


def _dask(executor: Dask, jobs: Queue) -> Iterator[Outcome]:
    from distributed import as_completed

    with _client(executor) as client:
        submitted: dict[Any, Job] = {}
        arrived = as_completed()
        while jobs or submitted:
            while jobs:
                job = jobs.popleft()
                future = client.submit(
                    run_job, job, executor.time_limit, pure=False, retries=0
                )
                submitted[future] = job
                arrived.add(future)
            future = next(arrived)
            yield from _outcomes(future, submitted.pop(future))


def run_job(job: Job, time_limit: float | None) -> list[Outcome]:
    """A job on a Dask worker; with a time limit in a process beside it."""
    if time_limit is None:
        return list(compute(job))
    # One process for each thread of the worker and limit, kept for the next job.
    known = vars(_beside).setdefault("processes", {})
    return list(known.setdefault(time_limit, Supervised(time_limit)).compute(job))


_beside = threading.local()


def _outcomes(future: Any, job: Job) -> Iterator[Outcome]:
    from distributed import KilledWorker

    if future.status == "finished":
        yield from future.result()
        return
    error = future.exception() if future.status == "error" else None
    if error is None:
        msg = (
            f"the Dask scheduler was lost ({future.status}). What has arrived is in "
            "the store; give the same command again"
        )
        raise ConfigError(msg)
    if isinstance(error, WrongCode):
        raise error
    status = "lost" if isinstance(error, KilledWorker) else "failed"
    text = f"{type(error).__name__}: {error}"
    for key in job.keys:
        yield Outcome(key, status, error=text, finished_at=now())


@contextmanager
def _client(executor: Dask) -> Iterator[Any]:
    from distributed import Client

    with ExitStack() as stack:
        address = executor.address
        if address is None:
            address = stack.enter_context(_cluster(executor.workers)).scheduler_address
        try:
            client = stack.enter_context(Client(address, timeout=10))
        except (OSError, ValueError) as error:
            msg = (
                f"executor.address = {address!r}: no scheduler answers there ({error})"
            )
            raise ConfigError(msg) from error
        if not client.scheduler_info()["workers"]:
            sys.stderr.write(f"{address} has no workers yet: waiting for them\n")
        yield client


@contextmanager
def _cluster(workers: int | None) -> Iterator[Any]:
    """Workers of one thread each on this machine; one a GPU if there are several."""
    import dask
    from distributed import Nanny, Scheduler, SpecCluster

    cards = _cards()
    if workers is None:
        workers = len(cards) if len(cards) > 1 else os.cpu_count() or 1
    quiet = logging.ERROR
    specs: dict[int, Any] = {}
    for index in range(workers):
        options: dict[str, Any] = {"host": "127.0.0.1", "silence_logs": quiet}
        options |= {"nthreads": 1, "memory_limit": 0}
        if len(cards) > 1:
            options["env"] = {"CUDA_VISIBLE_DEVICES": cards[index % len(cards)]}
        specs[index] = {"cls": Nanny, "options": options}
    # Without an address its pages would be on port 8787, free or not.
    pages = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "port": 0, **pages}}
    settings = {
        "distributed.scheduler.allowed-failures": 0,  # the sweep counts retries itself
        "distributed.scheduler.worker-saturation": 1.0,  # a death hits one job only
    }
    with (
        dask.config.set(settings),  # type: ignore[reportPrivateImportUsage]
        SpecCluster(
            workers=specs,
            scheduler=scheduler,
            silence_logs=quiet,  # type: ignore[arg-type]  (annotated as a bool)
        ) as cluster,
    ):
        yield cluster


def _cards() -> list[str]:
    """The GPUs that this process may use, without starting JAX."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [card for card in visible.split(",") if card.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.split() if done.returncode == 0 else []

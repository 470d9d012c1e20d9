"""Jobs on Dask's workers: none is lost with a worker, none waits for ever.

A worker holds results until they are fetched. If it dies, Dask computes them again; if
it cannot, they are sent again from here. Only a scheduler that is gone ends a sweep.
"""

import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from asyncio import CancelledError
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from queue import Empty, SimpleQueue
from typing import Any

from experiments._command.config import ConfigError
from experiments._sweep.greeting import check_greeting
from experiments._sweep.jobs import Job, Outcome, WrongCode, now
from experiments._sweep.supervised import START_LIMIT, Supervised

CONNECT_LIMIT = 10.0
"""Seconds in which a scheduler must answer."""

FETCH_LIMIT = 60.0
"""Seconds in which a finished job's outcomes must arrive."""

SILENCE = START_LIMIT + 60.0
"""Seconds, beside its points' time limits, after which a job's worker is given up."""

_POLL = 5.0
"""Seconds between looks at the scheduler while nothing arrives."""

_SENT = 5
"""Times that a job whose results were lost is sent again."""


def execute(
    address: str | None,
    workers: int | None,
    time_limit: float | None,
    jobs: deque[Job],
) -> Iterator[Outcome]:
    """As `executors.execute`."""
    with _client(address, workers) as client:
        flight = _Flight(client, time_limit)
        while jobs or flight.jobs:
            while jobs:
                flight.send(jobs.popleft())
            yield from flight.arrivals()


class _Flight:
    """The jobs that are somewhere between here and a worker."""

    def __init__(self, client: Any, time_limit: float | None) -> None:
        self.jobs: dict[Any, tuple[Job, int]] = {}  # and how often it was sent
        self._client, self._limit = client, time_limit
        self._arrived: SimpleQueue[Any] = SimpleQueue()
        self._started: dict[tuple[str, str], float] = {}  # by future and worker

    def send(self, job: Job, times: int = 1) -> None:
        """Have a job computed."""
        future = self._client.submit(run_job, job, self._limit, pure=False, retries=0)
        self.jobs[future] = job, times
        future.add_done_callback(self._arrived.put)

    def arrivals(self) -> Iterator[Outcome]:
        """What comes next, or is given up.

        Raises:
            ConfigError: if the scheduler is gone, or a worker has other sources.
        """
        try:
            future = self._arrived.get(timeout=_POLL)
        except Empty:
            self._check_scheduler()
            yield from self._overdue()
            return
        if future not in self.jobs:  # given up meanwhile
            return
        job, times = self.jobs.pop(future)
        outcomes = self._fetched(future, job)
        if outcomes is not None:
            yield from outcomes
        elif times < _SENT:
            self.send(job, times + 1)
        else:
            error = f"its results were lost with a worker {times} times"
            yield from _all(job, "failed", error)

    def _fetched(self, future: Any, job: Job) -> list[Outcome] | None:
        """A job's outcomes; None where they were lost on the way."""
        from distributed import KilledWorker

        try:
            return future.result(timeout=FETCH_LIMIT)
        except WrongCode:
            raise
        except KilledWorker as error:
            return _all(job, "lost", f"KilledWorker: {error}")
        except (Exception, CancelledError) as error:  # noqa: BLE001 (of any kind)
            if future.status == "error":  # raised by the job itself, as by `pickle`
                return _all(job, "failed", f"{type(error).__name__}: {error}")
        self._check_scheduler()
        return None

    def _check_scheduler(self) -> None:
        try:
            if self._client.status == "running":
                self._ask("identity")
                return
            reason: object = f"the client is {self._client.status}"
        except Exception as error:  # noqa: BLE001 (whatever Dask makes of a lost peer)
            reason = f"{type(error).__name__}: {error}"
        msg = (
            f"the Dask scheduler was lost ({reason}). What has arrived is in the "
            "store; give the same command again"
        )
        raise ConfigError(msg)

    def _overdue(self) -> Iterator[Outcome]:
        """Jobs whose worker has long had the time that their points may take."""
        if self._limit is None:
            return
        running = {
            (key, worker)
            for worker, keys in self._ask("processing", workers=None).items()
            for key in keys
        }
        clock = time.monotonic()
        self._started = {pair: self._started.get(pair, clock) for pair in running}
        since = {key: start for (key, _), start in self._started.items()}
        for future, (job, _) in list(self.jobs.items()):
            limit = self._limit * len(job.keys) + SILENCE
            if clock - since.get(future.key, clock) > limit:
                del self.jobs[future]
                future.cancel(force=True)
                error = f"its worker has not answered for {limit:g} s"
                yield from _all(job, "timed_out", error)

    def _ask(self, question: str, **options: Any) -> Any:
        """A question that the scheduler must answer in time."""
        ask = getattr(self._client.scheduler, question)
        return self._client.sync(ask, **options, callback_timeout=CONNECT_LIMIT)


def _all(job: Job, status: str, error: str) -> list[Outcome]:
    return [Outcome(key, status, error=error, finished_at=now()) for key in job.keys]


def run_job(job: Job, time_limit: float | None) -> list[Outcome]:
    """A job on a Dask worker, in a process beside it.

    So the worker goes on answering whatever its points do, and outlives them.
    """
    # One process for each thread of the worker and limit, kept for the next job.
    known = vars(_beside).setdefault("processes", {})
    return list(known.setdefault(time_limit, Supervised(time_limit)).compute(job))


_beside = threading.local()


@contextmanager
def _client(address: str | None, workers: int | None) -> Iterator[Any]:
    from distributed import Client

    with ExitStack() as stack:
        security = None
        if address is None:
            cluster = stack.enter_context(_cluster(workers))
            address, security = cluster.scheduler_address, cluster.security
        else:
            check_greeting(address, limit=CONNECT_LIMIT)
        try:
            client = Client(address, timeout=CONNECT_LIMIT, security=security)
            stack.enter_context(closing(client))
        except (OSError, ValueError, TypeError) as error:
            msg = (
                f"executor.address = {address!r}: no scheduler answers there ({error})"
            )
            raise ConfigError(msg) from error
        if not client.scheduler_info()["workers"]:
            sys.stderr.write(f"{address} has no workers yet: waiting for them\n")
        yield client


@contextmanager
def _cluster(workers: int | None) -> Iterator[Any]:
    """Workers of one thread each on this machine; one a GPU if there are several.

    They take work only from who has the keys that are made here, for this sweep.
    """
    import dask
    from distributed import Nanny, Scheduler, SpecCluster
    from distributed.security import Security

    cards = _cards()
    if workers is None:
        workers = len(cards) if len(cards) > 1 else os.cpu_count() or 1
    # What Dask logs as an error is an outcome here, or of no account: a heartbeat that
    # meets a closed scheduler when a signal ends the sweep.
    quiet, security = logging.CRITICAL, Security.temporary()
    common = {"host": "127.0.0.1", "protocol": "tls://", "security": security}
    specs: dict[int, Any] = {}
    for index in range(workers):
        options = common | {"silence_logs": quiet, "nthreads": 1, "memory_limit": 0}
        if len(cards) > 1:
            options["env"] = {"CUDA_VISIBLE_DEVICES": cards[index % len(cards)]}
        specs[index] = {"cls": Nanny, "options": options}
    # Without an address its pages would be on port 8787, free or not.
    pages = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
    scheduler = {"cls": Scheduler, "options": common | {"port": 0, **pages}}
    settings = {
        "distributed.scheduler.allowed-failures": 0,  # the sweep counts retries itself
        "distributed.scheduler.worker-saturation": 1.0,  # a death hits one job only
    }
    with (
        dask.config.set(settings),  # type: ignore[reportPrivateImportUsage]
        SpecCluster(
            workers=specs,
            scheduler=scheduler,
            security=security,
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

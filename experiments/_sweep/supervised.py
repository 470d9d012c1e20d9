"""A process for points that may never end: it is killed at their time limit.

`python -m experiments._sweep.supervised` is that process: jobs come in as lines of
JSON, outcomes go out as lines. It starts as a new program (JAX and fork do not mix),
lives as long as its points behave, and ends when the process that started it does.
"""

import contextlib
import importlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from experiments._sweep.jobs import Job, Outcome, WrongCode, compute, now

_START_LIMIT = 300.0
"""Seconds until a new process must have imported what it needs."""

_IDLE_LIMIT = 600.0
"""Seconds without a job after which it ends: a Dask worker may outlive many sweeps."""


class _Late(Exception):
    """Nothing came within the limit."""


class _Gone(Exception):
    """The process has ended."""


class Supervised:
    """Computes jobs in a process of its own, started when there is need."""

    def __init__(self, time_limit: float) -> None:
        self._limit = time_limit
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def compute(self, job: Job) -> Iterator[Outcome]:
        """As `tasks.compute`; points that do not come are `timed_out` or `lost`.

        A point has the time limit; points of one job have it together, times their
        number. What a new process takes to start does not count.

        Raises:
            WrongCode: as `tasks.compute`.
        """
        left = list(job.keys)
        try:
            self._send(job)
            self._receive(_START_LIMIT)
            while left:
                outcome = Outcome(*self._receive(self._limit * len(left)))
                left.remove(outcome.key)
                yield outcome
        except _Late:
            self.close()
            error = f"no result within the time limit of {self._limit:g} s: killed"
            for key in left:
                yield _ended(key, "timed_out", error, self._limit)
        except _Gone:
            code = self.close()
            for key in left:
                yield _ended(key, "lost", f"its process died (exit code {code})", 0.0)

    def close(self) -> int | None:
        """Kill the process; its exit code."""
        process, self._process = self._process, None
        if process is None:
            return None
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        return process.wait()

    def _send(self, job: Job) -> None:
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._start()
        assert self._process
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise _Gone from error

    def _start(self) -> None:
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        )
        self._lines = queue.SimpleQueue()
        arguments = (self._process.stdout, self._lines)
        threading.Thread(target=_forward, args=arguments, daemon=True).start()

    def _receive(self, limit: float) -> Any:
        try:
            line = self._lines.get(timeout=limit)
        except queue.Empty as error:
            raise _Late from error
        if not line.endswith("\n"):
            raise _Gone
        message = json.loads(line)
        if isinstance(message, str):
            raise WrongCode(message)
        return message


def _ended(key: str, status: str, error: str, seconds: float) -> Outcome:
    return Outcome(key, status, error=error, seconds=seconds, finished_at=now())


def _forward(lines: IO[str], target: queue.SimpleQueue[str]) -> None:
    """Lines to the queue; at the end of the stream an empty one."""
    with contextlib.suppress(ValueError, OSError):  # closed while waiting
        for line in lines:
            target.put(line)
    target.put("")


def _listen(jobs: queue.SimpleQueue[str]) -> None:
    """Jobs from the parent, whose end is this process's end, whatever it computes."""
    for line in sys.stdin:
        jobs.put(line)
    os._exit(0)


def main() -> None:
    """Compute the jobs that come in, until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an experiment prints must not look like an answer

    def answer(message: Any) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    jobs: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(jobs,), daemon=True).start()
    while True:
        try:
            job = Job(*json.loads(jobs.get(timeout=_IDLE_LIMIT)))
        except queue.Empty:
            return
        importlib.import_module(job.module)
        answer(None)  # the clock starts
        try:
            for outcome in compute(job):
                answer(outcome)
        except WrongCode as error:
            answer(str(error))


if __name__ == "__main__":
    main()

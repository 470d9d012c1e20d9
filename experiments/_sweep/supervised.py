"""A process for points that may never end, or end their process.

`python -m experiments._sweep.supervised` is that process: jobs come in as lines of
JSON, outcomes go out as lines. It starts as a new program (JAX and fork do not mix),
lives as long as its points behave, and ends when the process that started it does.
Whatever its points have started is in its process group, and ends with it.
"""

import contextlib
import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

import psutil

from experiments._sweep.jobs import Job, Outcome, WrongCode, compute, now

START_LIMIT = 300.0
"""Seconds until a new process must have imported what it needs."""

_IDLE_LIMIT = 600.0
"""Seconds without a job after which it ends: a Dask worker may outlive many sweeps."""

_GROWTH = 2 * 2**30
"""Bytes by which it may grow, with programs compiled, until it is replaced."""


class _Late(Exception):
    """Nothing came within the limit."""


class _Gone(Exception):
    """The process has ended."""


class Supervised:
    """Computes jobs in a process of its own, started when there is need."""

    def __init__(self, time_limit: float | None) -> None:
        self._limit = time_limit
        self._size = 0
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def compute(self, job: Job) -> Iterator[Outcome]:
        """As `jobs.compute`; points that do not come are `timed_out` or `lost`.

        A point has the time limit, if there is one; points of one job have it together,
        times their number. What a new process takes to start does not count.

        Raises:
            WrongCode: as `jobs.compute`.
        """
        left = list(job.keys)
        try:
            self._send(job)
            self._receive(START_LIMIT)
            while left:
                limit = self._limit and self._limit * len(left)
                outcome = Outcome(*self._receive(limit))
                left.remove(outcome.key)
                yield outcome
            self._replace_if_large()
        except _Late:
            self.close()
            limit = self._limit or START_LIMIT
            error = f"no result within the time limit of {limit:g} s: killed"
            for key in left:
                yield _ended(key, "timed_out", error, limit)
        except _Gone:
            code = self.close()
            for key in left:
                yield _ended(key, "lost", f"its process died (exit code {code})", 0.0)

    def close(self) -> int | None:
        """Kill the process and what it has started; its exit code."""
        process, self._process = self._process, None
        if process is None:
            return None
        if process.returncode is None:  # else its number may be another's
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        return process.wait()

    def _replace_if_large(self) -> None:
        assert self._process
        with contextlib.suppress(psutil.Error):
            size = psutil.Process(self._process.pid).memory_info().rss
            self._size = self._size or size  # after its first job
            if size > self._size + _GROWTH:
                self.close()

    def _send(self, job: Job) -> None:
        if self._process is None or self._ended():
            self.close()
            self._start()
        assert self._process
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise _Gone from error

    def _ended(self) -> bool:
        """Without burying it: as long as it has its number, so has its group."""
        assert self._process
        try:
            state = psutil.Process(self._process.pid).status()
        except psutil.Error:
            return True
        return state in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)

    def _start(self) -> None:
        self._size = 0
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,
        )
        self._lines = queue.SimpleQueue()
        arguments = (self._process.stdout, self._lines)
        threading.Thread(target=_forward, args=arguments, daemon=True).start()

    def _receive(self, limit: float | None) -> Any:
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
    _end()


def _end() -> NoReturn:
    """End this process, and what its points have started."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
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
            _end()
        with contextlib.suppress(Exception):  # `compute` says what is wrong with it
            importlib.import_module(job.module)
        answer(None)  # the clock starts
        try:
            for outcome in compute(job):
                answer(outcome)
        except WrongCode as error:
            answer(str(error))


if __name__ == "__main__":
    main()

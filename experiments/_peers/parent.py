"""Runs a child under limits: its time and its resident memory are watched."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments._command.peak import resident

_POLL = 0.05  # seconds


def fresh(
    request: dict[str, Any], *, time_limit: float, memory_limit: float
) -> dict[str, Any]:
    """The result of `child.measure(request)` in a process of its own.

    Args:
        request: what the child is asked.
        time_limit: seconds for the whole process.
        memory_limit: bytes of its resident memory.

    Returns:
        The child's result, or `{"failed": reason}` / `{"too_slow": reason}`.
    """
    command = [sys.executable, "-m", "experiments._peers.child", json.dumps(request)]
    threads = {"OMP_NUM_THREADS": str(request["threads"]), "JAX_PLATFORMS": "cpu"}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=errors,
            env=os.environ | threads,
            cwd=Path(__file__).parents[2],
        )
        try:
            stopped = _watch(process, time_limit, memory_limit)
        finally:
            process.kill()
            process.wait()
        if stopped is not None:
            return stopped
        if process.returncode:
            errors.seek(0)
            last = (errors.read().strip().splitlines() or ["no message"])[-1]
            return {"failed": f"exit code {process.returncode}: {last[:160]}"}
        out.seek(0)
        return json.loads(out.read().splitlines()[-1])


def _watch(
    process: subprocess.Popen, time_limit: float, memory_limit: float
) -> dict[str, Any] | None:
    """Wait for its end; None if it came within the limits."""
    end = time.monotonic() + time_limit
    while process.poll() is None:
        if time.monotonic() > end:
            return {"too_slow": f"over {time_limit:g} s"}
        if resident(process.pid) > memory_limit:
            return {"failed": f"over {memory_limit / 1e9:g} GB of memory"}
        time.sleep(_POLL)
    return None

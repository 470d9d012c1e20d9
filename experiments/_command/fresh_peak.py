"""The real peak of one compiled hypergradient, in a fresh process.

`python -m experiments._command.fresh_peak PROBLEM LEARNED STEPS ENGINE DTYPE` prints
bytes: on a CPU what the process's peak (VmHWM) rose above its size before the run, on
an accelerator `peak_bytes_in_use` less what was in use.
"""

import os
import re
import subprocess
import sys
from typing import Any

import jax

from experiments._command.peak import peak, reset_peak
from experiments._settings.workloads import workload
from metalr.hypergrad import Engine, Forward, Mixed, Reverse
from metalr.profiling.measure import program_of

_ENGINES = {"Forward": Forward, "Mixed": Mixed, "Reverse": Reverse}


def fresh_peak(
    problem: str, learned: str, steps: int, engine: Engine | None, dtype: str
) -> int:
    """Run this module in a process of its own.

    Raises:
        RuntimeError: if that process fails.
    """
    arguments = [problem, learned, str(steps), str(engine), dtype]
    command = [sys.executable, "-m", "experiments._command.fresh_peak", *arguments]
    # On an accelerator the parent holds most of the memory: take what is needed.
    frugal = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=frugal
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        msg = f"the fresh process ended with code {done.returncode}: {last}"
        raise RuntimeError(msg)
    return int(done.stdout)


def read_engine(text: str) -> Engine | None:
    """The inverse of `str` for the engines measured here; None for the run itself.

    Raises:
        ValueError: if it is none of them.
    """
    if text == "None":
        return None
    match = re.fullmatch(r"(Forward|Mixed|Reverse)\((?:(\w+)=(\d+))?\)", text)
    if match is None:
        msg = f"engine = {text!r} must be one of {', '.join(_ENGINES)}, or None"
        raise ValueError(msg)
    name, option, value = match.groups()
    return _ENGINES[name](**({option: int(value)} if option else {}))


def _measure(
    problem: Any, learned: Any, steps: int, engine: Engine | None, dtype: str
) -> int:
    jax.config.update("jax_enable_x64", dtype == "float64")
    case = workload(problem, learned, dtype=dtype, seed=0)
    objective, hyper = case.make(steps), case.hyper(steps)

    program = program_of(objective, hyper, engine)
    stats = jax.devices()[0].memory_stats()  # of an accelerator
    before = stats["bytes_in_use"] if stats else reset_peak()
    jax.block_until_ready(program.run(objective, hyper))
    stats = jax.devices()[0].memory_stats()
    return (stats["peak_bytes_in_use"] if stats else peak()) - before


if __name__ == "__main__":
    problem, learned, steps, engine, dtype = sys.argv[1:]
    size = _measure(problem, learned, int(steps), read_engine(engine), dtype)
    sys.stdout.write(f"{size}\n")

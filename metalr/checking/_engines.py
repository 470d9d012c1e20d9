"""Which engines are compared, and the run of one of them."""

import math
import time
import warnings
from typing import Any

import jax
import numpy as np

from .._types import Hyper, Objective
from ..hypergrad import Engine, Forward, Mixed, Reverse, Reversible
from ..hypergrad.facts import count, is_exact
from ..hypergrad.hypergradient import as_pytree, verify
from ..profiling.measure import program_of
from ..runs.run import is_run
from ._rows import Row, Status

_MOST_TANGENTS = 64
"""More hyperparameters than that: forward mode is left out, it costs a run for each."""


def default_engines(objective: Objective, hyper: Hyper) -> list[Engine]:
    """The exact engines that may apply."""
    tangents = count(hyper)
    forward = [Forward(chunk=16 if tangents > 16 else None)]
    if tangents > _MOST_TANGENTS:
        forward = []
    in_parts: Any = getattr(objective, "in_parts", None)  # a Mean over tasks
    if in_parts is None and not is_run(objective):
        return [Reverse(), *forward]
    run: Any = objective if in_parts is None else getattr(objective, "objective", None)
    states = max(1, round(math.sqrt(2.0 * getattr(run, "steps", 1))))
    sweep, mixed = Reverse(checkpoints=states), Mixed()
    if in_parts is not None:
        return [Reverse(), in_parts(sweep), *forward, in_parts(mixed)]
    return [Reverse(), sweep, *forward, mixed, Reversible()]


def measure(
    objective: Objective, hyper: Hyper, engine: Engine, limit: float = math.inf
) -> Row:
    """Compile and run one engine; what goes wrong is in the row."""
    row = Row(str(engine))
    try:
        with warnings.catch_warnings():  # the check itself names what they warn of
            warnings.simplefilter("ignore", UserWarning)
            return _measured(row, objective, hyper, engine, limit=limit)
    except Exception as error:  # noqa: BLE001 (whatever goes wrong is what is reported)
        return row._replace(status=_failure(error), reason=first_line(error))


def _measured(
    row: Row, objective: Objective, hyper: Hyper, engine: Engine, *, limit: float
) -> Row:
    program = program_of(objective, hyper, engine)
    row = row._replace(temp_bytes=program.temp_bytes)
    if program.temp_bytes > limit:
        reason = f"needs {program.temp_bytes} bytes, memory_limit is {limit:.0f}"
        return row._replace(status="out of memory", reason=reason)
    jax.block_until_ready(program.run(as_pytree(objective), hyper))
    start = time.perf_counter()
    result = program.run(as_pytree(objective), hyper)
    jax.block_until_ready(result)
    row = row._replace(seconds=time.perf_counter() - start)
    verify(engine, result)
    exact = is_exact(engine, objective) and not hasattr(result, "standard_error")
    status = "agrees" if exact else "biased"
    grad = jax.tree.map(np.asarray, result.grad)
    return row._replace(value=float(result.value), grad=grad, status=status)


def _failure(error: Exception) -> Status:
    text = str(error)
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        return "out of memory"
    refusals = (ValueError, TypeError, NotImplementedError)
    return "refused" if isinstance(error, refusals) else "failed"


def first_line(error: Exception) -> str:
    text = " ".join(str(error).split("\n\n")[0].split())
    return text if len(text) <= 160 else text[:157] + "..."

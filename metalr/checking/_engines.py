"""Which engines are compared, and the run of one of them."""

import math
import time
import warnings
from typing import Any

import jax
import numpy as np

from .._types import Hyper, Objective
from ..hypergrad import (
    Engine,
    Forward,
    Mixed,
    PrecisionWarning,
    Reverse,
    Reversible,
    hypergradient,
)
from ..hypergrad.facts import is_exact
from ..hypergrad.hypergradient import as_pytree, verify
from ..runs.run import is_run
from ..runs.unrolled import Unrolled
from ..tasks import Each, Mean
from ._rows import Row, Status

_MOST_TANGENTS = 64
"""More hyperparameters than that: forward mode is left out, it costs a run for each."""


def default_engines(objective: Objective, hyper: Hyper) -> list[Engine]:
    """The exact engines that may apply."""
    count = sum(leaf.size for leaf in jax.tree.leaves(hyper))
    forward = [Forward(chunk=16 if count > 16 else None)]
    if count > _MOST_TANGENTS:
        forward = []
    run = objective.objective if isinstance(objective, Mean) else objective
    if not is_run(run):
        return [Reverse(), *forward]
    states = max(1, round(math.sqrt(2.0 * run.steps)))
    apart: list[Engine] = [Reverse(checkpoints=states), Mixed()]
    if isinstance(run, Unrolled):
        apart.append(Reversible())
    if isinstance(objective, Mean):
        apart = [Each(engine) for engine in apart]
    return [Reverse(), *forward, *apart]


def measure(
    objective: Objective, hyper: Hyper, engine: Engine, limit: float = math.inf
) -> Row:
    """Compile and run one engine; what goes wrong is in the row."""
    try:
        with warnings.catch_warnings():  # the check itself says which dtype limits it
            warnings.simplefilter("ignore", PrecisionWarning)
            return _measured(objective, hyper, engine, limit)
    except Exception as error:  # noqa: BLE001 (whatever goes wrong is what is reported)
        return Row(str(engine), status=_failure(error), reason=first_line(error))


def _measured(objective: Objective, hyper: Hyper, engine: Engine, limit: float) -> Row:
    point = as_pytree(objective), hyper
    program = jax.jit(lambda o, h: hypergradient(o, h, engine))
    compiled = program.lower(*point).compile()
    accounting: Any = compiled.memory_analysis()
    memory = accounting.temp_size_in_bytes
    row = Row(str(engine), temp_bytes=memory)
    if memory > limit:
        reason = f"needs {memory} bytes, memory_limit is {limit:.0f}"
        return row._replace(status="out of memory", reason=reason)
    jax.block_until_ready(compiled(*point))
    start = time.perf_counter()
    result = compiled(*point)
    jax.block_until_ready(result)
    row = row._replace(seconds=time.perf_counter() - start)
    try:
        verify(engine, result)
    except (ArithmeticError, RuntimeError, ValueError) as error:
        return row._replace(status=_failure(error), reason=first_line(error))
    status = "agrees" if is_exact(engine, objective) else "biased"
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

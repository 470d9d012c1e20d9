"""The fastest engine that fits into a memory limit, found without running it."""

import math
import re
from typing import NamedTuple

import jax

from .._checks import float_leaves
from .._types import Hyper
from ..hypergrad import Engine, Forward, Mixed, Reverse
from ..runs.unrolled import Unrolled
from .measure import remembering, timing
from .model import cost, predicted_bytes, shortened

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_SURE = 2.0
"""A candidate predicted to need this many times the limit is not compiled."""


class Candidate(NamedTuple):
    """One engine that was considered."""

    engine: Engine
    temp_bytes: int
    compiled: bool  # XLA's figure; otherwise the model's
    cost: float  # in runs without derivative


class Plan(NamedTuple):
    """The engine to use, and what else was considered."""

    engine: Engine
    temp_bytes: int
    cost: float
    candidates: tuple[Candidate, ...]


def plan(
    objective: Unrolled,
    hyper: Hyper,
    *,
    memory_limit: int | str,
    measure: int | None = None,
) -> Plan:
    """The fastest engine whose temporary memory stays within a limit.

    Considers forward mode (all tangents at once, and in chunks), plain reverse, mixed
    mode, and binomial checkpointing with numbers of states from 1 to T. In order of the
    cost model (`model.cost`) they are compiled, and the first that fits is taken:
    nothing is run. Those that the memory model puts far above the limit are not
    compiled either; once an engine has been, the model is corrected by what XLA said.

    Args:
        objective: what is to be differentiated.
        hyper: the point; only shapes and dtypes matter.
        memory_limit: temporary bytes, as a number or such as "2GiB", "500 MB".
        measure: None, or a number of steps: then the costs are measured on the same
            problem cut to so many steps (median of 3).

    Returns:
        `Plan(engine, temp_bytes, cost, candidates)`.

    Raises:
        ValueError: if the limit cannot be read, or nothing fits: then it says how
            little the most frugal engine needs.

    Example:
        >>> import jax.numpy as jnp, optax, metalr
        >>> loss = metalr.problems.least_squares(jnp.ones((4, 9)), jnp.ones(4))
        >>> L = metalr.Unrolled(loss, optax.sgd, jnp.zeros(9), steps=50)
        >>> metalr.profiling.plan(L, 0.1, memory_limit="1MiB").engine
        Forward()
    """
    limit = parse_bytes(memory_limit)
    hyper = float_leaves(hyper, "hyper")
    costs = {
        engine: _cost(objective, hyper, engine, measure)
        for engine in _engines(objective, hyper)
    }
    considered, temp_of = [], remembering()
    corrections: dict[type, int] = {}  # XLA's figure less the model's, by engine
    for engine in sorted(costs, key=lambda engine: costs[engine]):
        guess = predicted_bytes(objective, hyper, engine, temp_of)
        known = corrections.get(type(engine))
        if guess is not None and (
            guess > _SURE * limit or (known is not None and guess + known > limit)
        ):
            guess += known or 0
            considered.append(Candidate(engine, guess, False, costs[engine]))
            continue
        temp = temp_of(objective, hyper, engine)
        if guess is not None:
            corrections[type(engine)] = temp - guess
        considered.append(Candidate(engine, temp, True, costs[engine]))
        if temp <= limit:
            return Plan(engine, temp, costs[engine], tuple(considered))
    least = min(considered, key=lambda candidate: candidate.temp_bytes)
    msg = (
        f"no engine fits into {memory_limit!r}: the least is {least.temp_bytes} bytes "
        f"({least.engine}); raise memory_limit, or shrink the state or the batch "
        "(microbatch)"
    )
    raise ValueError(msg)


def parse_bytes(limit: int | str) -> int:
    """Bytes from 1000, "2GiB" (2·2³⁰) or "500 MB" (500·10⁶).

    Raises:
        ValueError: if it is not a positive size.
    """
    match = re.fullmatch(r"\s*(\d+\.?\d*)\s*([KMGT]?I?)B?\s*", str(limit).upper())
    units = _UNITS | _BINARY
    if match is None or match[2] not in units or float(match[1]) <= 0.0:
        msg = f"memory_limit = {limit!r} must be bytes, or such as '2GiB' or '500MB'"
        raise ValueError(msg)
    return int(float(match[1]) * units[match[2]])


def _engines(objective: Unrolled, hyper: Hyper) -> list[Engine]:
    count = sum(leaf.size for leaf in jax.tree.leaves(hyper))
    chunks = [k for k in (1, 4, 16, 64) if k < count]
    steps = max(objective.steps, 1)
    states = sorted({min(steps, max(1, round(2**k))) for k in range(24)})
    states += [round(math.sqrt(2 * steps))]
    return [
        Forward(),
        *(Forward(chunk=k) for k in chunks),
        Reverse(),
        Mixed(),
        *(Reverse(checkpoints=n) for n in dict.fromkeys(states)),
    ]


def _cost(
    objective: Unrolled, hyper: Hyper, engine: Engine, measure: int | None
) -> float:
    if measure is None:
        return cost(objective, hyper, engine)
    short, point = shortened(objective, hyper, min(measure, objective.steps))
    seconds = timing(short, point, engine, repeats=3).seconds
    return seconds / timing(short, point, None, repeats=3).seconds

"""The fastest engine that fits into a memory limit, found without running it."""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from .._checks import float_leaves
from .._types import Hyper, Objective
from ..hypergrad import Engine, Forward, Mixed, Reverse
from ..hypergrad.facts import applied_to, cost, count, family, kept_bytes
from .measure import program_of, timing
from .model import shortened

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_REFUSALS = (ValueError, TypeError, NotImplementedError, RuntimeError)


class Candidate(NamedTuple):
    """One engine that was considered."""

    engine: Engine
    temp_bytes: int | None  # None where the engine refuses
    compiled: bool  # XLA's figure; otherwise the model's: it needs at least that
    cost: float  # in runs without derivative; nan where the engine does not say
    note: str = ""  # why it is out, where it is not for its memory


class Plan(NamedTuple):
    """The engine to use, and what else was considered."""

    engine: Engine
    temp_bytes: int
    cost: float
    candidates: tuple[Candidate, ...]


def plan(
    objective: Objective,
    hyper: Hyper,
    *,
    memory_limit: int | str,
    measure: int | None = None,
    engines: Sequence[Engine] | None = None,
) -> Plan:
    """The fastest engine whose temporary memory stays within a limit.

    Considers forward mode (all tangents at once, and in chunks), plain reverse, and
    `Reverse` and `Mixed` with all states and with numbers of them from 1 to T: for a
    `tasks.Mean` also in every task. In order of what they say they cost
    (`metalr.hypergrad.facts`) they are compiled, and the first that fits is taken:
    nothing is run. An engine that says that it keeps more than the limit between
    steps is not compiled. Once one of a kind has been, the others are judged by what
    XLA said of it: a few programs are compiled, whatever T is. An engine that refuses
    the objective (a `custom_vjp` in the loss, in forward mode) is passed over.

    Args:
        objective: what is to be differentiated: a run, a `tasks.Mean`, either of them
            `reparametrized` (planned by what is within, with f), or (by `Forward` and
            `Reverse` alone) any traceable scalar function.
        hyper: the point; only shapes and dtypes matter.
        memory_limit: temporary bytes of one device, as a number or such as "2GiB",
            "500 MB". A program that needs exactly so many fits.
        measure: None, or a number of steps: then the costs are measured on the same
            problem cut to so many steps (median of 3).
        engines: what to consider instead, e.g. with an engine of your own; one that
            does not state its cost comes last.

    Returns:
        `Plan(engine, temp_bytes, cost, candidates)`.

    Raises:
        ValueError: if the limit cannot be read, every engine refuses, or nothing fits:
            then it says how little the most frugal engine needs.

    Example:
        >>> import jax.numpy as jnp, optax, metalr
        >>> loss = metalr.problems.least_squares(jnp.ones((4, 9)), jnp.ones(4))
        >>> L = metalr.Unrolled(loss, optax.sgd, jnp.zeros(9), steps=50)
        >>> metalr.profiling.plan(L, 0.1, memory_limit="1MiB").engine
        Forward()
    """
    limit = parse_bytes(memory_limit)
    hyper = float_leaves(hyper, "hyper")
    chosen = _engines(objective, hyper) if engines is None else list(engines)
    search = _Search(objective, hyper)
    left = []
    for candidate in _ordered(objective, hyper, chosen, measure):
        guess = search.at_least(candidate)
        # A guess is below what XLA will say: whether one that meets the limit is
        # compiled or not, its engine needs more. What XLA says is compared with ≤.
        if guess.temp_bytes is None or guess.temp_bytes > limit:
            left.append(guess)
            continue
        found = search.compile(candidate)
        left.append(found)
        if found.temp_bytes is not None and found.temp_bytes <= limit:
            return Plan(found.engine, found.temp_bytes, found.cost, tuple(left))
    raise ValueError(_nothing_fits(search, left, memory_limit))


class _Search:
    """What is known of the engines of each family from those that were compiled."""

    def __init__(self, objective: Objective, hyper: Hyper) -> None:
        self.objective, self.hyper = objective, hyper
        self.seen: dict[Any, list[tuple[int, int]]] = {}  # kept bytes, XLA's bytes

    def at_least(self, candidate: Candidate) -> Candidate:
        """The bytes that it needs at least, without compiling it."""
        if candidate.note:
            return candidate
        try:
            kept = kept_bytes(candidate.engine, self.objective, self.hyper) or 0
        except _REFUSALS as error:
            return candidate._replace(note=_refusal(error))
        seen = self.seen.get(family(candidate.engine), [])[-2:]
        if len(seen) == 2 and seen[0][0] != seen[1][0]:  # two of a kind: on their line
            (first, temp_first), (last, temp_last) = seen
            slope = (temp_last - temp_first) / (last - first)
            kept = max(kept, math.floor(temp_last + slope * (kept - last)))
        elif seen and kept < seen[-1][0]:  # one: at most all of it shrinks as kept does
            kept = math.floor(kept * max(seen[-1][1] / seen[-1][0], 1.0))
        elif seen:
            kept += seen[-1][1] - seen[-1][0]
        return candidate._replace(temp_bytes=kept)

    def compile(self, candidate: Candidate) -> Candidate:
        """The bytes that XLA says it needs."""
        try:
            program = program_of(self.objective, self.hyper, candidate.engine)
        except _REFUSALS as error:
            return candidate._replace(note=_refusal(error))
        kept = kept_bytes(candidate.engine, self.objective, self.hyper) or 0
        seen = self.seen.setdefault(family(candidate.engine), [])
        seen.append((kept, program.temp_bytes))
        return candidate._replace(temp_bytes=program.temp_bytes, compiled=True)


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


def _engines(objective: Any, hyper: Hyper) -> list[Engine]:
    """Those that give the derivative itself, at every size."""
    objective, hyper = applied_to(None, objective, hyper)
    chunks = [k for k in (1, 4, 16, 64) if k < count(hyper)]
    whole = [Forward(), *(Forward(chunk=k) for k in chunks), Reverse()]
    steps = max(getattr(objective, "steps", 1), 1)
    states = {min(steps, 2**k) for k in range(24)} | {round(math.sqrt(2 * steps))}
    many = sorted(states, reverse=True)
    apart = [
        Mixed(),
        *(Reverse(checkpoints=n) for n in many),
        *(Mixed(checkpoints=n) for n in many),
    ]
    in_parts = getattr(objective, "in_parts", None)  # made of several runs
    return whole + (apart if in_parts is None else [in_parts(e) for e in apart])


def _ordered(
    objective: Objective, hyper: Hyper, engines: Sequence[Engine], measure: int | None
) -> list[Candidate]:
    """By cost; those of unknown cost last."""
    candidates = []
    for engine in engines:
        try:
            price = _cost(objective, hyper, engine, measure)
            candidates.append(Candidate(engine, None, False, price))
        except _REFUSALS as error:
            refused = Candidate(engine, None, False, math.nan, _refusal(error))
            candidates.append(refused)
    return sorted(candidates, key=lambda c: math.inf if math.isnan(c.cost) else c.cost)


def _cost(
    objective: Objective, hyper: Hyper, engine: Engine, measure: int | None
) -> float:
    if measure is None:
        return cost(engine, objective, hyper)
    steps = getattr(objective, "steps", measure)
    short, point = shortened(objective, hyper, min(measure, steps))
    seconds = timing(short, point, engine, repeats=3).seconds
    return seconds / timing(short, point, None, repeats=3).seconds


def _nothing_fits(search: _Search, left: list[Candidate], limit: int | str) -> str:
    """How little would do: the model's guesses, until the least of them is XLA's."""
    while sized := [c for c in left if c.temp_bytes is not None]:
        least = min(sized, key=lambda c: c.temp_bytes)
        if least.compiled:
            return (
                f"no engine fits into {limit!r}: the least is {least.temp_bytes} bytes "
                f"({least.engine}); raise memory_limit, or shrink the state or the "
                "batch (Unrolled's microbatch)"
            )
        index = left.index(least)
        left[index] = search.compile(least._replace(temp_bytes=None))
        left = [c if c.compiled or c.note else search.at_least(c) for c in left]
    reasons = "; ".join(f"{c.engine}: {c.note}" for c in left[:3])
    return f"every engine refuses this objective: {reasons}"


def _refusal(error: Exception) -> str:
    return "refused: " + str(error).partition("\n")[0]

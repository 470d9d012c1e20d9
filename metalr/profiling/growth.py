"""Bytes and seconds against the horizon, with the exponent of each engine."""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from .._checks import float_leaves
from .._types import Hyper, Objective
from ..hypergrad import Engine
from ..hypergrad.facts import cost
from .measure import account, program_of, remembering, timed
from .model import Temp


class Row(NamedTuple):
    """One engine at one horizon; None for what was not measured, and why in `note`."""

    engine: str
    steps: int
    temp_bytes: int | None
    predicted_bytes: int | None
    seconds: float | None
    compile_seconds: float | None
    note: str = ""


class Exponent(NamedTuple):
    """Slope of log bytes against log steps, with its standard error."""

    value: float
    error: float


class Growth(NamedTuple):
    """The table, and the fitted exponent of each engine."""

    rows: tuple[Row, ...]
    exponents: dict[str, Exponent]


def growth(
    make_objective: Callable[[int], Objective],
    steps: Sequence[int],
    hyper: Any,
    engines: Sequence[Any],
    *,
    repeats: int = 0,
    memory_limit: int | None = None,
    longest: float | int | None = None,
) -> Growth:
    """Temporary bytes, and seconds where asked, for every engine and horizon.

    An engine that refuses the problem, or one that runs out of memory, is a row that
    says so. The exponent is fitted by least squares to the larger half of the horizons,
    where what grows outweighs what is constant.

    Args:
        make_objective: `steps -> Unrolled`, one problem at several horizons.
        steps: the horizons T.
        hyper: the point, or a function `steps -> hyper` (e.g. for per-step rates).
        engines: engines, None for the run itself, or functions `steps -> engine` (e.g.
            `lambda T: metalr.Reverse(checkpoints=round(T**0.5))`), named by their
            `__name__`.
        repeats: runs to take the median time of; 0 compiles only.
        memory_limit: temporary bytes above which nothing is run (it is compiled).
        longest: steps' worth of training, by the cost model, above which nothing is
            run (it is compiled).
    """
    rows = tuple(
        growth_rows(
            make_objective,
            steps,
            hyper,
            engines,
            repeats=repeats,
            memory_limit=memory_limit,
            longest=longest,
        )
    )
    names = dict.fromkeys(row.engine for row in rows)
    exponents = {
        name: fit_exponent([row for row in rows if row.engine == name])
        for name in names
    }
    return Growth(rows, exponents)


def growth_rows(
    make_objective: Callable[[int], Objective],
    steps: Sequence[int],
    hyper: Any,
    engines: Sequence[Any],
    *,
    repeats: int = 0,
    memory_limit: int | None = None,
    longest: float | int | None = None,
) -> Iterator[Row]:
    """The rows of `growth`, each as soon as it is known."""
    temp_of = remembering()
    for engine in engines:
        for horizon in steps:
            yield _row(
                make_objective,
                horizon,
                hyper,
                engine,
                temp_of=temp_of,
                repeats=repeats,
                memory_limit=memory_limit,
                longest=longest,
            )


def name_of(engine: Any) -> str:
    """How an engine, a family of engines, or None is called in a table."""
    if engine is None:
        return "training"
    return getattr(engine, "__name__", None) or str(engine)


def _row(
    make_objective: Callable[[int], Objective],
    steps: int,
    hyper: Any,
    family: Any,
    *,
    temp_of: Temp,
    repeats: int,
    memory_limit: int | None,
    longest: float | int | None,
) -> Row:
    name = name_of(family)
    engine: Engine | None = family(steps) if hasattr(family, "__name__") else family
    point: Hyper = hyper(steps) if callable(hyper) else hyper
    try:
        objective = make_objective(steps)
        point = float_leaves(point, "hyper")
        program = program_of(objective, point, engine)
        found = account(program, objective, point, engine, temp_of)
        row = Row(
            name,
            steps,
            found.temp_bytes,
            found.predicted_bytes,
            None,
            found.compile_seconds,
        )
        if not repeats:
            return row
        if memory_limit is not None and found.temp_bytes > memory_limit:
            return row._replace(note=f"not run: above {memory_limit:.3g} bytes")
        worth = steps * (1.0 if engine is None else cost(engine, objective, point))
        if longest is not None and worth > longest:
            note = f"not run: {worth:.2g} steps' worth of training by the cost model"
            return row._replace(note=note)
        runs = timed(program.run, objective, point, repeats)
        return row._replace(seconds=statistics.median(runs))
    except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        return Row(name, steps, None, None, None, None, f"refused: {reason}")


def fit_exponent(rows: Sequence[Row]) -> Exponent:
    """Slope of log bytes against log steps over the larger half of the horizons.

    nan where fewer than two rows have bytes; the error is nan for exactly two.
    """
    pairs = sorted(
        (row.steps, row.temp_bytes) for row in rows if row.temp_bytes and row.steps
    )
    upper = np.log(np.array(pairs[len(pairs) // 2 :], float).reshape(-1, 2))
    if len(upper) < 2:
        return Exponent(math.nan, math.nan)
    x, y = upper[:, 0] - upper[:, 0].mean(), upper[:, 1] - upper[:, 1].mean()
    slope = float(x @ y / (x @ x))
    freedom = max(len(x) - 2, 1)
    error = math.sqrt(float(np.sum((y - slope * x) ** 2) / freedom / (x @ x)))
    return Exponent(slope, error if len(x) > 2 else math.nan)

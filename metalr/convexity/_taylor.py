"""Taylor coefficients of a traced program of one variable: exact, or enclosed."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr

from ._exact import Exact, NotRationalError
from ._interpret import interpret
from ._interval import Interval
from ._run import NotCoveredError, OverBudgetError, Run


def exact(
    program: ClosedJaxpr, point: float, order: int | None, work: float
) -> list[Fraction]:
    """The coefficients at a float up to an order; all, if None, of a polynomial.

    Raises:
        NotCoveredError, NotRationalError, OverBudgetError: where that is not possible.
    """
    run = Run(Exact.lift, order, exact=True, work=work)
    variable = [Exact.lift(np.asarray(point)), Exact.lift(np.ones(()))]
    series = run.series(interpret(program, [variable], run)[0])
    found = [c.fractions()[0] for c in series]
    return found + [Fraction(0)] * ((order or 0) + 1 - len(found))


def enclosed(program: ClosedJaxpr, points: np.ndarray) -> tuple[Interval, Interval]:
    """L and L'' at single points."""
    run = Run(Interval.lift, 2)
    variable = [Interval(points, points), Interval.lift(np.ones(()))]
    series = run.series(interpret(program, [variable], run)[0])
    value = series[0].map(lambda x: np.broadcast_to(x, points.shape))
    return value, twice_second(series, points.size)


def enclosed_curvature(
    program: ClosedJaxpr,
    low: np.ndarray,
    high: np.ndarray,
    middle: np.ndarray,
    order: int,
) -> tuple[Interval, Interval, set[str]]:
    """L'' over boxes and at their midpoints; kinks that were met."""
    radius = np.nextafter(np.maximum(high - middle, middle - low), np.inf)
    run = Run(Interval.lift, order, radius=radius)
    start = Interval(np.concatenate([middle, low]), np.concatenate([middle, high]))
    variable = [start, Interval.lift(np.ones(()))]
    (output,) = interpret(program, [variable], run)
    with np.errstate(all="ignore"):
        series = run.narrowed(run.series(output))
    second, half = twice_second(series, 2 * low.size), low.size
    at_middle = second.map(lambda x: x[:half])
    return second.map(lambda x: x[half:]), at_middle, run.kinks


def twice_second(series: Any, boxes: int) -> Interval:
    """L'' from the series of L; nothing is known where L is not known to be finite."""
    value, zero = series[0], Interval(np.zeros(boxes), np.zeros(boxes))
    with np.errstate(all="ignore"):
        second = series[2].scale(2.0) if len(series) > 2 else zero
    known = np.isfinite(value.lo) & np.isfinite(value.hi)
    return second.map(lambda x: np.broadcast_to(x, (boxes,))).where(known)


def exact_slope(
    function: Callable[[Any], jax.Array], point: float, *, dtype: Any, work: float
) -> Fraction | None:
    """The derivative at a float of what a traced function of one number computes.

    None where it is not to be had in exact rational arithmetic: the program has a
    function, a choice or a primitive that it has no rule for, or grows too long. What
    someone wrote for a derivative (`stop_gradient`, custom rules) is not looked at.

    Args:
        function: traced once.
        point: where.
        dtype: of its argument.
        work: 64-bit multiplications to spend.
    """
    program = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((), dtype))
    if not np.isfinite(point):
        return None
    try:
        return exact(program, point, 1, work)[1]
    except (NotCoveredError, NotRationalError, OverBudgetError):
        return None

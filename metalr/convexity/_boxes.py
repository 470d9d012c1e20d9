"""Branch and bound: a sign for L'' on every part of an interval, or its exact parts."""

import dataclasses
from fractions import Fraction
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr

from ._exact import Exact
from ._interpret import interpret
from ._interval import Interval
from ._run import Run

ORDER = 5
"""Taylor order of the enclosures: 2 for L'', the rest narrows it."""

_HOPELESS = 7
"""Boxes in a row at whose midpoints not even the sign of L'' comes out."""

_AT_ONCE = 32
"""Boxes in one pass over the program."""


@dataclasses.dataclass
class Cover:
    """How far the subdivision got."""

    proved: float = 0.0  # total width of the boxes with L'' ≥ 0
    least: float = np.inf  # proven lower bound of L'' on those
    boxes: int = 0
    pending: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    witness: float | None = None
    curvature: float = np.nan  # proven upper bound of L'' at the witness
    kinks: set[str] = dataclasses.field(default_factory=set)


def subdivide(
    program: ClosedJaxpr, low: float, high: float, budget: int, scale: float
) -> Cover:
    """Split [low, high] until L'' ≥ 0 is proved everywhere, or < 0 somewhere.

    Gives up early where enclosures are wider than `scale`, a typical |L''|, even at
    single points: then smaller boxes do not help.

    Raises:
        NotCoveredError: naming a primitive without a rule.
    """
    cover = Cover(pending=[(low, high)])
    smallest = 1e-14 * (high - low)
    given_up: list[tuple[float, float]] = []
    blind = 0
    while cover.pending and cover.boxes < budget and blind < _HOPELESS:
        # The widest first, so that what is left is spread over the trouble spots.
        cover.pending.sort(key=lambda box: box[0] - box[1])
        batch = cover.pending[:_AT_ONCE]
        cover.pending = cover.pending[_AT_ONCE:]
        ends = np.array(batch).T
        middle = 0.5 * ends[0] + 0.5 * ends[1]
        second, at_middle, kinks = curvatures(program, ends[0], ends[1], middle)
        cover.kinks |= kinks
        cover.boxes += len(batch)
        unclear = ~(at_middle.hi - at_middle.lo <= max(scale, 1e-290))
        blind = blind + len(batch) if np.all(unclear) else 0
        for i, (left, right) in enumerate(batch):
            if second.lo[i] >= 0.0:
                cover.proved += right - left
                cover.least = min(cover.least, float(second.lo[i]))
            elif at_middle.hi[i] < 0.0:
                cover.witness = float(middle[i])
                cover.curvature = float(at_middle.hi[i])
                cover.pending += batch[i:]
                return cover
            elif right - left < smallest or not left < middle[i] < right:
                given_up.append((left, right))
            else:
                cut = float(middle[i])
                cover.pending += [(left, cut), (cut, right)]
    cover.pending += given_up
    return cover


def curvatures(
    program: ClosedJaxpr, low: np.ndarray, high: np.ndarray, middle: np.ndarray
) -> tuple[Interval, Interval, set[str]]:
    """Enclosures of L'' over boxes and at their midpoints; kinks that were met."""
    radius = np.nextafter(np.maximum(high - middle, middle - low), np.inf)
    run = Run(Interval.lift, ORDER, radius=radius)
    start = Interval(np.concatenate([middle, low]), np.concatenate([middle, high]))
    variable = [start, Interval.lift(np.ones(()))]
    (output,) = interpret(program, [variable], run)
    with np.errstate(all="ignore"):
        series = run.narrowed(run.series(output))
        second = _twice_second(series, 2 * low.size)
    half = low.size
    return (
        Interval(second.lo[half:], second.hi[half:]),
        Interval(second.lo[:half], second.hi[:half]),
        run.kinks,
    )


def at_points(program: ClosedJaxpr, points: np.ndarray) -> tuple[Interval, Interval]:
    """Enclosures of L and L'' at single points."""
    run = Run(Interval.lift, 2)
    variable = [Interval(points, points), Interval.lift(np.ones(()))]
    series = run.series(interpret(program, [variable], run)[0])
    shape = (points.size,)
    value = series[0].map(lambda x: np.broadcast_to(x, shape))
    with np.errstate(all="ignore"):
        return value, _twice_second(series, points.size)


def exact_curvature(program: ClosedJaxpr, point: float, work: float) -> Fraction:
    """L'' at a float, exactly.

    Raises:
        NotCoveredError, NotRationalError, OverBudgetError: where that is not possible.
    """
    run = Run(Exact.lift, 2, exact=True, work=work)
    variable = [Exact.lift(np.asarray(point)), Exact.lift(np.ones(()))]
    series = run.series(interpret(program, [variable], run)[0])
    return 2 * series[2].fractions()[0] if len(series) > 2 else Fraction(0)


def coefficients(program: ClosedJaxpr, work: float) -> list[Fraction]:
    """The coefficients of a polynomial program, exactly. Raises as above."""
    run = Run(Exact.lift, None, exact=True, work=work)
    variable = [Exact.lift(np.zeros(())), Exact.lift(np.ones(()))]
    series = run.series(interpret(program, [variable], run)[0])
    return [c.fractions()[0] for c in series]


def _twice_second(series: Any, boxes: int) -> Interval:
    if len(series) <= 2:
        zero = np.zeros(boxes)
        return Interval(zero, zero)
    second = series[2].scale(2.0)
    return second.map(lambda x: np.broadcast_to(x, (boxes,)))

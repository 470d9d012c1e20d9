"""The prover by intervals: a search whose finds are proved, then branch and bound."""

import math
from fractions import Fraction

import numpy as np
from jax.extend.core import ClosedJaxpr

from ._boxes import subdivide
from ._exact import NotRationalError
from ._question import Question, certified, refuted, undecided
from ._report import Report
from ._run import NotCoveredError, OverBudgetError
from ._search import Found, search
from ._taylor import enclosed, exact

_CANDIDATES = 16
"""Points of the search that a proof is tried at."""


def interval(question: Question) -> Report:
    """A proved negative curvature or chord, else L'' ≥ 0 on ever smaller boxes."""
    program, low, high = question.program, question.low, question.high
    try:
        enclosed(program, np.array([low, high]))  # can it be read at all?
        found = search(question.objective, low, high)
        smallest = (float(found.curvature[0]), float(found.at[0]))
        report = _verified(program, found, question.work)
        if report is not None:
            return report._replace(smallest=smallest)
        cover = subdivide(program, low, high, question.budget, _scale(found))
    except (NotCoveredError, OverBudgetError) as error:
        report = undecided(f"not covered: {error}")
        return report._replace(pending=((low, high),))
    seen = f"the smallest L'' seen, unproved, is {smallest[0]:.3g} at {smallest[1]:.6g}"
    share = min(cover.proved / (high - low), 1.0)
    if cover.witness is not None:
        report = _refuted_at(cover.witness, cover.curvature)
    elif not cover.pending:
        share, strict = 1.0, True if cover.least > 0.0 else None
        reason = f"L'' ≥ {cover.least:.3g} by intervals on {cover.boxes} boxes"
        report = certified(reason, "interval", strict=strict, least=cover.least)
    else:
        met = f"; met {', '.join(sorted(cover.kinks))}" if cover.kinks else ""
        reason = (
            f"L'' ≥ 0 proved on {share:.4%} of the interval with {cover.boxes} boxes, "
            f"{len(cover.pending)} left (raise budget?){met}; {seen}"
        )
        report = Report("undecided", None, reason, "interval")
    return report._replace(
        smallest=smallest,
        proved=share,
        pending=tuple(sorted(cover.pending)),
        boxes=cover.boxes,
    )


def _scale(found: Found) -> float:
    sizes = np.abs(found.curvature[np.isfinite(found.curvature)])
    return float(np.median(sizes)) if sizes.size else 0.0


def _verified(program: ClosedJaxpr, found: Found, work: float) -> Report | None:
    """A proof of non-convexity at one of the candidates, or None."""
    negative = found.curvature < 0.0
    points = found.at[negative][:_CANDIDATES]
    if points.size:
        _, second = enclosed(program, points)
        proved = np.flatnonzero(second.hi < 0.0)
        if proved.size:
            best = int(proved[0])
            return _refuted_at(float(points[best]), float(second.hi[best]))
        point = _short(float(points[0]))
        exactly = _exactly(program, point, work)
        if exactly is not None and exactly < 0:
            return _refuted_at(point, min(float(exactly), -5e-324))
    return _chord(program, found)


def _short(point: float) -> float:
    """Near the point, with 12 bits: exact numbers made from it stay short."""
    mantissa, exponent = math.frexp(point)
    return math.ldexp(round(mantissa * 2**12), exponent - 12)


def _exactly(program: ClosedJaxpr, point: float, work: float) -> Fraction | None:
    try:
        return 2 * exact(program, point, 2, work)[2]
    except (NotRationalError, NotCoveredError, OverBudgetError):
        return None


def _refuted_at(witness: float, curvature: float) -> Report:
    reason = f"L''({witness:.6g}) ≤ {curvature:.6g} < 0, found by search, then proved"
    return refuted(witness, reason, "interval", curvature)


def _chord(program: ClosedJaxpr, found: Found) -> Report | None:
    """L at the middle above the chord: no derivative is needed, a kink may be there."""
    for a, m, b in found.chords:
        if Fraction(a) + Fraction(b) != 2 * Fraction(m):
            continue
        value, _ = enclosed(program, np.array([a, m, b]))
        gap = np.nextafter(
            2.0 * value.lo[1] - np.nextafter(value.hi[0] + value.hi[2], np.inf), -np.inf
        )
        if gap > 0.0:
            reason = (
                f"L({m:.6g}) lies above the chord from {a:.6g} to {b:.6g}, by interval "
                f"arithmetic"
            )
            second = -4.0 * float(gap) / (b - a) ** 2
            return refuted(m, reason, "interval", second)._replace(chord=(a, b))
    return None

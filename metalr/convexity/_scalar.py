"""The verdict for one scalar hyperparameter, by the cheapest proof that works."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr

from ..runs.unrolled import Unrolled
from . import _boxes, _polynomial
from ._degree import degrees
from ._exact import NotRationalError
from ._report import Report
from ._run import NotCoveredError, OverBudgetError
from ._search import Found, search
from ._spectral import Spectral, recognize

_HIGHEST_DEGREE = 400
_CANDIDATES = 16
"""Points of the search that a proof is tried at."""


def check_scalar(
    objective: Callable[[Any], jax.Array],
    low: float,
    high: float,
    *,
    budget: int,
    work: float,
) -> Report:
    """See `check`."""
    if isinstance(objective, Unrolled):
        report = _by_spectrum(objective, low, work)
        if report is not None:
            return report
    program = traced(objective, ())
    ((degree,),) = degrees(program, [(1.0,)])
    why_not = "the traced program is not a polynomial in hyper"
    if degree <= 1:
        reason = "the traced program is affine in hyper"
        return _certified(reason, "polynomial", strict=False, least=0.0)
    if degree <= _HIGHEST_DEGREE:
        try:
            exact = _boxes.coefficients(program, work)
            return _by_polynomial(exact, low, high)
        except (NotRationalError, NotCoveredError, OverBudgetError) as error:
            why_not = f"a polynomial of degree {degree:.0f}, but {error}"
    elif not math.isinf(degree):
        why_not = f"a polynomial of degree {degree:.0f}, too high for exact arithmetic"
    return _by_intervals(
        objective, program, low, high, budget=budget, work=work, why_not=why_not
    )


def traced(
    objective: Callable[[Any], jax.Array], shape: tuple[int, ...]
) -> ClosedJaxpr:
    """The program of the objective, after checking that it returns a real scalar."""
    argument = jax.ShapeDtypeStruct(shape, jnp.result_type(float))
    program = jax.make_jaxpr(objective)(argument)
    outputs = [(out.shape, out.dtype) for out in program.out_avals]
    real = len(outputs) == 1 and jnp.issubdtype(outputs[0][1], jnp.floating)
    if not real or outputs[0][0] != ():
        msg = f"objective returns {outputs}, but must return one real scalar"
        raise ValueError(msg)
    return program


def _by_spectrum(objective: Unrolled, low: float, work: float) -> Report | None:
    if callable(objective.params) and not hasattr(objective.params, "dtype"):
        return None
    hyper = jnp.asarray(low, jnp.result_type(float))
    found = recognize(objective, hyper, work)
    if not isinstance(found, Spectral):
        return None
    reason = (
        "gradient descent on a convex quadratic (traced loss: degree 2 in params, "
        "positive semidefinite Hessian, 0 in hyper; traced update: a multiple of "
        "hyper · gradient): L_T is affine plus Σ q(1 − ηλ)^2T, q ≥ 0"
    )
    report = _certified(reason, "spectral", strict=found.strict, least=0.0)
    return report._replace(every_steps=True)


def _certified(
    reason: str, method: Any, *, strict: bool | None, least: float
) -> Report:
    return Report(
        "certified", None, reason, method, strict=strict, least=least, proved=1.0
    )


def _by_polynomial(p: list[Fraction], low: float, high: float) -> Report:
    second = _polynomial.second_derivative(p)
    decision = _polynomial.decide(second, Fraction(low), Fraction(high))
    degree = max((k for k, c in enumerate(p) if c != 0), default=0)
    by = f"exact coefficients of a polynomial of degree {degree}, {decision.method}"
    if decision.nonnegative:
        strict = any(c != 0 for c in second)
        return _certified(f"L'' ≥ 0 by {by}", "polynomial", strict=strict, least=0.0)
    assert decision.witness is not None
    witness = _best_float(second, decision.witness, low, high)
    curvature = float(_polynomial.evaluate(second, Fraction(witness)))
    return Report(
        "refuted",
        witness,
        f"L''({float(witness):.6g}) = {curvature:.6g} < 0, evaluated exactly ({by})",
        "polynomial",
        curvature=min(curvature, -5e-324),  # the sign is exact, the size may underflow
        strict=False,
    )


def _best_float(
    p: list[Fraction], found: Fraction, low: float, high: float
) -> float | Fraction:
    """The most negative of some floats, each evaluated exactly."""
    grid = [*np.linspace(low, high, 65).tolist(), float(found)]
    inside = [x for x in grid if low <= x <= high]
    best = min(inside, key=lambda x: _polynomial.evaluate(p, Fraction(x)))
    return best if _polynomial.evaluate(p, Fraction(best)) < 0 else found


def _by_intervals(
    objective: Callable[[Any], jax.Array],
    program: ClosedJaxpr,
    low: float,
    high: float,
    *,
    budget: int,
    work: float,
    why_not: str,
) -> Report:
    found = search(objective, low, high)
    smallest = (float(found.curvature[0]), float(found.at[0]))
    try:
        refuted = _verified(program, found, work)
        if refuted is not None:
            return refuted._replace(smallest=smallest)
        cover = _boxes.subdivide(program, low, high, budget, _scale(found))
    except (NotCoveredError, OverBudgetError) as error:
        reason = (
            f"not covered: {error} ({why_not}); the smallest L'' seen, unproved, is "
            f"{smallest[0]:.3g} at {smallest[1]:.6g}"
        )
        pending = ((low, high),)
        return Report(
            "undecided", None, reason, "none", smallest=smallest, pending=pending
        )
    share = min(cover.proved / (high - low), 1.0)
    if cover.witness is not None:
        report = _refuted_at(cover.witness, cover.curvature)
    elif not cover.pending:
        reason = f"L'' ≥ {cover.least:.3g} by intervals on {cover.boxes} boxes"
        strict = True if cover.least > 0.0 else None
        report = _certified(reason, "interval", strict=strict, least=cover.least)
        share = 1.0
    else:
        report = Report("undecided", None, _how_far(cover, share, smallest), "interval")
    return report._replace(
        smallest=smallest,
        proved=share,
        pending=tuple(sorted(cover.pending)),
        boxes=cover.boxes,
    )


def _scale(found: Found) -> float:
    sizes = np.abs(found.curvature[np.isfinite(found.curvature)])
    return float(np.median(sizes)) if sizes.size else 0.0


def _how_far(cover: _boxes.Cover, share: float, smallest: tuple[float, float]) -> str:
    kinks = f"; met {', '.join(sorted(cover.kinks))}" if cover.kinks else ""
    return (
        f"L'' ≥ 0 proved on {share:.4%} of the interval with {cover.boxes} boxes, "
        f"{len(cover.pending)} left (raise budget?){kinks}; the smallest L'' seen, "
        f"unproved, is {smallest[0]:.3g} at {smallest[1]:.6g}"
    )


def _verified(program: ClosedJaxpr, found: Found, work: float) -> Report | None:
    """A proof of non-convexity at one of the candidates, or None."""
    negative = found.curvature < 0.0
    points = found.at[negative][:_CANDIDATES]
    if points.size:
        _, second = _boxes.at_points(program, points)
        proved = np.flatnonzero(second.hi < 0.0)
        if proved.size:
            best = int(proved[0])
            return _refuted_at(float(points[best]), float(second.hi[best]))
        point = _short(float(points[0]))
        exact = _exactly(program, point, work)
        if exact is not None and exact < 0:
            return _refuted_at(point, min(float(exact), -5e-324))
    return _chord(program, found)


def _short(point: float) -> float:
    """Near the point, with 12 bits: exact numbers made from it stay short."""
    mantissa, exponent = math.frexp(point)
    return math.ldexp(round(mantissa * 2**12), exponent - 12)


def _exactly(program: ClosedJaxpr, point: float, work: float) -> Fraction | None:
    try:
        return _boxes.exact_curvature(program, point, work)
    except (NotRationalError, NotCoveredError, OverBudgetError):
        return None


def _refuted_at(witness: float, curvature: float) -> Report:
    reason = f"L''({witness:.6g}) ≤ {curvature:.6g} < 0, found by search, then proved"
    return Report(
        "refuted", witness, reason, "interval", curvature=curvature, strict=False
    )


def _chord(program: ClosedJaxpr, found: Found) -> Report | None:
    """L at the middle above the chord: no derivative is needed, a kink may be there."""
    for a, m, b in found.chords:
        if Fraction(a) + Fraction(b) != 2 * Fraction(m):
            continue
        value, _ = _boxes.at_points(program, np.array([a, m, b]))
        gap = np.nextafter(
            2.0 * value.lo[1] - np.nextafter(value.hi[0] + value.hi[2], np.inf), -np.inf
        )
        if gap > 0.0:
            reason = (
                f"L({m:.6g}) lies above the chord from {a:.6g} to {b:.6g}, by interval "
                f"arithmetic"
            )
            second = -4.0 * float(gap) / (b - a) ** 2
            return Report(
                "refuted",
                m,
                reason,
                "interval",
                curvature=second,
                chord=(a, b),
                strict=False,
            )
    return None

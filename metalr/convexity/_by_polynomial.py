"""The prover by exact coefficients: the traced program is a polynomial."""

import math
from fractions import Fraction

import jax.numpy as jnp
import numpy as np

from . import _polynomial
from ._degree import degrees
from ._exact import NotRationalError
from ._question import Question, certified, refuted, undecided
from ._report import Report
from ._run import NotCoveredError, OverBudgetError
from ._taylor import exact

_HIGHEST_DEGREE = 400
_TINIEST = 5e-324


def polynomial(question: Question) -> Report:
    """The sign of L'', by Bernstein coefficients or Sturm's theorem."""
    ((degree,),) = degrees(question.program, [(1.0,)])
    if degree <= 1:
        return _affine(question)
    if math.isinf(degree):
        return undecided("the traced program is not a polynomial in hyper")
    if degree > _HIGHEST_DEGREE:
        reason = f"a polynomial of degree {degree:.0f}, too high for exact arithmetic"
        return undecided(reason)
    try:
        coefficients = exact(question.program, 0.0, None, question.work)
    except (NotRationalError, NotCoveredError, OverBudgetError) as error:
        return undecided(f"a polynomial of degree {degree:.0f}, but {error}")
    return _decided(coefficients, question.low, question.high)


def _affine(question: Question) -> Report:
    ends = jnp.asarray([question.low, question.high])
    if all(math.isfinite(question.objective(end)) for end in ends):
        reason = "the traced program is affine in hyper"
        return certified(reason, "polynomial", strict=False)
    return undecided("the traced program is affine in hyper, but not finite")


def _decided(p: list[Fraction], low: float, high: float) -> Report:
    second = _polynomial.second_derivative(p)
    decision = _polynomial.decide(second, Fraction(low), Fraction(high))
    degree = max((k for k, c in enumerate(p) if c != 0), default=0)
    by = f"exact coefficients of a polynomial of degree {degree}, {decision.method}"
    if decision.witness is None:
        strict = any(c != 0 for c in second)
        return certified(f"L'' ≥ 0 by {by}", "polynomial", strict=strict)
    witness = _best_float(second, decision.witness, low, high)
    curvature = float(_polynomial.evaluate(second, Fraction(witness)))
    reason = (
        f"L''({float(witness):.6g}) = {curvature:.6g} < 0, evaluated exactly ({by})"
    )
    # The sign is exact, the size may underflow.
    return refuted(witness, reason, "polynomial", min(curvature, -_TINIEST))


def _best_float(
    p: list[Fraction], found: Fraction, low: float, high: float
) -> float | Fraction:
    """The most negative of some floats, each evaluated exactly."""
    grid = [*np.linspace(low, high, 65).tolist(), float(found)]
    inside = [x for x in grid if low <= x <= high]
    best = min(inside, key=lambda x: _polynomial.evaluate(p, Fraction(x)))
    return best if _polynomial.evaluate(p, Fraction(best)) < 0 else found

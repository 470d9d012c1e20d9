"""`check`: is the objective convex in its hyperparameter, and how is that known?"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from .._checks import path_name
from .._types import Hyper
from ._by_intervals import interval
from ._by_polynomial import polynomial
from ._by_spectrum import spectral
from ._question import Question, traced
from ._report import Report
from ._several import refute

_PROVERS: tuple[Callable[[Question], Report], ...] = (spectral, polynomial, interval)
"""The cheapest first."""


def check(
    objective: Callable[[Any], jax.Array],
    low: Hyper,
    high: Hyper,
    *,
    budget: int = 2048,
    work: float = 5e7,
) -> Report:
    r"""Is `objective` convex in its hyperparameter between `low` and `high`?

    Three verdicts. "certified": there is a proof of $L'' \ge 0$ on the whole interval.
    "refuted": there is a proof of $L'' < 0$ at the witness. "undecided": neither, and
    the report says how far it got. Values on a grid, however many, never certify.

    The proofs, in the order in which they are tried:

    - *spectral*: an `Unrolled` whose traced loss is a convex quadratic and whose traced
      update is a multiple of hyper times the gradient. Holds for every T at once.
    - *polynomial*: the traced program is a polynomial in hyper (momentum, weight decay,
      a quadratic validation loss). Its coefficients are computed in exact rational
      arithmetic, the sign of L'' is decided by Bernstein coefficients or Sturm's
      theorem. Always decides, if `work` suffices.
    - *interval*: a search for negative curvature, each find proved by interval
      arithmetic; then branch and bound with outward rounded Taylor enclosures of the
      traced program. Cannot certify where L'' touches 0, nor across a kink (relu at 0);
      a concave kink is refuted by a chord.

    What is judged is the exact real function that the traced program names, with its
    constants as the floats that they are; rounding in its own evaluation is not part of
    it. Only primitives on a list are read, and of those that carry a program only calls
    (`jit`, `checkpoint`, custom derivative rules, whose value is meant), `scan`,
    `while` and `cond`; any other ends "undecided", by its name.

    Several hyperparameters (arrays, e.g. `per_step` rates, or any pytree) can be
    refuted, not certified: at the middle and the ends of the box a direction of
    negative curvature is sought, and proved along its line. `low == high` asks at a
    point. To certify along a line, pass `lambda s: objective(start + s * direction)`.

    Runs on the host in float64, whatever JAX's precision; nothing is compiled but the
    search. Cost: one interpretation of the unrolled program (T steps) for each 32
    boxes; about a millisecond for each equation, so 1000 steps take some ten seconds.
    The enclosures widen with T (momentum most), and long runs that no exact proof
    reaches end "undecided". Not to be differentiated or traced.

    Args:
        objective: an `Unrolled`, or any traceable function of `low`'s structure to a
            real scalar.
        low: lower end; a float, an array or a pytree of floats.
        high: upper end, of the same structure.
        budget: boxes to evaluate before giving up.
        work: 64-bit multiplications to spend on exact arithmetic (some tens of
            nanoseconds each).

    Returns:
        `Report(verdict, witness, reason, ...)`.

    Raises:
        ValueError: if the ends are not finite, do not have one structure, low is not
            below high (scalar) or is above it (box), the objective is not a real
            scalar, or `budget` or `work` is not positive.

    Example:
        >>> import jax.numpy as jnp, optax, metalr
        >>> loss = metalr.problems.least_squares(jnp.ones((1, 2)), jnp.array([3.0]))
        >>> L = metalr.Unrolled(loss, optax.sgd, jnp.zeros(2), steps=1000)
        >>> print(metalr.convexity.check(L, 0.0, 0.3).verdict)
        certified
        >>> bump = lambda x: x**2 - jnp.exp(-((10 * x) ** 2))
        >>> report = metalr.convexity.check(bump, 0.0, 1.0)
        >>> print(report.verdict, report.curvature < 0)
        refuted True

    References:
        Moore (1966), Interval Analysis. Farouki, Rajan (1987), On the numerical
        condition of polynomials in Bernstein form. Rump (2010), Verification methods:
        rigorous results using floating-point arithmetic.
    """
    left, right = _ends(low, high)
    if budget < 1 or not work > 0:
        msg = f"budget = {budget} and work = {work} must be positive"
        raise ValueError(msg)
    if jax.tree.structure(low) != jax.tree.structure(0.0) or np.shape(low) != ():
        return refute(objective, left, right)
    start, end = float(left), float(right)
    if not start < end:
        msg = f"low = {start} must be below high = {end}"
        raise ValueError(msg)
    question = Question(objective, traced(objective), start, end, budget, work)
    reports = []
    for prover in _PROVERS:
        reports.append(prover(question))
        if reports[-1].verdict != "undecided":
            return reports[-1]
    reason = f"{reports[-1].reason} ({reports[-2].reason})"
    return reports[-1]._replace(reason=reason)


def _ends(low: Hyper, high: Hyper) -> tuple[Hyper, Hyper]:
    """Both ends as float64, of one structure."""
    if jax.tree.structure(low) != jax.tree.structure(high):
        msg = f"low = {low!r} and high = {high!r} must have one structure"
        raise ValueError(msg)
    ends = tuple(_finite(tree, name) for name, tree in (("low", low), ("high", high)))
    for a, b in zip(*map(jax.tree.leaves, ends), strict=True):
        if a.shape != b.shape or (a.ndim > 0 and np.any(a > b)):
            msg = f"low = {low!r} and high = {high!r} must have one shape, low ≤ high"
            raise ValueError(msg)
    return ends


def _finite(tree: Hyper, name: str) -> Hyper:
    def array(path: Any, leaf: Any) -> np.ndarray:
        numbers = np.asarray(leaf)
        if numbers.dtype.kind not in "fi" or not np.all(np.isfinite(numbers)):
            msg = f"{path_name(name, path)} = {leaf!r} must be finite real numbers"
            raise ValueError(msg)
        return numbers.astype(np.float64)

    if not jax.tree.leaves(tree):
        msg = f"{name} = {tree!r} has no numbers"
        raise ValueError(msg)
    return jax.tree_util.tree_map_with_path(array, tree)

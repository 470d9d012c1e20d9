"""One check: every way to the hypergradient is tried, then judged in one pass."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._programs.limits import epsilon
from .._types import Hyper
from ..hypergrad import Engine
from ._causes import causes
from ._closed import Closed, closed_form
from ._differences import CONCLUSIVE, FLOOR, Slope, ladder
from ._directions import Direction, along_product, differences, directions
from ._engines import first_line, measure
from ._inner_row import inner_row, share_of
from ._precision import Precise, has_x64
from ._rows import Row, deviation, finite
from ._steps import has_own_pull_back, pulled_back
from ._verdict import Check, conclude, nothing_finite, run_not_finite


class Problem(NamedTuple):
    """What is compared, and how closely."""

    own: Precise  # as the user has it
    precise: Precise  # in the widest dtype; `own` where that gains nothing
    value: float
    rtol: float
    fine_rtol: float  # of what is computed in the widest dtype
    limit: float  # bytes
    key: Array

    @property
    def low(self) -> bool:
        """Whether a wider dtype can tell rounding from mistakes."""
        return self.precise.dtype != self.own.dtype


class Candidate(NamedTuple):
    """A gradient that may be the reference, and how it is obtained."""

    row: Row
    engine: Engine | None = None


def compare(problem: Problem, engines: list[Engine], random_directions: int) -> Check:
    """Measure, choose the reference, judge every row against it."""
    candidates = _measured(problem, engines)
    if not math.isfinite(problem.value):
        return run_not_finite(problem.own.hyper, problem.value, _rows(candidates))
    candidates += _wider_engine(problem, candidates) + _closed(problem)
    along = directions(problem.own.hyper, problem.key, random_directions)
    slopes = differences(problem.precise, along)
    reference = _reference(candidates, along, slopes, problem.fine_rtol)
    if reference is None:
        return nothing_finite(_rows(candidates))
    grad = reference.row.grad
    rows = [_judged(problem, c, reference) for c in candidates]
    by_differences = _differences_row(problem, grad, along, slopes)
    if by_differences.status == "inconclusive":
        value = reference.row.value
        rows = [_own_run(row, value, problem.rtol) for row in rows]
    inner = inner_row(problem.precise, problem.fine_rtol, problem.key)
    rows = [*rows, by_differences, *inner, *_pull_back_row(problem)]
    wider = problem.precise.dtype if problem.low else None
    wrong = any(row.status == "differs" for row in rows)
    return conclude(
        grad,
        tuple(rows),
        problem.own.dtype,
        wider=wider,
        x64=has_x64(),
        cause=causes(*problem.own[:2]) if wrong else "",
    )


def _measured(problem: Problem, engines: list[Engine]) -> list[Candidate]:
    objective, hyper, _ = problem.own
    return [Candidate(measure(objective, hyper, e, problem.limit), e) for e in engines]


def _wider_engine(problem: Problem, candidates: list[Candidate]) -> list[Candidate]:
    """The first engine that is right by its nature, again in the widest dtype."""
    exact = [c.engine for c in candidates if c.row.status == "agrees"]
    if not problem.low or not exact or exact[0] is None:
        return []
    objective, hyper, dtype = problem.precise
    row = measure(objective, hyper, exact[0], problem.limit)
    return [Candidate(row._replace(name=f"{row.name} in {dtype}", role="wider engine"))]


def _closed(problem: Problem) -> list[Candidate]:
    objective, hyper, _ = problem.precise
    try:
        closed: Closed | None = closed_form(objective, hyper)
    except Exception:  # noqa: BLE001 (an attempt: a program that it can't read has none)
        closed = None
    if closed is None:
        return []
    row = Row("closed form", grad=closed.grad, reason=closed.how, role="closed form")
    return [Candidate(row._replace(status="agrees"))]


_PREFERRED = ("closed form", "wider engine", "engine")


def _reference(
    candidates: list[Candidate],
    along: list[Direction],
    slopes: list[Slope],
    rtol: float,
) -> Candidate | None:
    """The closed form, else the first that differences confirm, else any finite one."""
    usable = [c for c in candidates if c.row.status == "agrees" and finite(c.row.grad)]
    ranked = sorted(usable, key=lambda c: _PREFERRED.index(c.row.role))
    for candidate in ranked:
        confirmed = _worst(candidate.row.grad, along, slopes, rtol)[0] <= 1.0
        if confirmed or candidate.row.role == "closed form":
            return candidate
    return ranked[0] if ranked else None


def _judged(problem: Problem, candidate: Candidate, reference: Candidate) -> Row:
    row, grad = candidate.row, reference.row.grad
    if row.grad is None:
        return row
    own = row.role == "engine"
    dtype = problem.own.dtype if own else problem.precise.dtype
    rtol = problem.rtol if own else problem.fine_rtol
    row = _compared(row, grad, rtol, _floor(problem, dtype))
    if candidate is reference:
        return row._replace(status="reference")
    if row.status != "differs" or candidate.engine is None or not problem.low:
        return row
    objective, hyper, wider = problem.precise
    again = measure(objective, hyper, candidate.engine, problem.limit)
    if again.grad is None:
        return row
    again = _compared(again, grad, problem.fine_rtol, _floor(problem, wider))
    reason = f"in {wider} it agrees: {problem.own.dtype} limits the agreement"
    agrees = again.status == "agrees"
    return row._replace(status="rounding", reason=reason) if agrees else row


def _compared(row: Row, grad: Hyper, rtol: float, floor: Hyper) -> Row:
    """With the deviation, and the status that follows."""
    found = deviation(row.grad, grad, rtol=rtol, floor=floor)
    row = row._replace(**found._asdict())
    if not finite(row.grad):
        return row._replace(status="not finite")
    if row.status == "biased":
        return row._replace(tolerance=None)
    return row._replace(status="agrees" if found.within else "differs")


def _own_run(row: Row, value: float | None, rtol: float) -> Row:
    """Not wrong, but of another run: rounding took it to another value."""
    if row.status != "differs" or row.value is None or value is None:
        return row
    apart = abs(row.value - value) > rtol * max(abs(value), abs(row.value))
    reason = f"its run ends at {row.value:.6g}, the reference's at {value:.6g}"
    return row._replace(status="rounding", reason=reason) if apart else row


def _floor(problem: Problem, dtype: np.dtype) -> Hyper:
    """An absolute error for each leaf: so many roundings of the value."""
    eps = epsilon(dtype)
    roundings = min(FLOOR * eps, math.sqrt(eps))  # in bfloat16 a hundred is all

    def least(leaf: Array) -> float:
        return roundings * abs(problem.value) / (float(jnp.max(jnp.abs(leaf))) or 1.0)

    return jax.tree.map(least, problem.own.hyper)


def _differences_row(
    problem: Problem, grad: Hyper, along: list[Direction], slopes: list[Slope]
) -> Row:
    rtol, dtype = problem.fine_rtol, problem.precise.dtype
    ratio, worst = _worst(grad, along, slopes, rtol)
    slope, direction = slopes[worst], along[worst]
    product = along_product(grad, direction.tangent)
    floor = _floor(problem, dtype)
    least = along_product(floor, jax.tree.map(np.abs, direction.tangent))
    size = max(abs(product), abs(slope.value), least) or 1.0
    difference = abs(slope.value - product) / size
    tolerance = rtol + (slope.error + least) / size
    reason = _settings(dtype, along)
    row = Row(
        "finite differences",
        grad=_by_coordinate(slopes, along, problem.own.hyper),
        difference=difference,
        tolerance=tolerance,
        leaf=direction.name,
        reason=reason,
        role="differences",
    )
    doubtful = [i for i, s in enumerate(slopes) if not _is_conclusive(s, least)]
    if doubtful:
        first = slopes[doubtful[0]]
        why = (
            f"one-sided differences are {first.jump:.2g} apart (a kink)"
            if first.kink
            else f"their error estimate is {first.error:.2g}, as for a chaotic run"
        )
        reason = f"along {along[doubtful[0]].name} {why}; {reason}"
        return row._replace(status="inconclusive", reason=reason)
    agrees = ratio <= 1.0 or difference <= tolerance
    return row._replace(status="agrees" if agrees else "differs")


def _pull_back_row(problem: Problem) -> list[Row]:
    """A run that says how a step is pulled back, against `jax.vjp` of the step."""
    if not has_own_pull_back(problem.precise.objective):
        return []
    row = Row("pull back", tolerance=problem.fine_rtol, role="pull back")
    try:
        seen = pulled_back(problem.precise, problem.key)
    except (TypeError, ValueError, NotImplementedError) as error:
        return [row._replace(status="refused", reason=first_line(error))]
    clean = np.where(np.isnan(seen.deviations), 0.0, seen.deviations)
    worst = int(np.argmax(clean))
    run: Any = problem.precise.objective
    steps, of = run.steps, share_of(seen.steps.size, run.steps)
    row = row._replace(
        difference=float(clean[worst]),
        leaf=f"step {seen.steps[worst]}",
        reason=f"of {of} {steps} steps, against jax.vjp of the step",
    )
    if np.isnan(seen.deviations).all():
        return [row]
    agrees = clean[worst] <= problem.fine_rtol
    return [row._replace(status="agrees" if agrees else "differs")]


def _settings(dtype: np.dtype, along: list[Direction]) -> str:
    steps = ladder(dtype)
    what = "number" if along[0].place is not None else "direction"
    several = "s" if len(along) > 1 else ""
    return (
        f"central, in {dtype}, {steps.size} steps of {steps[0]:.3g} to {steps[-1]:.1g} "
        f"of each number, extrapolated; {len(along)} {what}{several}"
    )


def _is_conclusive(slope: Slope, least: float) -> bool:
    return not slope.kink and slope.error <= CONCLUSIVE * abs(slope.value) + least


def _worst(
    grad: Hyper, along: list[Direction], slopes: list[Slope], rtol: float
) -> tuple[float, int]:
    """Largest deviation from the differences in units of what is allowed; and where."""
    ratios = []
    for direction, slope in zip(along, slopes, strict=True):
        product = along_product(grad, direction.tangent)
        allowed = slope.error + rtol * max(abs(product), abs(slope.value))
        error = abs(product - slope.value)
        ratios.append(error / allowed if allowed else math.inf if error else 0.0)
    clean = [math.inf if math.isnan(r) else r for r in ratios]
    worst = int(np.argmax(clean))
    return clean[worst], worst


def _by_coordinate(
    slopes: list[Slope], along: list[Direction], hyper: Hyper
) -> Hyper | None:
    if along[0].place is None:
        return None
    steps = [sum(float(np.sum(x)) for x in jax.tree.leaves(d.tangent)) for d in along]
    flat = iter([s.value / size for s, size in zip(slopes, steps, strict=True)])
    return jax.tree.map(
        lambda h: np.array([next(flat) for _ in range(h.size)]).reshape(h.shape), hyper
    )


def _rows(candidates: list[Candidate]) -> tuple[Row, ...]:
    return tuple(candidate.row for candidate in candidates)

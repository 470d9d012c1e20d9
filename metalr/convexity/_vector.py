"""Several hyperparameters: is the Hessian positive semidefinite in a box?"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr

from ._interpret import interpret
from ._interval import Interval
from ._report import Report
from ._run import NotCoveredError, OverBudgetError, Run
from ._scalar import traced


def check_vector(
    objective: Callable[[Any], jax.Array],
    low: np.ndarray,
    high: np.ndarray,
    *,
    budget: int,
) -> Report:
    """See `check`; the box is split along its widest side."""
    program = traced(objective, low.shape)
    pending, boxes, least, kinks = [(low, high)], 0, np.inf, set[str]()
    total = _volume(low, high)
    proved = 0.0
    smallest = np.inf
    while pending and boxes < budget:
        pending.sort(key=lambda box: -np.max(box[1] - box[0]))
        left, right = pending.pop(0)
        boxes += 1
        middle = np.clip(0.5 * left + 0.5 * right, left, right)
        try:
            at_middle = _hessian(program, middle, middle, kinks)
            refuted = _negative_direction(program, middle, at_middle)
            over_box = at_middle
            if np.any(left < right):
                over_box = _hessian(program, left, right, kinks)
        except (NotCoveredError, OverBudgetError) as error:
            reason = f"not covered: {error}"
            return Report(
                "undecided", None, reason, "none", pending=((low, high),), boxes=boxes
            )
        if refuted is not None:
            return refuted._replace(boxes=boxes)
        smallest = min(smallest, _eigenvalue(at_middle))
        bound = _least_eigenvalue(over_box)
        if bound > 0.0:
            least = min(least, bound)
            proved += _volume(left, right)
        elif np.all(middle <= left) or np.all(middle >= right):
            pending.append((left, right))
            break
        else:
            axis = int(np.argmax(right - left))
            cut_right, cut_left = right.copy(), left.copy()
            cut_right[axis] = cut_left[axis] = middle[axis]
            pending += [(left, cut_right), (cut_left, right)]
    if not pending:
        reason = f"eigenvalues of the Hessian ≥ {least:.3g} by intervals, {boxes} boxes"
        return Report(
            "certified",
            None,
            reason,
            "interval",
            strict=True,
            least=least,
            proved=1.0,
            boxes=boxes,
        )
    met = f"; met {', '.join(sorted(kinks))}" if kinks else ""
    reason = (
        f"no negative curvature found, the Hessian proved positive definite on "
        f"{proved / total:.4%} of the box with {boxes} boxes (raise budget?){met}; the "
        f"smallest eigenvalue seen, unproved, is {smallest:.3g}"
    )
    return Report(
        "undecided",
        None,
        reason,
        "interval",
        proved=proved / total,
        pending=tuple(pending),
        boxes=boxes,
    )


def _volume(low: np.ndarray, high: np.ndarray) -> float:
    """Of the sides that have a length; 1 for a point."""
    return float(np.prod(np.where(high > low, high - low, 1.0)))


def _along(
    program: ClosedJaxpr,
    low: np.ndarray,
    high: np.ndarray,
    directions: np.ndarray,
    kinks: set[str],
) -> Interval:
    """vᵀHv over a box, one direction a row, as second Taylor coefficients."""
    start = Interval.lift(low) if low is high else Interval(low[None], high[None])
    run = Run(Interval.lift, 2)
    variable = [start, Interval(directions, directions)]
    series = run.series(interpret(program, [variable], run)[0])
    kinks |= run.kinks
    rows = len(directions)
    if len(series) <= 2:
        return Interval(np.zeros(rows), np.zeros(rows))
    with np.errstate(all="ignore"):
        return series[2].scale(2.0).map(lambda x: np.broadcast_to(x, (rows,)))


def _hessian(
    program: ClosedJaxpr, low: np.ndarray, high: np.ndarray, kinks: set[str]
) -> Interval:
    """Enclosure of the Hessian over a box, by polarization."""
    size = low.size
    rows, columns = np.triu_indices(size)
    units = np.eye(size)
    directions = np.where(
        (rows == columns)[:, None], units[rows], units[rows] + units[columns]
    )
    along = _along(program, low, high, directions, kinks)
    with np.errstate(all="ignore"):
        return _polarized(along, rows, columns, size)


def _polarized(
    along: Interval, rows: np.ndarray, columns: np.ndarray, size: int
) -> Interval:
    diagonal = along.map(lambda x: x[rows == columns])
    mixed = along - diagonal.map(lambda x: x[rows]) - diagonal.map(lambda x: x[columns])
    half = mixed.scale(0.5)
    lo, hi = np.empty((size, size)), np.empty((size, size))
    on_diagonal = rows == columns
    for ends, mixed_ends, full in ((lo, half.lo, along.lo), (hi, half.hi, along.hi)):
        ends[rows, columns] = np.where(on_diagonal, full, mixed_ends)
        ends[columns, rows] = ends[rows, columns]
    return Interval(lo, hi)


def _middle(hessian: Interval) -> np.ndarray | None:
    middle = 0.5 * hessian.lo + 0.5 * hessian.hi
    return middle if np.all(np.isfinite(middle)) else None


def _eigenvalue(hessian: Interval) -> float:
    middle = _middle(hessian)
    return np.nan if middle is None else float(np.linalg.eigvalsh(middle)[0])


def _negative_direction(
    program: ClosedJaxpr, point: np.ndarray, hessian: Interval
) -> Report | None:
    """The eigenvector of the smallest eigenvalue, if vᵀHv < 0 can be proved."""
    middle = _middle(hessian)
    if middle is None:
        return None
    values, vectors = np.linalg.eigh(middle)
    if values[0] >= 0.0:
        return None
    direction = vectors[:, 0]
    bound = float(_along(program, point, point, direction[None], set()).hi[0])
    if not bound < 0.0:
        return None
    reason = f"vᵀHv ≤ {bound:.6g} < 0 along `direction`, by interval arithmetic"
    return Report(
        "refuted",
        point,
        reason,
        "interval",
        curvature=bound,
        direction=direction,
        strict=False,
    )


def _least_eigenvalue(hessian: Interval) -> float:
    """A lower bound of the eigenvalues over all matrices enclosed; −∞ if none.

    Gershgorin's discs of QᵀHQ, with Q the approximate eigenvectors of the middle: if
    those are positive, Q has full rank and H is positive definite (Rump 2010). The
    bound for H itself divides by ‖QᵀQ‖, which is 1 to rounding.
    """
    middle = _middle(hessian)
    if middle is None:
        return -np.inf
    Q = Interval.lift(np.linalg.eigh(middle)[1])
    transposed = Q.map(lambda x: x.transpose(0, 2, 1))
    with np.errstate(all="ignore"):
        rotated = transposed @ hessian.map(lambda x: x[None]) @ Q
        gram = transposed @ Q
    size = np.maximum(np.abs(rotated.lo), np.abs(rotated.hi))[0]
    others = size.sum(1) - np.diag(size)
    slack = (len(size) + 4) * np.finfo(float).eps * size.sum(1)
    bound = float(np.min(np.diag(rotated.lo[0]) - others - slack))
    largest = np.max(np.maximum(np.abs(gram.lo), np.abs(gram.hi))[0].sum(1))
    return float(np.nextafter(bound / (largest * (1 + 1e-12)), -np.inf))

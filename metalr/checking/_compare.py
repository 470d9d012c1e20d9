"""One check: every way to the hypergradient is tried, then judged."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._types import Hyper, Objective
from ..hypergrad import Engine
from ..runs.unrolled import Unrolled
from ._closed import closed_form
from ._differences import Slope, ladder
from ._directions import (
    Direction,
    along_product,
    differences,
    directions,
    inner_gradient,
)
from ._engines import in_float64, is_exact, measure
from ._rows import Row, deviation, finite
from ._verdict import Check, conclude, nothing_finite

_CONCLUSIVE = 1e-2
"""Relative error above which differences tell nothing."""

_FLOOR = 100.0
"""Roundings of the value that any derivative may be off by, absolutely."""


class Comparison:
    """One check: what is compared, and how closely."""

    def __init__(
        self,
        objective: Objective,
        hyper: Hyper,
        dtype: np.dtype,
        rtol: float,
        *,
        limit: float,
        key: Array,
    ) -> None:
        self.objective, self.hyper, self.dtype = objective, hyper, dtype
        self.rtol, self.limit, self.key = rtol, limit, key
        self.x64 = bool(jax.config.read("jax_enable_x64"))
        self.low = self.x64 and dtype != np.dtype("float64")
        self.precise = in_float64(objective, hyper) if self.x64 else (objective, hyper)

    def run(self, engines: list[Engine], random_directions: int) -> Check:
        rows = [
            measure(self.objective, self.hyper, engine, self.limit)
            for engine in engines
        ]
        along = directions(self.hyper, self.key, random_directions)
        slopes = differences(*self.precise, along)
        closed = closed_form(self.objective, self.hyper)
        higher = self._in_float64(engines, rows) if self.low else None
        reference = self._reference(rows, higher, closed, along, slopes)
        if reference is None:
            return nothing_finite(tuple(rows))
        grad = rows[reference].grad if isinstance(reference, int) else reference.grad
        floor, fine = self._floor(self.dtype), self._floor(self._precise_dtype())
        judged = [
            self._judged(row, engine, grad, floor, i == reference)
            for i, (row, engine) in enumerate(zip(rows, engines, strict=True))
        ]
        if higher is not None:
            judged.append(self._other(higher, grad, fine, higher is reference))
        if closed is not None:
            row = Row("closed form", grad=closed.grad, reason=closed.how)
            judged.append(row._replace(status="reference", difference=0.0))
        judged.append(self._differences_row(grad, along, slopes, fine))
        if judged[-1].status == "inconclusive":
            judged = [self._own_run(row, judged) for row in judged]
        if isinstance(self.objective, Unrolled) and self.objective.steps > 0:
            judged.append(self._inner_row())
        return conclude(grad, tuple(judged), self.dtype, self.low)

    def _own_run(self, row: Row, rows: list[Row]) -> Row:
        """Not wrong, but of another run: rounding took it to another value."""
        values = [
            r.value for r in rows if r.status == "reference" and r.value is not None
        ]
        if row.status != "differs" or row.value is None or not values:
            return row
        value = values[0]
        apart = abs(row.value - value) > self.rtol * max(abs(value), abs(row.value))
        reason = f"its run ends at {row.value:.6g}, the reference's at {value:.6g}"
        return row._replace(status="rounding", reason=reason) if apart else row

    def _precise_dtype(self) -> np.dtype:
        """Of the differences, which are taken in float64 where JAX has it."""
        return np.dtype(jax.eval_shape(*self.precise).dtype)

    def _floor(self, dtype: np.dtype) -> Hyper:
        value = abs(float(self.objective(self.hyper)))
        eps = float(np.finfo(dtype).eps)

        def least(leaf: Array) -> float:
            size = float(jnp.max(jnp.abs(leaf))) or 1.0
            return _FLOOR * eps * (value if math.isfinite(value) else 0.0) / size

        return jax.tree.map(least, self.hyper)

    def _in_float64(self, engines: list[Engine], rows: list[Row]) -> Row | None:
        usable = [
            e
            for e, r in zip(engines, rows, strict=True)
            if not r.reason and is_exact(e, r)
        ]
        if not usable:
            return None
        row = measure(*self.precise, usable[0], self.limit)
        return row._replace(name=f"{row.name} in float64")

    def _reference(
        self, rows: list[Row], higher: Row | None, closed: Any, along: Any, slopes: Any
    ) -> Any:
        """The closed form, else a row that differences confirm, else any finite one."""
        if closed is not None:
            return closed
        ranked: list[tuple[Any, Hyper]] = []
        if higher is not None and finite(higher.grad):
            ranked.append((higher, higher.grad))
        ranked += [
            (i, row.grad)
            for i, row in enumerate(rows)
            if row.status == "agrees" and finite(row.grad)
        ]
        for candidate, grad in ranked:
            if _worst(grad, along, slopes, self.rtol)[0] <= 1.0:
                return candidate
        return ranked[0][0] if ranked else None

    def _judged(
        self, row: Row, engine: Engine, grad: Hyper, floor: Hyper, chosen: bool
    ) -> Row:
        if row.grad is None:
            return row
        row = self._other(row, grad, floor, chosen)
        if row.status != "differs" or not self.low:
            return row
        precise = measure(*self.precise, engine, self.limit)
        if precise.grad is None or not finite(precise.grad):
            return row
        again = self._other(precise, grad, floor, chosen=False)
        reason = f"in float64 it agrees: {self.dtype} limits the agreement"
        agrees = again.status == "agrees"
        return row._replace(status="rounding", reason=reason) if agrees else row

    def _other(self, row: Row, grad: Hyper, floor: Hyper, chosen: bool) -> Row:
        if row.grad is None:
            return row
        found = deviation(row.grad, grad, rtol=self.rtol, floor=floor)
        row = row._replace(**found._asdict())
        if not finite(row.grad):
            return row._replace(status="not finite")
        if row.status == "biased":
            return row._replace(tolerance=None)
        if chosen:
            return row._replace(status="reference")
        return row._replace(status="agrees" if found.within else "differs")

    def _differences_row(
        self, grad: Hyper, along: list[Direction], slopes: list[Slope], floor: Hyper
    ) -> Row:
        ratio, worst = _worst(grad, along, slopes, self.rtol)
        slope, direction = slopes[worst], along[worst]
        product = along_product(grad, direction.tangent)
        least = along_product(floor, jax.tree.map(np.abs, direction.tangent))
        size = max(abs(product), abs(slope.value), least)
        reason = _settings(self._precise_dtype(), along)
        size = size or 1.0
        difference = abs(slope.value - product) / size
        tolerance = self.rtol + (slope.error + least) / size
        row = Row(
            "finite differences",
            grad=_by_coordinate(slopes, along, self.hyper),
            difference=difference,
            tolerance=tolerance,
            leaf=direction.name,
            reason=reason,
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

    def _inner_row(self) -> Row:
        objective, hyper = self.precise
        assert isinstance(objective, Unrolled)
        product, slope = inner_gradient(objective, hyper, self.key)
        size = max(abs(product), abs(slope.value)) or 1.0
        difference = abs(product - slope.value) / size
        tolerance = self.rtol + slope.error / size
        row = Row(
            "inner gradient",
            difference=difference,
            tolerance=tolerance,
            leaf="params",
            reason="of step 0, against finite differences of the inner loss",
        )
        if not _is_conclusive(slope, 0.0):
            return row
        agrees = difference <= tolerance
        return row._replace(status="agrees" if agrees else "differs")


def _settings(dtype: np.dtype, along: list[Direction]) -> str:
    steps = ladder(dtype)
    what = "number" if along[0].place is not None else "direction"
    several = "s" if len(along) > 1 else ""
    return (
        f"central, in {dtype}, {steps.size} steps of {steps[0]:.3g} to {steps[-1]:.1g} "
        f"of each number, extrapolated; {len(along)} {what}{several}"
    )


def _is_conclusive(slope: Slope, least: float) -> bool:
    return not slope.kink and slope.error <= _CONCLUSIVE * abs(slope.value) + least


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

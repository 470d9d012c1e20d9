"""What a diagnosis comes to: each finding with what to do about it."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from .._programs.limits import epsilon
from ._rough import RADII

_GROWN = math.log(1e3)
"""A perturbation that grew a thousandfold along the run counts as an explosion."""

_BEYOND = 0.1
"""Share of steps beyond the edge that counts."""

_CANCELS = 1e4
"""Sum of the contributions' sizes over the size of their sum that costs digits."""


_JUMPS = 0.1
"""Relative change of the derivative that a move of the start may not make."""

_PROPORTION = 5.0
"""A hundredfold move changes a smooth derivative a hundredfold, within this factor."""

_METASMOOTH = 0.5
"""A quarter of the movement turns back."""

_SMOOTHER = (
    "Smooth activations (softplus, gelu, tanh) and average for max pooling, a lower "
    "rate or a shorter horizon; or an evolution-strategies engine, which smooths."
)


class Finding(NamedTuple):
    """One thing that limits the hypergradient, and the remedy."""

    kind: str
    step: int | None  # where it shows first, if there is such a step
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}. {self.remedy}"


def findings(d: Any, dtype: np.dtype) -> tuple[Finding, ...]:
    """All that apply to a `Diagnosis`, the worst first.

    Args:
        d: the diagnosis.
        dtype: that limits the value.
    """
    rules = (
        _not_finite,
        _explosion,
        _kinks,
        _rough,
        _edge,
        _cancellation,
        _disagreement,
        _vanished,
        _short_memory,
        _burn_in,
    )
    found = [rule(d, epsilon(dtype)) for rule in rules]
    return tuple(finding for finding in found if finding is not None)


def _not_finite(d: Any, eps: float) -> Finding | None:
    del eps
    first = {k: v for k, v in d.first_not_finite.items() if v is not None}
    if not first:
        return None
    what = min(first, key=lambda name: first[name])
    step = first[what]
    cause = (
        "The run itself diverges: a smaller rate, a schedule, or clipping of the inner "
        f"gradient; or a horizon below {step}."
        if what != "tangent"
        else f"The run is finite but its derivative is not: a horizon below {step}, "
        "another dtype, or metalr.guard(optimizer) if the value is nan at once."
    )
    listed = ", ".join(f"{name} from step {at}" for name, at in first.items())
    return Finding("not finite", step, f"not finite: {listed}", cause)


def _explosion(d: Any, eps: float) -> Finding | None:
    steps = d.growth.size
    late, whole = d.lyapunov * steps, float(np.sum(d.growth))
    jumped = any(relative > _JUMPS for _, relative, _ in _moves(d))
    if not (late > _GROWN or (whole > _GROWN and jumped)):
        return None
    message = (
        f"a perturbation grows by {d.lyapunov:.3g} (in log) a step, the hypergradient "
        f"by {d.hypergradient_rate:.3g}: over {steps} steps by a factor e^"
        f"{max(late, whole):.0f}"
    )
    digits = -math.log(eps) / (max(late, whole) / steps)
    remedy = (
        f"Shorten the horizon (after about {max(1, round(digits))} steps no digit of "
        "the start is left), lower the rate, or do not use the exact derivative: "
        "metalr.Truncated(last=...), or an evolution-strategies engine, which smooths."
    )
    return Finding("explosion", None, message, remedy)


def _kinks(d: Any, eps: float) -> Finding | None:
    """The derivative jumps where the start is moved, not in proportion to the move."""
    whole = float(np.sum(d.growth))
    moves = _moves(d)
    if whole > _GROWN or len(moves) < len(RADII):
        return None
    changes = [0.0, *(change for *_, change in moves), math.inf]
    for i, (radius, relative, change) in enumerate(moves):
        before, after = changes[i], changes[i + 2]
        smooth = (
            change <= _PROPORTION * 100.0 * before or i == 0
        ) and _PROPORTION * after >= 100.0 * change
        if relative <= _JUMPS or change <= 100.0 * eps * d.scale or smooth:
            continue
        message = (
            f"moving the start by {radius:g} of its size changes the derivative by "
            f"{100 * relative:.0f} %, not in proportion to the move, while "
            f"perturbations grow by e^{whole:.2g}: the run has kinks, and its "
            "derivative is that of one of very many pieces"
        )
        return Finding("kinks", None, message, _SMOOTHER)
    return None


def _moves(d: Any) -> list[tuple[float, float, float]]:
    """Radius of a moved start, relative and absolute change of the derivative."""
    changes = np.abs(d.moved_totals - d.total)
    sizes = np.maximum(np.abs(d.moved_totals), abs(d.total))
    return [
        (radius, float(change / size), float(change))
        for radius, change, size in zip(RADII, changes, sizes, strict=True)
        if math.isfinite(change) and size > 0.0
    ]


def _rough(d: Any, eps: float) -> Finding | None:
    """Several hyperparameters, and a coarse look that sees noise."""
    del eps
    count = sum(np.size(leaf) for leaf in jax.tree.leaves(d.direction))
    if count < 2 or not d.metasmoothness < _METASMOOTH:
        return None
    message = (
        f"metasmoothness {d.metasmoothness:.2f} (1 is smooth): over 5 % of each "
        "hyperparameter the final weights turn back about as often as they go on"
    )
    return Finding("not metasmooth", None, message, _SMOOTHER)


def _edge(d: Any, eps: float) -> Finding | None:
    del eps
    beyond = d.sharpness > d.edge * (1.0 + 1e-6)
    if np.mean(beyond) <= _BEYOND:
        return None
    first = int(np.argmax(beyond))
    message = (
        f"the sharpness is beyond the optimizer's edge of stability in "
        f"{100 * np.mean(beyond):.0f} % of the steps, first at step {first} "
        f"({d.sharpness[first]:.4g} > {d.edge[first]:.4g}, {d.metric})"
    )
    factor = float(np.nanmin(d.edge / d.sharpness))
    remedy = f"Multiply the rate by less than {factor:.3g}, or warm it up."
    return Finding("beyond the edge", first, message, remedy)


def _cancellation(d: Any, eps: float) -> Finding | None:
    size = float(np.sum(np.abs(d.contributions)))
    total = abs(d.total)
    if not (math.isfinite(size) and math.isfinite(total)) or size <= _CANCELS * total:
        return None
    lost = size * eps / total if total else math.inf
    message = (
        f"the steps' contributions cancel: together {size:.3g} in size, their sum "
        f"{total:.3g}; rounding alone makes a relative error of about {lost:.1g}"
    )
    remedy = "Use float64, or a shorter horizon; near an optimum this is as it must be."
    return Finding("cancellation", None, message, remedy)


def _disagreement(d: Any, eps: float) -> Finding | None:
    """Forward and reverse computed the same total."""
    reverse = d.start + d.direct + float(np.sum(d.contributions))
    size = abs(d.start) + abs(d.direct) + float(np.sum(np.abs(d.contributions)))
    error = abs(reverse - d.total)
    if not math.isfinite(error) or error <= math.sqrt(eps) * size:
        return None
    message = f"forward mode gives {d.total:.6g}, the reverse sweep {reverse:.6g}"
    remedy = (
        "The run's own pull_back, or a derivative rule with a transpose of its own, is "
        "wrong: see metalr.check_hypergrad."
    )
    return Finding("modes disagree", None, message, remedy)


def _vanished(d: Any, eps: float) -> Finding | None:
    if d.total != 0.0:
        return None
    del eps
    return Finding(
        "vanished",
        None,
        "the derivative along the direction is exactly 0",
        "Is the start already optimal, or every unit dead? Nothing is learned here.",
    )


def _short_memory(d: Any, eps: float) -> Finding | None:
    del eps
    steps, last = d.growth.size, d.horizon_99
    if last is None or last == 0 or 2 * last > steps:
        return None
    message = f"the last {last} of {steps} steps make 99 % of the hypergradient"
    remedy = f"metalr.Truncated(last={last}) costs less and is within 1 % of it."
    return Finding("short memory", steps - last, message, remedy)


def _burn_in(d: Any, eps: float) -> Finding | None:
    slopes = np.abs(d.slopes)
    if not np.all(np.isfinite(slopes)) or slopes.max() == 0.0 or d.lyapunov > 0.0:
        return None
    steps, peak = d.growth.size, d.slope_peak
    if peak == steps and slopes[-1] > math.sqrt(eps) * slopes.max():
        message = f"|dL_s/dη| still grows at the last step, s = {steps}"
        remedy = (
            "The horizon ends inside the burn-in, where a longer unroll gives a larger "
            "derivative, not a better one: go far past it, or stay far below."
        )
        return Finding("burn-in", steps, message, remedy)
    if peak in (0, steps) or slopes[-1] > 0.5 * slopes[peak]:
        return None
    message = (
        f"|dL_s/dη| grows until step {peak} ({slopes[peak]:.3g}) before it falls "
        f"({slopes[-1]:.3g} at step {steps}): the burn-in of unrolled derivatives"
    )
    remedy = (
        f"Horizons near {peak} have the largest derivatives: warm-start the inner run, "
        "or take a horizon several times as long; a smaller rate lengthens the burn-in."
    )
    return Finding("burn-in", peak, message, remedy)

"""The verdict on the inner gradients of a run.

The worst of many steps may look wrong by chance: many kinks lie between the steps of
the differences, above all in float32. So what looks wrong is looked at again, along
further directions: chance does not repeat itself, a wrong derivative rule does.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array

from .._programs.limits import epsilon
from ..runs.unrolled import Unrolled
from ._causes import loss_rules
from ._differences import CONCLUSIVE, FLOOR
from ._inner import InnerSlopes, inner_slopes, seen_again
from ._precision import Precise, has_x64
from ._rows import Row

_SUSPECTS = 4
"""Steps that are looked at again, where several look wrong; the worst first."""

_FEWEST = 4
"""Directions that must tell, for a step to be called wrong."""


class Judged(NamedTuple):
    """Inner gradients beside differences, at some steps or along some directions."""

    size: np.ndarray
    error: np.ndarray
    allowed: np.ndarray
    told: np.ndarray  # where differences are certain enough
    ratio: np.ndarray  # of the error to what is allowed; 0 where nothing is told

    @property
    def repeats(self) -> bool | None:
        """Whether most directions that tell say it is wrong; None where few tell."""
        if self.told.sum() < _FEWEST:
            return None
        return bool(np.mean(self.ratio[self.told] > 1.0) > 0.5)


def inner_row(precise: Precise, rtol: float, key: Array) -> list[Row]:
    """The inner gradient of each step against differences of its loss: the worst.

    Empty for a run that has no inner loss.
    """
    objective, hyper, dtype = precise
    if not isinstance(objective, Unrolled) or objective.steps == 0:
        return []
    seen = inner_slopes(precise, key)
    judged = _judged(seen, rtol, dtype)
    ratio, told = judged.ratio, judged.told
    suspects = [i for i in np.argsort(-ratio)[:_SUSPECTS] if ratio[i] > 1.0]
    of = share_of(seen.steps.size, objective.steps)
    row = Row(
        "inner gradient",
        reason=(
            f"of {of} {objective.steps} steps, each on its batch, against finite "
            f"differences of the inner loss; {int(told.sum())} of them conclusive"
        ),
        role="inner gradient",
    )
    if suspects and loss_rules(objective, hyper) == ("stop_gradient",):
        reason = f"the loss stops a gradient, as it says; {row.reason}"
        return [_at(row, seen, judged, suspects[0])._replace(reason=reason)]
    few = not told.any()
    for place in suspects:
        again = seen_again(precise, key, int(seen.steps[place]))
        repeats = _judged(again, rtol, dtype).repeats
        if repeats:
            return [_at(row, seen, judged, place)._replace(status="differs")]
        few |= repeats is None
    calm = int(np.argmax(np.where(ratio > 1.0, 0.0, ratio)))
    row = _at(row, seen, judged, suspects[0] if few and suspects else calm)
    if not few:
        return [row._replace(status="agrees")]
    wider = "" if has_x64() else ": set jax_enable_x64 to tell"
    return [row._replace(reason=f"undecided in {dtype}{wider}; {row.reason}")]


def share_of(count: int, steps: int) -> str:
    """How many of the steps were looked at, before their number."""
    return "all" if count == steps else f"{count} of the"


def _judged(seen: InnerSlopes, rtol: float, dtype: np.dtype) -> Judged:
    found = seen.slopes
    least = FLOOR * epsilon(dtype) * np.abs(seen.losses)
    size = np.maximum(np.abs(seen.products), np.abs(found.value))
    with np.errstate(all="ignore"):
        allowed = rtol * size + found.error + least
        error = np.abs(seen.products - found.value)
        told = ~found.kink & (found.error <= CONCLUSIVE * np.abs(found.value) + least)
        told &= np.isfinite(seen.products)
        ratio = np.where(told & (allowed > 0.0), error / allowed, 0.0)
    return Judged(size, error, allowed, told, ratio)


def _at(row: Row, seen: InnerSlopes, judged: Judged, place: int) -> Row:
    """With the numbers of one step."""
    scale = float(judged.size[place]) or 1.0
    return row._replace(
        difference=float(judged.error[place]) / scale,
        tolerance=float(judged.allowed[place]) / scale,
        leaf=f"params at step {seen.steps[place]}",
    )

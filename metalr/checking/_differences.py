r"""Central differences with an error estimate, by Richardson's extrapolation.

A ladder of steps $h_k = h_0 4^{-k}$; Neville's scheme removes the even powers of h one
by one, and the entry of the tableau whose neighbors agree best is taken (Ridders 1982).
The error estimate is their disagreement, and the rounding of the differences; so it
tells where a derivative can't be had by differences: chaos, noise, kinks.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .._programs.limits import epsilon

_FIRST = 0.125
"""The largest step, as a part of the number that is varied."""

_FACTOR = 4.0

_SAFETY = 4.0
"""Times the estimate: the error that is claimed."""

_FEWEST = 4
"""Steps, where a coarse dtype would leave less to compare."""


CONCLUSIVE = 1e-2
"""Relative error above which differences tell nothing."""

FLOOR = 100.0
"""Roundings of the value that any derivative may be off by, absolutely."""


class Slope(NamedTuple):
    """A derivative by differences, and how far it can be trusted; numbers or arrays."""

    value: Any
    error: Any  # that of the extrapolation, and the jump
    step: Any  # of the entry that was taken
    jump: Any  # difference of the one-sided derivatives
    kink: Any  # the jump is not rounding: there is no derivative

    def at(self, index: int) -> "Slope":
        """One of several, in Python numbers."""
        return Slope(*(field[index].item() for field in self))


def ladder(dtype: np.dtype) -> np.ndarray:
    """Steps relative to the scale, from 1/8 down to the square root of eps."""
    smallest = math.sqrt(epsilon(dtype))
    count = 1 + math.floor(math.log(_FIRST / smallest, _FACTOR))
    return _FIRST * _FACTOR ** -np.arange(max(count, _FEWEST))


def shifts(dtype: np.dtype) -> np.ndarray:
    """Where `slopes` wants the values: 0, the ladder, and minus the ladder."""
    steps = ladder(dtype)
    return np.concatenate([[0.0], steps, -steps])


def slopes(values: np.ndarray, dtype: np.dtype) -> Slope:
    """Derivatives at 0 of functions of a number.

    Args:
        values: (number of `shifts`, n), of n functions at the shifts.
        dtype: that they compute in.
    """
    steps = ladder(dtype)
    eps = epsilon(dtype)
    values = np.asarray(values, np.float64)
    middle, up, down = values[0], values[1 : steps.size + 1], values[steps.size + 1 :]
    h = steps[:, None]
    with np.errstate(all="ignore"):
        central = (up - down) / (2.0 * h)
        size = np.maximum(np.maximum(np.abs(up), np.abs(down)), np.abs(middle))
        rounding = eps * size / h
        bend = (up - 2.0 * middle + down) / h
        value, error, step = _extrapolated(central, bend, rounding, steps)
        jump, jump_error, kink = _jump(bend, rounding)
        kink &= (jump > 40.0 * jump_error) & (jump > eps**0.25 * np.abs(value))
        return Slope(value, _SAFETY * error + jump, step, jump, kink)


def differentiate(
    function: Callable[[np.ndarray], np.ndarray], scale: float, dtype: np.dtype
) -> Slope:
    """Derivative at 0 of a function of a number, evaluated at many at once.

    Args:
        function: from an array of shifts to the values there.
        scale: the size of what is shifted.
        dtype: that the function computes in.
    """
    values = np.asarray(function(scale * shifts(dtype)), np.float64)
    found = slopes(values[:, None], dtype).at(0)
    return Slope(
        found.value / scale,
        found.error / scale,
        found.step * scale,
        found.jump / scale,
        found.kink,
    )


def _extrapolated(
    central: np.ndarray, bend: np.ndarray, rounding: np.ndarray, steps: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The entry of Neville's tableau with the least error estimate.

    Of many kinks between the steps two entries may agree by chance. So the estimate
    counts what is left of the bends f(x+h) − 2f(x) + f(x−h) over h, extrapolated from
    the same steps: they have the odd powers of h, and go to 0 where f is smooth.
    """
    value, step = np.full((2, central.shape[1]), np.nan)
    least = np.full(central.shape[1], np.inf)
    column, bends = central, bend
    for order in range(1, len(central)):
        following = _without(column, 2 * order)
        bends = _without(bends, 2 * order - 1)
        for k, entry in enumerate(following):
            error = np.maximum(np.abs(entry - column[k]), np.abs(entry - column[k + 1]))
            error = error + np.abs(bends[k]) + rounding[k + order]
            better = error < least  # nan is not
            value = np.where(better, entry, value)
            least = np.where(better, error, least)
            step = np.where(better, steps[k + order], step)
        column = following
    return value, least, step


def _without(column: np.ndarray, power: int) -> np.ndarray:
    """One step of Richardson's extrapolation: that power of h is removed."""
    factor = _FACTOR**power
    return (factor * column[1:] - column[:-1]) / (factor - 1.0)


def _jump(
    bend: np.ndarray, rounding: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The limit of (f(x+h) − 2f(x) + f(x−h))/h, 0 where f is smooth, and its rounding.

    Last, whether most steps give the same one, as at a kink and not in chaos.
    """
    limits = np.abs(_without(bend, 1))
    errors = 4.0 * rounding[1:]
    usable = np.isfinite(limits)
    least = np.argmin(np.where(usable, np.maximum(limits, errors), np.inf), axis=0)
    pick = lambda x: np.take_along_axis(x, least[None], axis=0)[0]
    jump = np.where(usable.any(axis=0), pick(limits), np.nan)
    error = np.where(usable.any(axis=0), pick(errors), np.inf)
    same = usable & (np.abs(limits - jump) <= 0.1 * jump)
    return jump, error, same.sum(axis=0) >= 0.5 * np.maximum(usable.sum(axis=0), 1)

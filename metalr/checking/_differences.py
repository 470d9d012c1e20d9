r"""Central differences with an error estimate, by Richardson's extrapolation.

A ladder of steps $h_k = h_0 4^{-k}$; Neville's scheme removes the even powers of h one
by one, and the entry of the tableau whose neighbors agree best is taken (Ridders 1982).
The error estimate is their disagreement, and the rounding of the differences; so it
tells where a derivative can't be had by differences: chaos, noise, kinks.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

_FIRST = 0.125
"""The largest step, as a part of the number that is varied."""

_FACTOR = 4.0

_SAFETY = 4.0
"""Times the estimate: the error that is claimed."""


class Slope(NamedTuple):
    """A derivative by differences, and how far it can be trusted."""

    value: float
    error: float  # that of the extrapolation, and the jump
    step: float  # of the entry that was taken
    jump: float  # difference of the one-sided derivatives
    kink: bool  # the jump is not rounding: there is no derivative


def ladder(dtype: np.dtype) -> np.ndarray:
    """Steps relative to the scale, from 1/8 down to the square root of eps."""
    smallest = math.sqrt(float(np.finfo(dtype).eps))
    count = 1 + math.floor(math.log(_FIRST / smallest, _FACTOR))
    return _FIRST * _FACTOR ** -np.arange(count)


def slope(
    middle: float,
    up: Sequence[float] | np.ndarray,
    down: Sequence[float] | np.ndarray,
    steps: np.ndarray,
    eps: float,
) -> Slope:
    """From f(x), and f(x ± h) for each step."""
    up, down = np.asarray(up, np.float64), np.asarray(down, np.float64)
    with np.errstate(all="ignore"):
        central = (up - down) / (2.0 * steps)
        size = np.maximum(np.abs(up), np.abs(down))
        rounding = eps * np.maximum(size, abs(middle)) / steps
        value, error, step = _extrapolated(central, rounding, steps)
        jump, jump_error, kink = _jump(middle, up, down, steps, rounding)
    kink &= jump > 40.0 * jump_error and jump > eps**0.25 * abs(value)
    return Slope(value, _SAFETY * error + jump, step, jump, kink)


def _extrapolated(
    central: np.ndarray, rounding: np.ndarray, steps: np.ndarray
) -> tuple[float, float, float]:
    """The entry of Neville's tableau with the least error estimate."""
    best = (math.nan, math.inf, math.nan)
    column = central
    for order in range(1, central.size):
        power = _FACTOR ** (2 * order)
        following = (power * column[1:] - column[:-1]) / (power - 1.0)
        for k, entry in enumerate(following):
            error = max(abs(entry - column[k]), abs(entry - column[k + 1]))
            error += rounding[k + order]
            if math.isfinite(error) and error < best[1]:
                best = (float(entry), float(error), float(steps[k + order]))
        column = following
    return best


def _jump(
    middle: float,
    up: np.ndarray,
    down: np.ndarray,
    steps: np.ndarray,
    rounding: np.ndarray,
) -> tuple[float, float, bool]:
    """The limit of (f(x+h) − 2f(x) + f(x−h))/h, 0 where f is smooth, and its rounding.

    Last, whether most steps give the same one, as at a kink and not in chaos.
    """
    bends = (up - 2.0 * middle + down) / steps
    limits = np.abs(_FACTOR * bends[1:] - bends[:-1]) / (_FACTOR - 1.0)
    errors = 4.0 * rounding[1:]
    usable = np.flatnonzero(np.isfinite(limits))
    if usable.size == 0:
        return math.nan, math.inf, False
    least = usable[np.argmin(np.maximum(limits, errors)[usable])]
    jump = float(limits[least])
    same = np.abs(limits[usable] - jump) <= 0.1 * jump
    return jump, float(errors[least]), bool(np.mean(same) >= 0.5)


def differentiate(
    function: Callable[[np.ndarray], np.ndarray], scale: float, dtype: np.dtype
) -> Slope:
    """Derivative at 0 of a function of a number, evaluated at many at once.

    Args:
        function: from an array of shifts to the values there.
        scale: the size of what is shifted.
        dtype: that the function computes in.
    """
    steps = scale * ladder(dtype)
    values = function(np.concatenate([[0.0], steps, -steps]))
    count = steps.size
    eps = float(np.finfo(dtype).eps)
    return slope(
        float(values[0]), values[1 : count + 1], values[count + 1 :], steps, eps
    )

"""Arrays of intervals that contain the exact real result of every operation.

Outward rounding. IEEE gives the nearest float for +, −, ·, /, √, so one `nextafter`
on either side encloses the exact result. Elementary functions are not correctly
rounded: numpy's (its own vectorized loops, or the C library's) are accurate to about
one unit in the last place and tested upstream to a few; each is widened by
`_LIBM_ULPS` units. Sums and matrix products are widened by the a-priori bound
`|fl(Σ aᵢbᵢ) − Σ aᵢbᵢ| ≤ γₙ Σ|aᵢbᵢ| + n·tiny`, which holds for every order of summation,
with or without fused operations (Higham 2002, section 3.1; gradual underflow assumed).
Whatever gives nan (∞ − ∞, 0·∞, a function outside its domain) becomes the whole line.

Sources: Moore (1966), Interval Analysis; Rump (1999), Fast and parallel interval
arithmetic, for the product in midpoint-radius form.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

_EPS = float(np.finfo(np.float64).eps)
_TINY = 5e-324
_LIBM_ULPS = 8
"""Widening of exp, log, tanh, …: several times the worst error reported for numpy's."""


@dataclasses.dataclass(frozen=True, eq=False)
class Interval:
    """Every real between `lo` and `hi`, elementwise; the leading axis is over boxes."""

    lo: np.ndarray
    hi: np.ndarray  # the same object as `lo` where the value is known exactly

    @classmethod
    def lift(cls, values: np.ndarray) -> "Interval":
        """Exactly known floats, with a boxes axis of length 1."""
        array = np.asarray(values, np.float64)[None]
        return cls(array, array)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape with the boxes axis."""
        return self.lo.shape

    @property
    def thin(self) -> bool:
        """Known exactly."""
        return self.lo is self.hi

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> "Interval":
        """A movement of entries (reshape, transpose, indexing) on both ends."""
        lo = function(self.lo)
        return Interval(lo, lo if self.thin else function(self.hi))

    def __neg__(self) -> "Interval":
        lo = -self.hi
        return Interval(lo, lo if self.thin else -self.lo)

    def __add__(self, other: "Interval") -> "Interval":
        return _outward(self.lo + other.lo, self.hi + other.hi)

    def __sub__(self, other: "Interval") -> "Interval":
        return _outward(self.lo - other.hi, self.hi - other.lo)

    def __mul__(self, other: "Interval") -> "Interval":
        if self.thin and other.thin:
            product = self.lo * other.lo
            return _outward(product, product)
        if other.thin:
            self, other = other, self  # noqa: PLW0642 (the product commutes)
        ends = [self.lo * other.lo, self.lo * other.hi]
        if not self.thin:
            ends += [self.hi * other.lo, self.hi * other.hi]
        # minimum and maximum propagate nan, which `_outward` makes the whole line.
        low, high = ends[0], ends[0]
        for end in ends[1:]:
            low, high = np.minimum(low, end), np.maximum(high, end)
        return _outward(low, high)

    def __truediv__(self, other: "Interval") -> "Interval":
        return self * other.reciprocal()

    def reciprocal(self) -> "Interval":
        """1/x; the whole line where 0 is inside."""
        one = _outward(1.0 / self.hi, 1.0 / self.lo)
        return one.where((self.lo > 0.0) | (self.hi < 0.0))

    def square(self) -> "Interval":
        """x², never negative."""
        low, high = self.lo * self.lo, self.hi * self.hi
        inside = (self.lo <= 0.0) & (self.hi >= 0.0)
        result = _outward(
            np.where(inside, 0.0, np.minimum(low, high)), np.maximum(low, high)
        )
        return Interval(np.maximum(result.lo, 0.0), result.hi)

    def scale(self, factor: float | int) -> "Interval":
        """Times one exactly known float."""
        return self * Interval.lift(np.full((1,) * (self.lo.ndim - 1), factor))

    def over(self, divisor: int) -> "Interval":
        """Divided by a positive integer."""
        return _outward(self.lo / divisor, self.hi / divisor)

    def total(self, axes: tuple[int, ...]) -> "Interval":
        """Sum over axes (of the array with its boxes axis)."""
        count = int(np.prod([self.lo.shape[axis] for axis in axes]))
        low, high = self.lo.sum(axes), self.hi.sum(axes)
        relative = (count + 2) * _EPS
        return _outward(
            low - relative * np.abs(self.lo).sum(axes),
            high + relative * np.abs(self.hi).sum(axes),
        )

    def __matmul__(self, other: "Interval") -> "Interval":
        count = self.shape[-1]
        (mid_a, rad_a), (mid_b, rad_b) = self._centered(), other._centered()
        size_a, size_b = np.abs(mid_a), np.abs(mid_b)
        relative = (2 * count + 8) * _EPS
        radius = relative * (size_a @ size_b) + (count + 1) * _TINY
        if rad_b is not None:
            radius = radius + size_a @ rad_b
            size_b = size_b + rad_b
        if rad_a is not None:
            radius = radius + rad_a @ size_b
        radius = radius * (1.0 + relative)
        middle = mid_a @ mid_b
        return _outward(middle - radius, middle + radius)

    def _centered(self) -> tuple[np.ndarray, np.ndarray | None]:
        if self.thin:
            return self.lo, None
        middle = 0.5 * self.lo + 0.5 * self.hi
        radius = np.maximum(self.hi - middle, middle - self.lo)
        return middle, np.nextafter(radius, np.inf)

    def intersect(self, other: "Interval") -> "Interval":
        """What both allow. They enclose the same number, so it is never empty."""
        return Interval(np.maximum(self.lo, other.lo), np.minimum(self.hi, other.hi))

    def clip(self, low: float, high: float) -> "Interval":
        """Intersect with a range that is known to hold."""
        return Interval(np.clip(self.lo, low, high), np.clip(self.hi, low, high))

    def where(self, valid: np.ndarray) -> "Interval":
        """The whole line where not `valid`."""
        low = np.where(valid, self.lo, -np.inf)
        return Interval(low, np.where(valid, self.hi, np.inf))


def whole_line(shape: tuple[int, ...]) -> Interval:
    """Nothing is known."""
    return Interval(np.full(shape, -np.inf), np.full(shape, np.inf))


def exp(x: Interval) -> Interval:
    """Increasing, positive."""
    return Interval(*_libm(np.exp, x)).clip(0.0, np.inf)


def expm1(x: Interval) -> Interval:
    """Increasing, above −1."""
    return Interval(*_libm(np.expm1, x)).clip(-1.0, np.inf)


def log(x: Interval) -> Interval:
    """Increasing; the whole line where x may be ≤ 0."""
    return Interval(*_libm(np.log, x)).where(x.lo > 0.0)


def log1p(x: Interval) -> Interval:
    """Increasing; the whole line where x may be ≤ −1."""
    return Interval(*_libm(np.log1p, x)).where(x.lo > -1.0)


def sqrt(x: Interval) -> Interval:
    """Increasing; the whole line where x may be ≤ 0 (no derivative there)."""
    return _outward(np.sqrt(x.lo), np.sqrt(x.hi)).where(x.lo > 0.0)


def tanh(x: Interval) -> Interval:
    """Increasing, between −1 and 1."""
    return Interval(*_libm(np.tanh, x)).clip(-1.0, 1.0)


def logistic(x: Interval) -> Interval:
    """1/(1 + exp(−x)): increasing, between 0 and 1."""

    def at(end: np.ndarray) -> Interval:
        decay = exp(-Interval(end, end))
        return _outward(
            1.0 / np.nextafter(1.0 + decay.hi, np.inf),
            1.0 / np.nextafter(1.0 + decay.lo, -np.inf),
        )

    return Interval(at(x.lo).lo, at(x.hi).hi).clip(0.0, 1.0)


def softplus(x: Interval) -> Interval:
    """log(1 + exp(x)) = max(x, 0) + log1p(exp(−|x|)): increasing, positive."""

    def at(end: np.ndarray) -> Interval:
        positive, size = np.maximum(end, 0.0), np.abs(end)
        rest = log1p(exp(-Interval(size, size)))
        return Interval(positive, positive) + rest

    return Interval(at(x.lo).lo, at(x.hi).hi).clip(0.0, np.inf)


def sin(x: Interval) -> Interval:
    """Greatest at a quarter turn."""
    return _wave(np.sin, x, peak=0.25)


def cos(x: Interval) -> Interval:
    """Greatest at 0."""
    return _wave(np.cos, x, peak=0.0)


def sinh(x: Interval) -> Interval:
    """Increasing."""
    return Interval(*_libm(np.sinh, x))


def cosh(x: Interval) -> Interval:
    """Increasing in |x|, at least 1."""
    inside = (x.lo <= 0.0) & (x.hi >= 0.0)
    a, b = np.abs(x.lo), np.abs(x.hi)
    size = Interval(np.where(inside, 0.0, np.minimum(a, b)), np.maximum(a, b))
    return Interval(*_libm(np.cosh, size)).clip(1.0, np.inf)


def _wave(function: Any, x: Interval, peak: float) -> Interval:
    """The values at the ends; ±1 where a peak or a valley may lie between them.

    Peaks are at `peak` + n turns. Where one is as near as rounding, the end is so near
    to ±1 that nothing is lost.
    """
    low, high = function(x.lo), function(x.hi)
    wide = _LIBM_ULPS * _EPS
    ends = _outward(np.minimum(low, high) - wide, np.maximum(low, high) + wide)
    left, right = (end / (2.0 * np.pi) - peak for end in (x.lo, x.hi))
    near = 1e-9 * (1.0 + np.maximum(np.abs(left), np.abs(right)))
    peaks = np.floor(right + near) >= np.ceil(left - near)
    valleys = np.floor(right - 0.5 + near) >= np.ceil(left - 0.5 - near)
    return Interval(
        np.where(valleys, -1.0, ends.lo), np.where(peaks, 1.0, ends.hi)
    ).clip(-1.0, 1.0)


def _libm(function: Any, x: Interval) -> tuple[np.ndarray, np.ndarray]:
    """An increasing function of the C library at both ends, widened."""
    low, high = function(x.lo), function(x.hi)
    wide = _LIBM_ULPS * _EPS
    low, high = low - wide * np.abs(low), high + wide * np.abs(high)
    ends = _outward(low, high)
    return ends.lo, ends.hi


def _outward(low: np.ndarray, high: np.ndarray) -> Interval:
    low, high = np.nextafter(low, -np.inf), np.nextafter(high, np.inf)
    bad = np.isnan(low) | np.isnan(high)
    if np.any(bad):
        low, high = np.where(bad, -np.inf, low), np.where(bad, np.inf, high)
    return Interval(low, high)

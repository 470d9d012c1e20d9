"""Arrays of exact rational numbers: Python integers with one common scale.

A float is an integer times a power of two, so sums and products of data are too;
division by a constant (the mean's 1/n) goes into the scale. Integers keep numpy's
object loops fast, where an array of `Fraction`s would reduce every entry every time.
"""

import dataclasses
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np


class NotRationalError(Exception):
    """The operation leaves the rational numbers."""


@dataclasses.dataclass(frozen=True, eq=False)
class Exact:
    """`numerators · scale`; the leading axis is over boxes, as in `Interval`."""

    numerators: np.ndarray  # of Python ints
    scale: Fraction

    @classmethod
    def lift(cls, values: np.ndarray) -> "Exact":
        """The exact values of finite floats, with a boxes axis of length 1."""
        array = np.asarray(values, np.float64)[None]
        if not np.all(np.isfinite(array)):
            msg = "a constant is not finite"
            raise NotRationalError(msg)
        mantissas, exponents = np.frexp(array)
        used = exponents[mantissas != 0.0]
        if used.size == 0:
            return cls(_integers(array, lambda _: 0), Fraction(1))
        lowest = int(used.min()) - 53
        whole = _integers(mantissas, lambda m: int(m * 2.0**53))
        shifts = np.where(mantissas == 0.0, 0, exponents - 53 - lowest).astype(object)
        numerators = np.asarray(whole * 2**shifts, object).reshape(array.shape)
        common = math.gcd(*numerators.ravel().tolist())
        return cls(numerators // common, Fraction(2) ** lowest * common)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape with the boxes axis."""
        return self.numerators.shape

    @property
    def bits(self) -> int:
        """Length of the longest numerator."""
        sizes = [int(value).bit_length() for value in self.numerators.flat]
        return max(sizes, default=0)

    def fractions(self) -> list[Fraction]:
        """The entries in row-major order."""
        return [int(value) * self.scale for value in self.numerators.flat]

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> "Exact":
        """A movement of entries."""
        return Exact(_objects(function(self.numerators)), self.scale)

    def __neg__(self) -> "Exact":
        return Exact(_objects(-self.numerators), self.scale)

    def __add__(self, other: "Exact") -> "Exact":
        left, right, scale = _common(self, other)
        return Exact(_objects(left + right), scale)

    def __sub__(self, other: "Exact") -> "Exact":
        return self + (-other)

    def __mul__(self, other: "Exact") -> "Exact":
        product = _objects(self.numerators * other.numerators)
        return Exact(product, self.scale * other.scale)

    def square(self) -> "Exact":
        """x²."""
        return self * self

    def __truediv__(self, other: "Exact") -> "Exact":
        divisors = [int(value) for value in other.numerators.flat]
        if 0 in divisors:
            msg = "division by zero"
            raise NotRationalError(msg)
        multiple = math.lcm(*divisors)
        factors = _integers(other.numerators, lambda value: multiple // value)
        product = _objects(self.numerators * factors)
        return Exact(product, self.scale / (other.scale * multiple))

    def total(self, axes: tuple[int, ...]) -> "Exact":
        """Sum over axes (of the array with its boxes axis)."""
        return Exact(_objects(self.numerators.sum(axes)), self.scale)

    def __matmul__(self, other: "Exact") -> "Exact":
        product = _objects(np.matmul(self.numerators, other.numerators))
        return Exact(product, self.scale * other.scale)


def _common(a: Exact, b: Exact) -> tuple[np.ndarray, np.ndarray, Fraction]:
    if a.scale == b.scale:
        return a.numerators, b.numerators, a.scale
    (p, q), (r, s) = a.scale.as_integer_ratio(), b.scale.as_integer_ratio()
    scale = Fraction(math.gcd(p * s, r * q), q * s)
    left, right = (a.scale / scale).numerator, (b.scale / scale).numerator
    return _objects(a.numerators * left), _objects(b.numerators * right), scale


def _integers(array: np.ndarray, function: Callable) -> np.ndarray:
    result = np.empty(array.size, object)
    result[:] = [function(value) for value in array.flat]
    return result.reshape(array.shape)


def _objects(value: object) -> np.ndarray:
    """As an object array: numpy unwraps those without axes."""
    if isinstance(value, np.ndarray):
        return value
    result = np.empty((), object)
    result[()] = value
    return result

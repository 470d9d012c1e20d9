r"""Truncated power series in the hyperparameter, over intervals or exact rationals.

A series is the list of its Taylor coefficients $c_k = f^{(k)}/k!$, as short as the
program allows: the length of a product is that of its factors together. So the length
bounds the degree of a polynomial whatever the numbers are, and with no truncation the
coefficients are those of the polynomial.

Over intervals every quantity is held twice along the boxes axis: first at the boxes'
midpoints (narrow), then over the whole boxes. `tighten` joins the two by Taylor's
theorem, $c_k(\text{box}) \subset c_k(\text{mid}) + (k+1)\,c_{k+1}(\text{box})\,[-r,r]$,
which removes most of the overestimation that plain intervals suffer when a variable
occurs more than once.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np

from ._exact import Exact
from ._interval import Interval

Number = TypeVar("Number", Interval, Exact)
Series: TypeAlias = list[Any]
"""Coefficients c₀, c₁, …, all Interval or all Exact, of shapes that broadcast."""


def add(a: Series, b: Series) -> Series:
    """The sum a + b."""
    longest = a if len(a) >= len(b) else b
    both = min(len(a), len(b))
    head = [x + y for x, y in zip(a, b, strict=False)]
    return _same_shape([*head, *longest[both:]])


def negative(a: Series) -> Series:
    """−a."""
    return [-c for c in a]


def product(
    a: Series,
    b: Series,
    order: int | None,
    multiply: Callable[[Any, Any], Any] = lambda x, y: x * y,
) -> Series:
    """Coefficients of a·b up to `order` (all of them if None)."""
    length = len(a) + len(b) - 1
    length = length if order is None else min(length, order + 1)
    return [
        total(
            multiply(a[i], b[k - i])
            for i in range(max(0, k - len(b) + 1), min(k, len(a) - 1) + 1)
        )
        for k in range(length)
    ]


def square(a: Series, order: int | None) -> Series:
    """The square a², with squares where squares occur: they are known to be ≥ 0."""
    length = 2 * len(a) - 1
    length = length if order is None else min(length, order + 1)
    result = []
    for k in range(length):
        pairs = range(max(0, k - len(a) + 1), (k + 1) // 2)
        terms = [a[i] * a[k - i] for i in pairs]
        terms += terms
        if k % 2 == 0:
            terms.append(a[k // 2].square())
        result.append(total(terms))
    return result


def power(a: Series, exponent: int, order: int | None) -> Series:
    """The power of a to a positive integer power, by squaring."""
    if exponent == 1:
        return a
    half = power(a, exponent // 2, order)
    result = square(half, order)
    return result if exponent % 2 == 0 else product(result, a, order)


def quotient(a: Series, b: Series, order: int | None) -> Series:
    """The quotient a / b; by an exact constant also over the rationals."""
    if len(b) == 1:
        return [c / b[0] for c in a]
    inverse = [b[0].reciprocal()]
    for k in range(1, length_of(order)):
        inner = _convolve(b[1:], inverse, k - 1)
        inverse.append(-(inner * inverse[0]) if inner else zero(inverse[0]))
    return product(a, inverse, order)


def moved(a: Series, function: Callable[[np.ndarray], np.ndarray]) -> Series:
    """A movement of entries, coefficient by coefficient."""
    return [c.map(function) for c in a]


def tighten(a: Series, radius: np.ndarray) -> Series:
    """Taylor's theorem from the midpoints into the boxes (see above).

    A coefficient past the end of the series is 0; the last one of a truncated series
    was computed over the whole boxes, so it is as good as it gets.
    """
    half = radius.size
    if all(c.shape[0] == 1 for c in a):
        return a
    rank = len(a[0].shape)
    reach = np.reshape(radius, (half, *[1] * (rank - 1)))
    step = Interval(-reach, reach)
    result = _moved_to_boxes(a, 2 * half)
    for k in range(len(a) - 2, -1, -1):
        middle = result[k].map(lambda x: x[:half])
        over_box = result[k].map(lambda x: x[half:])
        following = result[k + 1].map(lambda x: x[half:]).scale(k + 1)
        narrow = over_box.intersect(middle + following * step)
        result[k] = Interval(
            np.concatenate([middle.lo, narrow.lo]),
            np.concatenate([middle.hi, narrow.hi]),
        )
    return result


def _moved_to_boxes(a: Series, boxes: int) -> Series:
    return moved(a, lambda x: np.broadcast_to(x, (boxes, *x.shape[1:])))


def _convolve(a: Sequence[Any], b: Sequence[Any], k: int) -> Any:
    terms = [a[i] * b[k - i] for i in range(min(k, len(a) - 1) + 1)]
    return total(terms)


def total(terms: Iterable[Any]) -> Any:
    """Their sum; None of none."""
    result = None
    for term in terms:
        result = term if result is None else result + term
    return result


def zero(like: Interval) -> Interval:
    """0 in the shape of `like`."""
    return Interval.lift(np.zeros(like.shape[1:]))


def one(like: Interval) -> Interval:
    """1, to be broadcast."""
    return Interval.lift(np.ones((1,) * (len(like.shape) - 1)))


def length_of(order: int | None) -> int:
    """Of a series without an end, truncated."""
    if order is None:
        msg = "not a polynomial: the series has no end"
        raise ValueError(msg)
    return order + 1


def _same_shape(a: Series) -> Series:
    """The same entries in every coefficient (a scalar may have been added to them)."""
    shape = np.broadcast_shapes(*(c.shape[1:] for c in a))
    return [
        c
        if c.shape[1:] == shape
        else c.map(lambda x: np.broadcast_to(x, (x.shape[0], *shape)))
        for c in a
    ]

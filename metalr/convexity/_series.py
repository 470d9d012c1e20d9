r"""Truncated power series in the hyperparameter, over intervals or exact rationals.

A series is the list of its Taylor coefficients $c_k = f^{(k)}/k!$, as short as the
program allows: the length of a product is that of its factors together. So the length
bounds the degree of a polynomial whatever the numbers are, and with no truncation the
coefficients are those of the polynomial. Elementary functions follow from their
differential equations (Moore 1966; Griewank, Walther 2008, chapter 13).

Over intervals every quantity is held twice along the boxes axis: first at the boxes'
midpoints (narrow), then over the whole boxes. `tighten` joins the two by Taylor's
theorem, $c_k(\text{box}) \subset c_k(\text{mid}) + (k+1)\,c_{k+1}(\text{box})\,[-r,r]$,
which removes most of the overestimation that plain intervals suffer when a variable
occurs more than once.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np

from . import _interval as iv
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
        _sum(
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
        result.append(_sum(terms))
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
    for k in range(1, _length(order)):
        inner = _convolve(b[1:], inverse, k - 1)
        inverse.append(-(inner * inverse[0]) if inner else _zero(inverse[0]))
    return product(a, inverse, order)


def exp(u: Series, order: int, *, minus_one: bool = False) -> Series:
    """Solves e' = e·u'."""
    e = _integrate(iv.exp(u[0]), u, order, lambda e, _: e)
    return [iv.expm1(u[0]), *e[1:]] if minus_one else e


def log(u: Series, order: int, *, one_plus: bool = False) -> Series:
    """Solves l' = u'/u, or u'/(1 + u)."""
    start = iv.log1p(u[0]) if one_plus else iv.log(u[0])
    if len(u) == 1:
        return [start]
    # k·l_k·u_0 = k·u_k − Σ_{j<k} j·l_j·u_{k−j}
    divisor = u[0] + _one(u[0]) if one_plus else u[0]
    inverse = divisor.reciprocal().where(divisor.lo > 0.0)
    result = [start]
    for k in range(1, _length(order)):
        terms = [
            -(result[j] * u[k - j]).scale(j) for j in range(1, k) if 0 < k - j < len(u)
        ]
        if k < len(u):
            terms.append(u[k].scale(k))
        inner = _sum(terms)
        result.append((inner * inverse).over(k) if inner else _zero(start))
    return result


def real_power(u: Series, exponent: float, order: int) -> Series:
    """The power u^r for u > 0, as exp(r log u); √u is narrower as `sqrt`."""
    scaled = [c.scale(exponent) for c in log(u, order)]
    return exp(scaled, order)


def sqrt(u: Series, order: int) -> Series:
    """2·s_0·s_k = u_k − Σ_{0<j<k} s_j s_{k−j}."""
    result = [iv.sqrt(u[0])]
    if len(u) == 1:
        return result
    inverse = (result[0] + result[0]).reciprocal()
    for k in range(1, _length(order)):
        terms = [-(result[j] * result[k - j]) for j in range(1, k)]
        if k < len(u):
            terms.append(u[k])
        inner = _sum(terms)
        result.append(inner * inverse if inner else _zero(result[0]))
    return result


def tanh(u: Series, order: int) -> Series:
    """Solves t' = (1 − t²)·u'."""
    one = _one(u[0])

    def slope(t: Series, k: int) -> Any:
        squared = square(t[: k + 1], k)
        last = squared[k] if k < len(squared) else _zero(t[0])
        return one - last if k == 0 else -last

    return _integrate_by(iv.tanh(u[0]), u, order, slope)


def logistic(u: Series, order: int) -> Series:
    """Solves s' = s·(1 − s)·u' = (¼ − (s − ½)²)·u'."""

    def slope(s: Series, k: int) -> Any:
        # s(1 − s) at order 0 as logistic(x)·logistic(−x), which does not cancel.
        if k == 0:
            return s[0] * iv.logistic(-u[0])
        squared = square(s[: k + 1], k)
        return s[k] - squared[k]

    return _integrate_by(iv.logistic(u[0]), u, order, slope)


def softplus(u: Series, order: int) -> Series:
    """Solves p' = logistic(u)·u'."""
    s = logistic(u, order)
    return _integrate_by(iv.softplus(u[0]), u, order, lambda _, k: s[k])


def sin_cos(u: Series, order: int) -> tuple[Series, Series]:
    """Solve s' = c·u', c' = −s·u'."""
    return _pair(iv.sin(u[0]), iv.cos(u[0]), u, order, back=_negated)


def sinh_cosh(u: Series, order: int) -> tuple[Series, Series]:
    """Solve s' = c·u', c' = s·u'."""
    return _pair(iv.sinh(u[0]), iv.cosh(u[0]), u, order, back=lambda s: s)


def _negated(s: Interval) -> Interval:
    return -s


def _pair(
    s: Interval,
    c: Interval,
    u: Series,
    order: int,
    back: Callable[[Interval], Interval],
) -> tuple[Series, Series]:
    """The s, c with s' = c·u' and c' = ±s·u'."""
    first, second = [s], [c]
    for k in range(1, _length(order) if len(u) > 1 else 1):
        places = range(1, min(k, len(u) - 1) + 1)
        s, c = (
            _sum((u[j] * other[k - j]).scale(j) for j in places).over(k)
            for other in (second, first)
        )
        first.append(s)
        second.append(back(c))
    return first, second


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


def _integrate(
    start: Interval, u: Series, order: int, slope: Callable[[Any, int], Any]
) -> Series:
    return _integrate_by(start, u, order, lambda f, k: slope(f[k], k))


def _integrate_by(
    start: Interval, u: Series, order: int, slope: Callable[[Series, int], Any]
) -> Series:
    """The f with f' = g·u', where `slope(f, k)` is g_k from f_0 … f_k.

    k·f_k = Σ_{j=1..k} j·u_j·g_{k−j}
    """
    if len(u) == 1:
        return [start]
    result, slopes = [start], []
    for k in range(1, _length(order)):
        slopes.append(slope(result, k - 1))
        terms = [
            (u[j] * slopes[k - j]).scale(j) for j in range(1, min(k, len(u) - 1) + 1)
        ]
        result.append(_sum(terms).over(k))
    return result


def _convolve(a: Sequence[Any], b: Sequence[Any], k: int) -> Any:
    terms = [a[i] * b[k - i] for i in range(min(k, len(a) - 1) + 1)]
    return _sum(terms)


def _sum(terms: Any) -> Any:
    total = None
    for term in terms:
        total = term if total is None else total + term
    return total


def _zero(like: Interval) -> Interval:
    return Interval.lift(np.zeros(like.shape[1:]))


def _one(like: Interval) -> Interval:
    return Interval.lift(np.ones((1,) * (len(like.shape) - 1)))


def _length(order: int | None) -> int:
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

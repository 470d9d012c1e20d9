r"""Elementary functions of series, from their differential equations.

Sources: Moore (1966); Griewank, Walther (2008), Evaluating Derivatives, chapter 13.
"""

from collections.abc import Callable
from typing import Any

from . import _interval as iv
from ._interval import Interval
from ._series import Series, length_of, one, square, total, zero


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
    divisor = u[0] + one(u[0]) if one_plus else u[0]
    inverse = divisor.reciprocal().where(divisor.lo > 0.0)
    result = [start]
    for k in range(1, length_of(order)):
        terms = [
            -(result[j] * u[k - j]).scale(j) for j in range(1, k) if 0 < k - j < len(u)
        ]
        if k < len(u):
            terms.append(u[k].scale(k))
        inner = total(terms)
        result.append((inner * inverse).over(k) if inner else zero(start))
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
    for k in range(1, length_of(order)):
        terms = [-(result[j] * result[k - j]) for j in range(1, k)]
        if k < len(u):
            terms.append(u[k])
        inner = total(terms)
        result.append(inner * inverse if inner else zero(result[0]))
    return result


def tanh(u: Series, order: int) -> Series:
    """Solves t' = (1 − t²)·u'."""
    unit = one(u[0])

    def slope(t: Series, k: int) -> Any:
        squared = square(t[: k + 1], k)
        last = squared[k] if k < len(squared) else zero(t[0])
        return unit - last if k == 0 else -last

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
    for k in range(1, length_of(order) if len(u) > 1 else 1):
        places = range(1, min(k, len(u) - 1) + 1)
        s, c = (
            total((u[j] * other[k - j]).scale(j) for j in places).over(k)
            for other in (second, first)
        )
        first.append(s)
        second.append(back(c))
    return first, second


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
    for k in range(1, length_of(order)):
        slopes.append(slope(result, k - 1))
        terms = [
            (u[j] * slopes[k - j]).scale(j) for j in range(1, min(k, len(u) - 1) + 1)
        ]
        result.append(total(terms).over(k))
    return result

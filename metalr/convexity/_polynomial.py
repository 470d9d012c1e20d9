"""Is a polynomial with rational coefficients nonnegative on an interval? Exactly.

First by Bernstein coefficients with subdivision: where they are all ≥ 0, so is the
polynomial; an end coefficient is a value. Where a double root keeps that from ending,
by Sturm's theorem on the part whose roots have odd multiplicity: only there does the
sign change. All in integers.

Sources: Farouki, Rajan (1987), On the numerical condition of polynomials in Bernstein
form; Sturm (1829); Basu, Pollack, Roy (2006), Algorithms in real algebraic geometry.
"""

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, NamedTuple, TypeAlias

_DEPTH = 24
"""Halvings before Sturm takes over."""

_MOST_PIECES = 400

Integers: TypeAlias = list[int]
"""Coefficients, constant first, without leading zeros; [] is 0."""


class Decision(NamedTuple):
    """Negative at the witness; without one nonnegative on the whole interval."""

    witness: Fraction | None
    method: Literal["Bernstein", "Sturm"]


def evaluate(p: Sequence[Fraction], x: Fraction) -> Fraction:
    """p(x), exactly."""
    value = Fraction(0)
    for coefficient in reversed(p):
        value = value * x + coefficient
    return value


def second_derivative(p: Sequence[Fraction]) -> list[Fraction]:
    """Coefficients of p''."""
    return [k * (k - 1) * c for k, c in enumerate(p)][2:]


def decide(p: Sequence[Fraction], low: Fraction, high: Fraction) -> Decision:
    """Whether p ≥ 0 on [low, high], low < high."""
    unit = _on_unit_interval(p, low, high)
    at, method = (_bernstein(unit) or _sturm(unit)) if unit else _NONNEGATIVE
    return Decision(None if at is None else low + (high - low) * at, method)


def _on_unit_interval(p: Sequence[Fraction], low: Fraction, high: Fraction) -> Integers:
    """Integer coefficients of a positive multiple of p(low + (high − low)·t)."""
    shifted: list[Fraction] = []
    for coefficient in reversed(p):  # Horner, with the polynomial low + width·t
        scaled = [Fraction(0), *(c * (high - low) for c in shifted)]
        same = [*(c * low for c in shifted), Fraction(0)]
        shifted = [a + b for a, b in zip(same, scaled, strict=True)]
        shifted[0] += coefficient
    return _primitive(_cleared(shifted))


def _cleared(p: Sequence[Fraction]) -> Integers:
    multiple = math.lcm(*(c.denominator for c in p)) if p else 1
    return _trimmed([int(c * multiple) for c in p])


_NONNEGATIVE = Decision(None, "Bernstein")


def _bernstein(p: Integers) -> Decision | None:
    """On [0, 1]; None if it takes too many halvings."""
    n = len(p) - 1
    # b_i = Σ_{j≤i} C(i,j)/C(n,j) p_j
    start = _cleared_all(
        [
            sum(Fraction(math.comb(i, j) * p[j], math.comb(n, j)) for j in range(i + 1))
            for i in range(n + 1)
        ]
    )
    pieces = [(start, Fraction(0), Fraction(1))]
    seen = 0
    while pieces:
        b, left, width = pieces.pop()
        seen += 1
        if b[0] < 0:
            return Decision(left, "Bernstein")
        if b[-1] < 0:
            return Decision(left + width, "Bernstein")
        if min(b) >= 0:
            continue
        if width < Fraction(1, 2**_DEPTH) or seen > _MOST_PIECES:
            return None
        first, second = _halved(b)
        half = width / 2
        pieces += [(second, left + half, half), (first, left, half)]
    return _NONNEGATIVE


def _cleared_all(values: Sequence[Fraction | int]) -> list[int]:
    fractions = [Fraction(value) for value in values]
    multiple = math.lcm(*(c.denominator for c in fractions))
    return [int(c * multiple) for c in fractions]


def _halved(b: list[int]) -> tuple[list[int], list[int]]:
    """De Casteljau at ½, times 2ⁿ to stay in the integers."""
    n = len(b) - 1
    row, first, last = list(b), [b[0] << n], [b[-1] << n]
    for level in range(1, n + 1):
        row = [x + y for x, y in itertools.pairwise(row)]
        first.append(row[0] << (n - level))
        last.append(row[-1] << (n - level))
    return first, last[::-1]


def _sturm(p: Integers) -> Decision:
    """On [0, 1], where p changes sign only at a root of odd multiplicity."""
    odd = _odd_part(p)
    chain = _chain(odd)

    def changes(low: Fraction, high: Fraction) -> bool:
        """Whether there are such roots in the open interval."""
        count = _variations(chain, low) - _variations(chain, high)
        return count - (_sign(odd, high) == 0) > 0

    low, high = Fraction(0), Fraction(1)
    while True:
        middle = _not_a_root(p, low, high)
        for point in (low, middle, high):
            if _sign(p, point) < 0:
                return Decision(point, "Sturm")
        if not changes(low, high):
            return Decision(None, "Sturm")
        low, high = (low, middle) if changes(low, middle) else (middle, high)


def _not_a_root(p: Integers, low: Fraction, high: Fraction) -> Fraction:
    """A point between, near the middle, where p does not vanish."""
    for k in range(len(p) + 1):  # more points than p has roots
        point = low + (high - low) * Fraction(2**12 + k, 2**13)
        if _sign(p, point) != 0:
            return point
    msg = "a nonzero polynomial has at most as many roots as its degree"
    raise AssertionError(msg)


def _odd_part(p: Integers) -> Integers:
    """Product of the factors of odd multiplicity (Yun's decomposition)."""
    common = _gcd(p, _derivative(p))
    simple, rest = _divided(p, common), common  # each root once; and once less
    odd, multiplicity = [1], 1
    while len(simple) > 1:
        shared = _gcd(simple, rest)
        factor = _divided(simple, shared)
        if multiplicity % 2 == 1:
            odd = _multiplied(odd, factor)
        simple, rest = shared, _divided(rest, shared)
        multiplicity += 1
    return odd


def _chain(p: Integers) -> list[Integers]:
    chain = [p, _primitive(_derivative(p))]
    while len(chain[-1]) > 1:
        remainder = _remainder(chain[-2], chain[-1])
        if not remainder:
            break
        chain.append([-c for c in remainder])
    return [q for q in chain if q]


def _variations(chain: Sequence[Integers], x: Fraction) -> int:
    signs = [sign for sign in (_sign(q, x) for q in chain) if sign != 0]
    return sum(a != b for a, b in itertools.pairwise(signs))


def _sign(p: Integers, x: Fraction) -> int:
    numerator, denominator = x.as_integer_ratio()
    value, power = 0, 1
    for coefficient in reversed(p):  # denominator^degree · p(x), by Horner
        value = value * numerator + coefficient * power
        power *= denominator
    return (value > 0) - (value < 0)


def _remainder(a: Integers, b: Integers) -> Integers:
    """A positive multiple of the remainder of a by b, without common factors."""
    rest, lead = list(a), b[-1]
    while len(rest) >= len(b):
        top, shift = rest[-1], len(rest) - len(b)
        sign = 1 if lead > 0 else -1
        rest = [abs(lead) * c for c in rest]
        for i, c in enumerate(b):
            rest[shift + i] -= sign * top * c
        rest = _primitive(_trimmed(rest[:-1]))
    return rest


def _gcd(a: Integers, b: Integers) -> Integers:
    a, b = _primitive(a), _primitive(b)
    while b:
        a, b = b, _remainder(a, b)
    return a if a[-1] > 0 else [-c for c in a]


def _divided(a: Integers, b: Integers) -> Integers:
    """The quotient a / b, known to divide, up to a positive factor."""
    rest = [Fraction(c) for c in a]
    quotient = [Fraction(0)] * (len(a) - len(b) + 1)
    for shift in range(len(quotient) - 1, -1, -1):
        quotient[shift] = rest[shift + len(b) - 1] / b[-1]
        for i, c in enumerate(b):
            rest[shift + i] -= quotient[shift] * c
    return _primitive(_cleared(quotient))


def _multiplied(a: Integers, b: Integers) -> Integers:
    result = [0] * (len(a) + len(b) - 1)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            result[i + j] += x * y
    return result


def _derivative(p: Integers) -> Integers:
    return [k * c for k, c in enumerate(p)][1:]


def _primitive(p: Integers) -> Integers:
    p = _trimmed(p)
    common = math.gcd(*p) if p else 1
    return [c // common for c in p]


def _trimmed(p: Sequence[int]) -> Integers:
    end = len(p)
    while end and p[end - 1] == 0:
        end -= 1
    return list(p[:end])

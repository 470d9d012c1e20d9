"""Each would be a proof of what is not so, if one line of the provers were another."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import optax
import pytest

import metalr
from metalr.convexity import (
    _by_spectrum,
    _interval as iv,
    _polynomial,
    check,
    recognize,
)
from metalr.convexity._interval import Interval


def quadratic(A):
    """½ wᵀAw."""
    return lambda w, hyper, batch: 0.5 * w @ jnp.asarray(A) @ w


def with_field(A, F):
    """½ wᵀAw, whose rule says that the gradient is Fw."""

    @jax.custom_vjp
    def value(w):
        return 0.5 * w @ jnp.asarray(A) @ w

    value.defvjp(lambda w: (value(w), w), lambda w, t: (t * jnp.asarray(F) @ w,))
    return lambda w, hyper, batch: value(w)


def descent(loss, start=(1.0, 2.0), steps=1):
    return metalr.Unrolled(loss, optax.sgd, jnp.array(start), steps=steps)


def test_the_size_of_an_interval_around_zero_begins_at_zero():
    # Between the points that the search sees, so that only the enclosure can know.
    hole = lambda x: jnp.where(jnp.abs(x - 0.00313) > 1e-5, x**2, x**2 - 1.0)
    assert check(hole, -1.0, 1.0, budget=64).verdict == "undecided"


def test_a_kink_at_zero_inside_is_not_smooth():
    report = check(lambda x: jnp.exp(x) - 2.0 * jnp.abs(x), -1.0, 1.0)
    assert report.verdict == "refuted"
    assert check(lambda x: x**2 + jnp.abs(x), 0.0, 1.0, budget=64).verdict != "refuted"


def test_the_sign_of_zero_is_not_known_around_zero():
    report = check(lambda x: x**2 - jnp.sign(x), -1.0, 1.0, budget=64)
    assert report.verdict != "certified"


@pytest.mark.parametrize(
    "name", ["exp", "expm1", "log", "log1p", "tanh", "sin", "cos", "sinh", "cosh"]
)
def test_elementary_functions_leave_room_for_a_library_that_is_off_by_ulps(name):
    # Other builds of numpy, and other C libraries, are accurate to some ulps only.
    rng = np.random.default_rng(0)
    points = rng.uniform(0.01, 9.0, 200)
    enclosure = getattr(iv, name)(Interval(points, points))
    with mpmath.workprec(120):
        values = [getattr(mpmath, name)(mpmath.mpf(float(x))) for x in points]
    bounds = {"cosh": (1, np.inf), "tanh": (-1, 1), "sin": (-1, 1), "cos": (-1, 1)}
    least, most = bounds.get(name, (-np.inf, np.inf))
    for low, value, high in zip(enclosure.lo, values, enclosure.hi, strict=True):
        room = 4 * abs(value) * mpmath.mpf(2) ** -52
        assert low <= max(value - room, least)
        assert min(value + room, most) <= high


def test_waves_reach_their_peaks_and_valleys_between_the_ends_of_an_interval():
    rng = np.random.default_rng(1)
    low = rng.uniform(-20.0, 20.0, 300)
    high = low + rng.choice([0.0, 0.1, 1.0, 4.0, 7.0], 300)
    inside = low + (high - low) * np.linspace(0.0, 1.0, 400)[:, None]
    for enclosure, function in ((iv.sin, np.sin), (iv.cos, np.cos)):
        found, values = enclosure(Interval(low, high)), function(inside)
        assert np.all(found.lo <= values.min(0))
        assert np.all(values.max(0) <= found.hi)
        assert np.all(found.hi - found.lo <= np.ptp(values, 0) + 1e-3)
    size = iv.cosh(Interval(np.array([-1.0]), np.array([2.0])))
    assert size.lo[0] == 1.0
    assert size.hi[0] >= np.cosh(2.0)


def test_a_field_that_a_rule_makes_convex_proves_nothing_of_the_loss():
    loss = with_field([[1.0, 0.0], [0.0, -1.0]], [[1.0, 0.0], [0.0, 1.0]])
    report = check(descent(loss), 0.0, 1.0)  # ½(1 − 4)(1 − η)²
    assert (report.verdict, report.method) == ("refuted", "polynomial")


def test_a_stopped_gradient_proves_nothing_of_the_loss():
    stop = jax.lax.stop_gradient
    loss = lambda w, hyper, batch: (
        0.5 * w[0] ** 2 + stop(w[1]) * (w[1] - stop(w[1]) * 2)
    )
    report = check(descent(loss), 0.0, 1.0)  # ½(1 − η)² − 4(1 − η)²
    assert (report.verdict, report.method) == ("refuted", "polynomial")


def test_an_asymmetric_field_is_not_taken_for_gradient_descent(monkeypatch):
    F = [[1.0, 3.0], [0.0, 1.0]]
    L = descent(with_field(np.eye(2), F), steps=2)
    assert "custom_vjp_call" in str(recognize(L, jnp.asarray(0.1), work=1e7))
    # Also where no primitive gives it away.
    monkeypatch.setattr(_by_spectrum, "own_derivatives", lambda program: ())
    assert "not symmetric" in str(recognize(L, jnp.asarray(0.1), work=1e7))


@pytest.mark.parametrize("sign", [-1.0, 0.0, 1.0])
def test_a_hessian_is_semidefinite_to_the_last_bit_or_not_at_all(sign):
    last = (
        1.0 + sign * 2.0**-52
    )  # det = ± 2⁻⁵²: no floating-point factorization sees it
    L = descent(quadratic([[1.0, 1.0], [1.0, last]]))
    found = recognize(L, jnp.asarray(0.1), work=1e7)
    assert (found == "the inner loss is not convex") == (sign < 0)


def test_a_zero_on_the_diagonal_needs_a_zero_row():
    L = descent(quadratic([[0.0, 1.0], [1.0, 2.0]]))
    assert recognize(L, jnp.asarray(0.1), work=1e7) == "the inner loss is not convex"


def polynomial(*roots):
    p = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *p]
        p = [a - root * b for a, b in zip(shifted, [*p, Fraction(0)], strict=True)]
    return p


THIRD = Fraction(1, 3)


@pytest.mark.parametrize("ends", [(), (0,), (1,), (0, 1), (0, 0, 1, 1, 1)])
@pytest.mark.parametrize("flipped", [False, True])
def test_roots_at_the_ends_change_no_sign_inside(ends, flipped):
    # The double root at ⅓ keeps Bernstein from deciding: Sturm must.
    p = polynomial(THIRD, THIRD, *map(Fraction, ends))
    p = [-c for c in p] if flipped else p
    negative = _polynomial.evaluate(p, Fraction(1, 2)) < 0
    decision = _polynomial.decide(p, Fraction(0), Fraction(1))
    assert (decision.witness is not None) == negative
    assert negative or decision.method == "Sturm"


def test_a_root_inside_next_to_a_root_at_the_end_is_found():
    p = polynomial(THIRD, THIRD, Fraction(1), 1 - Fraction(1, 10**6))
    decision = _polynomial.decide(p, Fraction(0), Fraction(1))
    assert decision.witness is not None
    assert 1 - Fraction(1, 10**6) < decision.witness < 1


def test_what_is_nowhere_finite_is_not_convex():
    assert check(lambda x: x * jnp.nan, 0.0, 1.0).verdict == "undecided"
    assert check(lambda x: x**2 + jnp.inf, 0.0, 1.0).verdict == "undecided"


@jax.custom_vjp
def other_rule(x):
    return x**2 + jnp.exp(x)


other_rule.defvjp(lambda x: (other_rule(x), None), lambda _, t: (-t,))


def test_a_rule_of_ones_own_is_not_the_function_that_is_judged():
    # It has no forward mode, and its derivative is another function's.
    assert check(other_rule, 0.0, 1.0).verdict == "certified"
    report = check(lambda x: -other_rule(x), 0.0, 1.0)
    assert report.verdict == "refuted"

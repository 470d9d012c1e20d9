"""The parts of the proofs: enclosures contain, polynomials are decided exactly."""

import itertools
import math
from fractions import Fraction

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

from metalr.convexity import _boxes, _degree, _interval as iv, _polynomial, _taylor
from metalr.convexity._exact import Exact
from metalr.convexity._interval import Interval

FLOATS = st.floats(-50.0, 50.0, allow_subnormal=False)
QUIET = settings(max_examples=60, deadline=None)


def interval(a, b):
    low, high = min(a, b), max(a, b)
    return Interval(np.array([low]), np.array([high]))


def holds(enclosure, value):
    # Python compares a Fraction with a float (also ±inf) exactly.
    return float(enclosure.lo[0]) <= value <= float(enclosure.hi[0])


@QUIET
@given(FLOATS, FLOATS, FLOATS, FLOATS, st.floats(0, 1), st.floats(0, 1))
def test_arithmetic_contains_the_exact_rational_result(a, b, c, d, s, t):
    x, y = interval(a, b), interval(c, d)
    with np.errstate(all="ignore"):
        quotient = x / y
    p = min(max(min(a, b) + s * abs(b - a), min(a, b)), max(a, b))
    q = min(max(min(c, d) + t * abs(d - c), min(c, d)), max(c, d))
    exact_p, exact_q = Fraction(p), Fraction(q)
    assert holds(x + y, exact_p + exact_q)
    assert holds(x - y, exact_p - exact_q)
    assert holds(x * y, exact_p * exact_q)
    assert holds(x.square(), exact_p**2)
    assert x.square().lo[0] >= 0.0
    if y.lo[0] > 0.0 or y.hi[0] < 0.0:
        assert holds(quotient, exact_p / exact_q)
    else:
        assert not np.isfinite(quotient.lo[0])


@QUIET
@given(
    hnp.arrays(float, (1, 3, 5), elements=FLOATS),
    hnp.arrays(float, (1, 5, 2), elements=FLOATS),
    hnp.arrays(float, (1, 3, 5), elements=st.floats(0.0, 1.0)),
)
def test_matrix_products_and_sums_contain_the_exact_result(a, b, width):
    wide = Interval(a, a + width)
    exact = (Exact.lift(a[0]) @ Exact.lift(b[0])).fractions()
    for left in (Interval.lift(a[0]), wide):
        product = left @ Interval.lift(b[0])
        for low, value, high in zip(
            product.lo.flat, exact, product.hi.flat, strict=True
        ):
            assert Fraction(float(low)) <= value <= Fraction(float(high))
    total = Interval.lift(a[0]).total((1, 2))
    assert holds(total, sum(Exact.lift(a[0]).fractions()))


@pytest.mark.parametrize(
    ("function", "reference"),
    [
        (iv.exp, math.exp),
        (iv.expm1, math.expm1),
        (iv.tanh, math.tanh),
        (iv.logistic, lambda x: 1 / (1 + math.exp(-x))),
        (iv.softplus, lambda x: max(x, 0) + math.log1p(math.exp(-abs(x)))),
        (iv.log, math.log),
        (iv.log1p, math.log1p),
        (iv.sqrt, math.sqrt),
    ],
)
def test_elementary_functions_contain_another_library_and_stay_narrow(
    function, reference
):
    # math's are the C library's, numpy's its own loops: both within an ulp or so.
    rng = np.random.default_rng(0)
    points = rng.uniform(0.01, 30.0, 400)
    if function not in (iv.log, iv.log1p, iv.sqrt):
        points = np.concatenate([points, -points])
    enclosure = function(Interval(points, points))
    values = np.array([reference(float(x)) for x in points])
    assert np.all(enclosure.lo <= values)
    assert np.all(values <= enclosure.hi)
    assert np.all(enclosure.hi - enclosure.lo <= 1e-13 * (1.0 + np.abs(values)))


PROGRAMS = {
    "polynomial": lambda x: (x - 0.3) ** 3 * (x + 2.0) - x,
    "rational": lambda x: (1.0 + x) / (2.0 + x**2),
    "negative power": lambda x: (3.0 + x) ** -3,
    "real power": lambda x: (3.0 + x) ** 1.7,
    "exp": lambda x: jnp.exp(-(x**2)) + jnp.expm1(x),
    "log": lambda x: jnp.log(3.0 + x) * jnp.log1p(x**2),
    "sqrt": lambda x: jnp.sqrt(2.0 + x) + jax.lax.rsqrt(3.0 + x),
    "tanh": lambda x: jnp.tanh(2.0 * x) * jnp.tanh(x - 1.0),
    "logistic": lambda x: jax.nn.sigmoid(3.0 * x),
    "softplus": lambda x: jax.nn.softplus(-2.0 * x) + jnp.logaddexp(x, 2.0 * x),
    "relu": lambda x: jax.nn.relu(x + 0.05) * x,
    "abs": lambda x: jnp.abs(x - 5.0) * x**2,
    "where": lambda x: jnp.where(x < 0.5, x**2, jnp.exp(x)),
    "dot": lambda x: jnp.sum((A @ jnp.tanh(x * v)) ** 2),
    "movement": lambda x: jnp.concatenate([x * v[1:], v[:1]])[::-1] @ v + (x * A)[1, 2],
    "scan": lambda x: jax.lax.fori_loop(0, 4, lambda i, y: y - x * 0.7 * y, 1.0),
}
A = jnp.array(np.random.default_rng(1).normal(size=(2, 3)))
v = jnp.array([0.3, -1.1, 0.7])


@pytest.mark.parametrize("name", PROGRAMS)
def test_enclosures_of_the_second_derivative_contain_autodiff_everywhere(name):
    function = PROGRAMS[name]
    program = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((), float))
    rng = np.random.default_rng(0)
    low = rng.uniform(-1.0, 1.0, 24)
    high = low + rng.choice([0.0, 1e-6, 1e-2, 0.3], 24)
    middle = 0.5 * low + 0.5 * high
    over_box, at_middle, _ = _taylor.enclosed_curvature(
        program, low, high, middle, _boxes.ORDER
    )
    second = jax.jit(jax.vmap(jax.grad(jax.grad(function))))
    inside = low + (high - low) * rng.uniform(size=(20, 24))
    points = np.concatenate([inside, low[None], high[None]])
    exact = np.asarray(second(jnp.asarray(points.ravel()))).reshape(points.shape)
    slack = 1e-11 * (1.0 + np.abs(exact))  # of autodiff's own rounding
    assert np.all(over_box.lo <= exact + slack)
    assert np.all(exact - slack <= over_box.hi)
    exact_middle = np.asarray(second(jnp.asarray(middle)))
    assert np.all(at_middle.lo <= exact_middle + 1e-11 * (1 + np.abs(exact_middle)))
    assert np.all(exact_middle <= at_middle.hi + 1e-11 * (1 + np.abs(exact_middle)))
    # The enclosure is of use: narrow at single points, for most of them.
    assert np.median(at_middle.hi - at_middle.lo) < 1e-9


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x**2 + jnp.minimum(x, 0.5),
        lambda x: x**2 - jnp.maximum(x, 0.5),
        lambda x: x**2 - jnp.abs(x - 0.5),
        lambda x: x**2 + jnp.where(x > 0.5, 0.0, 1.0),
        lambda x: x**2 + jnp.where(x >= 0.5, 0.0, 1.0),
    ],
    ids=["min", "max", "abs", "where >", "where ≥"],
)
def test_a_kink_on_the_border_of_two_boxes_is_not_certified_across(function):
    # Halving [0, 1] cuts at ½, and L'' = 2 on either side: only strict decisions,
    # which fail on a box that touches ½, keep the two halves from being glued.
    program = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((), float))
    cover = _boxes.subdivide(program, 0.0, 1.0, 400, 1.0)
    assert cover.witness is None
    assert any(low <= 0.5 <= high for low, high in cover.pending)
    assert cover.kinks


@QUIET
@given(st.lists(st.integers(-20, 20), min_size=1, max_size=6), st.integers(-9, 9))
def test_a_sum_of_squares_is_nonnegative_and_a_little_less_is_not(coefficients, root):
    # p² touches 0 at its roots: Bernstein alone does not end there.
    p = np.polynomial.Polynomial([*coefficients, 1]) * np.polynomial.Polynomial(
        [-root, 10]
    )
    square = [Fraction(int(c)) for c in np.rint((p * p).coef)]
    low, high = Fraction(-1), Fraction(1)
    assert _polynomial.decide(square, low, high).witness is None
    square[0] -= Fraction(1, 10**9)
    decision = _polynomial.decide(square, low, high)
    assert decision.witness is not None
    assert low <= decision.witness <= high
    assert _polynomial.evaluate(square, decision.witness) < 0


@QUIET
@given(
    st.lists(st.fractions(-2, 2, max_denominator=40), min_size=1, max_size=5),
    st.booleans(),
)
def test_the_sign_of_a_product_of_roots_is_decided_exactly(roots, flipped):
    p = [Fraction(-1 if flipped else 1)]
    for root in roots:
        shifted = [Fraction(0), *p]
        p = [a - root * b for a, b in zip(shifted, [*p, Fraction(0)], strict=True)]
    low, high = Fraction(-1), Fraction(1)
    inside = sorted({r for r in roots if low < r < high})
    ends = [low, *inside, high]
    middles = [(a + b) / 2 for a, b in itertools.pairwise(ends)]
    truth = all(_polynomial.evaluate(p, x) >= 0 for x in [*middles, low, high])
    decision = _polynomial.decide(p, low, high)
    assert (decision.witness is None) == truth
    if decision.witness is not None:
        assert low <= decision.witness <= high
        assert _polynomial.evaluate(p, decision.witness) < 0


@QUIET
@given(hnp.arrays(float, (4,), elements=st.floats(-1e3, 1e3)))
def test_exact_coefficients_are_those_of_the_traced_polynomial(c):
    def function(x):
        return jnp.sum((jnp.asarray(c) * x - 1.0) ** 2) / 4.0

    program = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((), float))
    exact = [Fraction(float(x)) for x in c]
    expected = [
        Fraction(1),
        -2 * sum(exact) / 4,
        sum(x * x for x in exact) / 4,
    ]
    assert _taylor.exact(program, 0.0, None, 1e7) == expected


def test_degrees_are_read_off_the_program_not_off_its_values():
    def function(x, y):
        z = 0.0 * x**5 + y  # vanishes, but the program has degree 5
        return jax.lax.fori_loop(0, 3, lambda i, w: w * x, z), jnp.exp(y) * x

    program = jax.make_jaxpr(function)(1.0, 1.0)
    first, other = _degree.degrees(program, [(1.0, 0.0), (0.0, 1.0)])
    assert first == (8.0, 1.0)
    assert other == (1.0, math.inf)

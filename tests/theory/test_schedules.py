"""Schedules: Ritz reciprocals against conjugate gradients, Chebyshev, the saddle."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import optax
import pytest

import metalr
from metalr.theory import Quadratic, rates, schedules
from tests import helpers


def made(seed=0, n=9, d=6):
    X, t = helpers.normal_regression(seed, n, d)
    return X, t, Quadratic.from_regression(jnp.array(X), jnp.array(t))


def real(name):
    from experiments._settings.data import BundledData, load_regression

    X, t, _ = load_regression(BundledData(name=name), seed=0, dtype="float64")
    return np.array(X), np.array(t), Quadratic.from_regression(X, t)


@pytest.mark.parametrize("steps", range(1, 7))
def test_optimal_schedule_is_as_good_as_conjugate_gradients(steps):
    X, t, q = made()
    rates = q.optimal_schedule(steps)
    expected = helpers.cgls(X, t, steps)
    np.testing.assert_allclose(q.schedule_loss(rates), expected, rtol=1e-10)
    np.testing.assert_allclose(helpers.descend(X, t, rates), expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("name", "horizons"),
    [("diabetes", (2, 10)), ("digits", (5, 16)), ("breast_cancer", (8,))],
)
def test_optimal_schedule_is_as_good_as_conjugate_gradients_on_real_data(
    name, horizons
):
    X, t, q = real(name)
    for steps in horizons:
        rates = q.optimal_schedule(steps)
        expected = helpers.cgls(X, t, steps)
        np.testing.assert_allclose(q.schedule_loss(rates), expected, rtol=1e-8)
        np.testing.assert_allclose(helpers.descend(X, t, rates), expected, rtol=1e-8)


def exact_schedule(q, steps):
    """The optimal rates with 80 digits, ascending: Lanczos and its eigenvalues."""
    with mpmath.workdps(80):
        values = [mpmath.mpf(float(x)) for x in q.eigenvalues]
        start = [
            mpmath.sqrt(x * float(p)) for x, p in zip(values, q.weights, strict=True)
        ]
        vector, before, beta = start, [0] * len(start), mpmath.norm(start)
        matrix = mpmath.zeros(steps)
        for s in range(steps):
            vector = [x / beta for x in vector]
            image = [v * x for v, x in zip(values, vector, strict=True)]
            matrix[s, s] = alpha = mpmath.fdot(image, vector)
            back = beta if s else 0
            image = [
                y - alpha * x - back * b
                for y, x, b in zip(image, vector, before, strict=True)
            ]
            before, vector, beta = vector, image, mpmath.norm(image)
            if s + 1 < steps:
                matrix[s, s + 1] = matrix[s + 1, s] = beta
        return sorted(1 / x for x in mpmath.eigsy(matrix, eigvals_only=True))


def worst_error(rates, exact):
    """Of the rates, relative, in units of eps."""
    with mpmath.workdps(80):
        pairs = zip(np.sort(rates), exact, strict=True)
        errors = [mpmath.mpf(float(rate)) / true - 1 for rate, true in pairs]
        return float(max(map(abs, errors))) / np.finfo(float).eps


@pytest.mark.parametrize("steps", [2, 8, 16])
def test_the_rounding_of_the_rates_separates_them_from_conjugate_gradients(steps):
    """As far as `rounding_floor` says, for the errors that the rates carry.

    They come from LAPACK's eigenvalues, whose last places depend on the processor; the
    small ones, which are the long steps, carry some tens of eps. What is lost grows
    with the square of these errors, so it cannot be told from eps alone.
    """
    X, t, q = real("breast_cancer")
    rates = np.array(q.optimal_schedule(steps))
    errors = worst_error(rates, exact_schedule(q, steps))
    assert errors < 100
    # One more for the rounding of ηλ within the loss; 2 for what is beyond first order.
    size = errors + 1.0
    excess = helpers.cgls(X, t, steps) - float(q.minimum)
    floor = float(schedules.rounding_floor(q.eigenvalues, q.weights, jnp.array(rates)))
    loss = float(q.schedule_loss(jnp.array(rates)))
    gap = abs(loss - float(q.minimum) - excess)
    bound = size**2 * floor + 2 * size * np.sqrt(floor * excess)
    assert gap <= 2 * bound + 1e-13


def test_the_rounding_floor_says_from_where_on_no_rates_reach_conjugate_gradients():
    X, t, q = real("breast_cancer")
    spectrum = q.eigenvalues, q.weights
    for steps in (2, 8, 16):
        rates = q.optimal_schedule(steps)
        excess = helpers.cgls(X, t, steps) - float(q.minimum)
        floor = float(schedules.rounding_floor(*spectrum, rates))
        assert (floor > excess) == (steps >= 16)
        reduced = np.array(rates)[:, None] * np.array(q.eigenvalues)
        each = [
            reduced[s] * np.prod(np.abs(1 - np.delete(reduced, s, axis=0)), axis=0)
            for s in range(steps)
        ]
        brute = np.sum(np.array(q.weights) * np.sum(each, axis=0) ** 2)
        np.testing.assert_allclose(floor, np.finfo(float).eps ** 2 * brute, rtol=1e-10)


def test_the_schedule_is_a_minimum():
    _, _, q = made()
    rates = q.optimal_schedule(4)
    slopes = jax.grad(q.schedule_loss)(rates)
    curvatures = np.linalg.eigvalsh(jax.hessian(q.schedule_loss)(rates))
    np.testing.assert_allclose(slopes * rates, 0.0, atol=1e-10)
    assert curvatures[0] > 1e-4


def test_one_step_is_the_optimal_rate_and_all_steps_the_reciprocal_spectrum():
    _, _, q = made()
    np.testing.assert_allclose(q.optimal_schedule(1)[0], q.optimal_rate(1), rtol=1e-13)
    found = np.sort(1.0 / q.optimal_schedule(6))
    np.testing.assert_allclose(found, q.eigenvalues, rtol=1e-10)


def test_equal_eigenvalues_leave_nothing_for_further_steps():
    q = Quadratic(eigenvalues=jnp.array([2.0, 2.0, 5.0]), weights=jnp.ones(3))
    for steps in (2, 3):
        found = q.optimal_schedule(steps)
        np.testing.assert_allclose(np.unique(np.round(found, 9)), [0.2, 0.5], rtol=1e-9)
        np.testing.assert_allclose(q.schedule_loss(found), 0.0, atol=1e-28)


def test_schedule_loss_is_the_unroll_with_its_derivatives():
    X, t, q = made()
    loss = metalr.problems.least_squares(jnp.array(X), jnp.array(t))
    start = jnp.zeros(X.shape[1])
    L = metalr.Unrolled(loss, metalr.per_step(optax.sgd), start, steps=5)
    rates = jnp.array([0.1, 0.5, 0.2, 0.05, 0.3])
    for derivative in (lambda f: f, jax.grad, jax.hessian):
        closed, unrolled = derivative(q.schedule_loss)(rates), derivative(L)(rates)
        np.testing.assert_allclose(closed, unrolled, rtol=1e-10, atol=1e-13)


def test_schedule_and_its_loss_are_differentiable_in_the_spectrum_under_jit():
    _, _, q = made()

    @jax.jit
    def optimum(values):
        q_ = Quadratic(eigenvalues=values, weights=q.weights)
        return q_.schedule_loss(q_.optimal_schedule(3))

    # The envelope theorem: the rates' own change does not count at the optimum.
    fixed = q.optimal_schedule(3)
    envelope = jax.grad(lambda v: schedules.schedule_excess(v, q.weights, fixed))(
        q.eigenvalues
    )
    np.testing.assert_allclose(jax.grad(optimum)(q.eigenvalues), envelope, rtol=1e-7)
    for direction in np.eye(6)[[0, 5]]:
        h = 1e-6
        up, down = (optimum(q.eigenvalues + s * h * direction) for s in (1, -1))
        np.testing.assert_allclose(envelope @ direction, (up - down) / (2 * h), 1e-6)


def test_chebyshev_has_the_least_worst_case():
    low, high, steps = 0.02, 3.0, 7
    found = schedules.chebyshev_schedule(low, high, steps)
    grid = np.linspace(low, high, 200_001)
    factors = np.abs(np.prod(1 - np.array(found)[:, None] * grid, axis=0))
    worst = schedules.chebyshev_factor(low, high, steps)
    np.testing.assert_allclose(factors.max(), worst, rtol=1e-12)
    x = (high + low) / (high - low)
    chebyshev = np.polynomial.chebyshev.Chebyshev.basis(steps)(x)
    np.testing.assert_allclose(worst, 1 / chebyshev, rtol=1e-12)
    # Equioscillation, T + 1 times: so no polynomial with q(0) = 1 is better.
    ends = low + (high - low) * (1 - np.cos(np.pi * np.arange(steps + 1) / steps)) / 2
    at = np.prod(1 - np.array(found)[:, None] * ends, axis=0)
    np.testing.assert_allclose(at, worst * (-1.0) ** np.arange(steps + 1), rtol=1e-10)


def test_chebyshev_factor_is_stable_for_a_million_steps_and_any_condition():
    factor = schedules.chebyshev_factor(1.0, 1e12, 10**6)
    exact = 1 / np.cosh(10**6 * 2 * np.arctanh(1e-6))
    np.testing.assert_allclose(factor, exact, rtol=1e-12)
    assert schedules.chebyshev_factor(1.0, 1.0, 3) == 0.0


def test_a_constant_schedule_is_a_strict_saddle():
    _, _, q = made()
    steps = 5
    best = jnp.full(steps, q.optimal_rate(steps))
    np.testing.assert_allclose(jax.grad(q.schedule_loss)(best), 0.0, atol=1e-13)
    spectrum = q.eigenvalues, q.weights
    for eta in (best[0], 0.9 * best[0]):
        closed = schedules.constant_schedule_hessian(*spectrum, eta, steps)
        found = jax.hessian(q.schedule_loss)(jnp.full(steps, eta))
        np.testing.assert_allclose(closed, found, rtol=1e-11)
    A = closed[0, 0] / 2
    eigenvalues = np.linalg.eigvalsh(closed)
    expected = [-2.0 * A] * (steps - 1) + [A * (4 * steps - 2)]
    np.testing.assert_allclose(eigenvalues, expected, rtol=1e-10)


def test_leja_order_keeps_the_digits_that_other_orders_lose():
    X, t, q = real("digits")
    found = np.array(q.optimal_schedule(16))
    expected = helpers.cgls(X, t, 16)
    error = lambda rates: abs(helpers.descend(X, t, rates) / expected - 1)
    leja, longest_first = error(found), error(np.sort(found)[::-1])
    assert leja < 1e-12
    assert longest_first > 100 * leja
    order = schedules.leja_order(jnp.array(found))
    assert sorted(order.tolist()) == list(range(16))


def test_leja_order_keeps_the_partial_products_small():
    found = np.array(schedules.chebyshev_schedule(1e-3, 1.0, 64))
    grid = np.linspace(1e-3, 1.0, 2001)
    largest = lambda rates: np.max(
        np.cumprod(np.abs(1 - rates[:, None] * grid), axis=0)
    )
    assert largest(found) < 1e3
    assert largest(np.sort(found)[::-1]) > 1e20


@pytest.mark.parametrize("steps", [1, 2, 9, 10**6])
def test_two_eigenvalues_have_their_rate_in_closed_form(steps):
    values, weights = jnp.array([0.3, 2.0]), jnp.array([5.0, 0.2])
    q = Quadratic(eigenvalues=values, weights=weights)
    found = rates.two_eigenvalue_rate(values, weights, steps)
    np.testing.assert_allclose(found, q.optimal_rate(steps), rtol=1e-12)
    if steps < 100:
        np.testing.assert_allclose(q.slope(found, steps), 0.0, atol=1e-12)


@pytest.mark.parametrize("steps", [2, 10, 10**6])
def test_the_bracket_is_halved_to_the_last_place_for_any_condition_number(steps):
    values, weights = jnp.array([1e-150, 1e150]), jnp.array([3.0, 0.5])
    q = Quadratic(eigenvalues=values, weights=weights)
    found = rates.two_eigenvalue_rate(values, weights, steps)
    np.testing.assert_allclose(q.optimal_rate(steps), found, rtol=2e-14)


def test_the_factor_per_step_rises_to_the_asymptotic_one():
    _, _, q = made()
    start = float(q.loss(0.0, 0) - q.minimum)
    factor = lambda T: float(
        ((q.loss(q.optimal_rate(T), T) - q.minimum) / start) ** (0.5 / T)
    )
    factors = [factor(T) for T in (1, 2, 3, 5, 10, 30, 100)]
    limit = float(rates.asymptotic_factor(q.eigenvalues))
    assert np.all(np.diff([*factors, limit]) > 0)
    q0 = Quadratic(eigenvalues=q.eigenvalues, weights=q.weights)
    late = 1000
    log_loss = jnp.log(q0.loss(q0.optimal_rate(late), late) / start) / (2 * late)
    np.testing.assert_allclose(jnp.exp(log_loss), limit, rtol=5e-3)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_newton_on_the_slope_contracts_by_the_closed_form(steps):
    one = Quadratic(eigenvalues=jnp.array([2.0]), weights=jnp.array([3.0]))
    eta = 0.05
    for _ in range(5):
        new = eta - one.slope(eta, steps) / one.curvature(eta, steps)
        expected = rates.newton_contraction(steps) * (0.5 - eta)
        np.testing.assert_allclose(0.5 - new, expected, rtol=1e-9, atol=1e-15)
        if steps == 1:
            break  # there already
        eta = new


@pytest.mark.parametrize("start", [-3.0, 0.0, 10.0])
def test_newton_on_the_slope_converges_from_any_start(start):
    _, _, q = made()
    eta = jnp.array(start)
    for _ in range(100):
        eta = eta - q.slope(eta, 4) / q.curvature(eta, 4)
    np.testing.assert_allclose(eta, q.optimal_rate(4), rtol=1e-12)


def test_the_hypergradient_explodes_by_the_closed_form():
    _, _, q = made()
    eta = 2.5 / float(q.eigenvalues[-1])
    log_slope = lambda T: jnp.log(jnp.abs(q.slope(eta, T)))
    growth = rates.growth_per_step(q.eigenvalues, eta)
    np.testing.assert_allclose(growth, 2 * np.log(1.5), rtol=1e-12)
    found = log_slope(301) - log_slope(300)
    np.testing.assert_allclose(found, growth + np.log(301 / 300), rtol=1e-12)


def test_bad_input_is_named():
    _, _, q = made()
    with pytest.raises(ValueError, match="steps = 7 exceeds the 6 active"):
        q.optimal_schedule(7)
    with pytest.raises(ValueError, match="steps = 0"):
        q.chebyshev_schedule(0)
    empty = Quadratic(eigenvalues=jnp.zeros(0), weights=jnp.zeros(0))
    with pytest.raises(ValueError, match="no active eigenvalue"):
        empty.optimal_schedule(1)

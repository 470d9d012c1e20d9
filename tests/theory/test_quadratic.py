"""The closed form against exact arithmetic, the unroll, and its own limits."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st

import metalr
from metalr.problems import least_squares
from metalr.theory import Quadratic
from tests.helpers import assert_close, finite_difference, regression

SPECTRUM = Quadratic(
    eigenvalues=jnp.array([0.01, 0.5, 1.0, 3.0]),
    weights=jnp.array([0.3, 2.0, 1.0, 0.1]),
    minimum=0.25,
)
NOTES = Quadratic.from_regression(jnp.array([[1.0, 1.0]]), jnp.array([3.0]))


def matrix_power_loss(X, t, w0, eta, steps):
    """‖(I − (2η/n)K)ᵀa‖²/n by repeated multiplication, as THEORY.md corrects it."""
    n = len(t)
    residual = X @ w0 - t
    for _ in range(steps):
        residual = residual - (2 * eta / n) * X @ (X.T @ residual)
    return np.mean(residual**2)


def regressions():
    rng = np.random.default_rng(3)
    X = rng.normal(size=(4, 6))
    tall = rng.normal(size=(9, 3))
    deficient = rng.normal(size=(6, 2)) @ rng.normal(size=(2, 5))
    scaled = tall * np.array([1e-3, 1.0, 1e2])
    t4, t9, t6 = (rng.normal(size=n) for n in (4, 9, 6))
    w3, w6 = rng.normal(size=3), rng.normal(size=6)
    return {
        "n < d": (X, t4, np.zeros(6)),
        "w0 away from 0": (X, t4, w6),
        "n >= d, t out of range": (tall, t9, np.zeros(3)),
        "t in range": (tall, tall @ w3, np.zeros(3)),
        "rank deficient": (deficient, t6, np.zeros(5)),
        "badly scaled": (scaled, t9, w3),
        "duplicate rows": (np.ones((3, 2)), np.ones(3), np.zeros(2)),
    }


@pytest.mark.parametrize("name", regressions())
def test_the_spectral_form_is_the_matrix_form_for_every_shape(name):
    X, t, w0 = regressions()[name]
    exact = Quadratic.from_regression(*map(jnp.asarray, (X, t, w0)))
    assert np.all(np.diff(exact.eigenvalues) >= 0.0)
    assert np.all(np.asarray(exact.weights) > 0.0)
    edge = 2.0 / float(np.max(exact.eigenvalues))
    for eta in (0.0, 0.3 * edge, edge, 1.1 * edge):
        for steps in (0, 1, 5, 12):
            expected = matrix_power_loss(X, t, w0, eta, steps)
            assert_close(exact.loss(eta, steps), expected, rtol=1e-11, atol=1e-28)


def test_the_minimum_is_the_least_squares_residual():
    X, t, _ = regressions()["n >= d, t out of range"]
    best = np.mean((X @ np.linalg.lstsq(X, t, rcond=None)[0] - t) ** 2)
    found = Quadratic.from_regression(jnp.asarray(X), jnp.asarray(t)).minimum
    assert_close(found, best, rtol=1e-13)
    assert Quadratic.from_regression(*regression()).minimum == 0.0


def test_directions_that_are_zero_to_rounding_are_inactive():
    X, t, _ = regressions()["rank deficient"]
    assert Quadratic.from_regression(jnp.asarray(X), jnp.asarray(t)).weights.size == 2
    # The start is optimal along the first direction, although its eigenvalue is not 0.
    exact = Quadratic.from_regression(jnp.diag(jnp.array([1.0, 2.0])), jnp.eye(2)[1])
    assert_close(exact.eigenvalues, jnp.array([4.0]), rtol=1e-15)


@pytest.mark.parametrize("steps", [0, 1, 4, 9])
def test_slope_and_curvature_are_the_derivatives_of_the_loss(steps):
    for eta in jnp.array(
        [0.0, 0.31, 1.0, 2.5]
    ):  # 1.0 is the reciprocal of an eigenvalue
        loss = lambda e: SPECTRUM.loss(e, steps)
        slope, curvature = SPECTRUM.slope(eta, steps), SPECTRUM.curvature(eta, steps)
        assert_close(jax.grad(loss)(eta), slope, rtol=1e-12, atol=1e-15)
        assert_close(jax.hessian(loss)(eta), curvature, rtol=1e-12, atol=1e-15)
        size = abs(float(curvature)) + abs(float(slope))
        assert_close(finite_difference(loss, eta), slope, rtol=1e-6, atol=1e-7 * size)


def test_one_step_is_the_closed_form_of_the_notes():
    X, t = regression()
    n, K, a = 5, X @ X.T, -t
    best = n / 2 * (a @ K @ a) / (a @ K @ K @ a)
    exact = Quadratic.from_regression(X, t)
    assert_close(exact.optimal_rate(1), best, rtol=1e-13)
    assert_close(exact.curvature(0.7, 1), 8 / n**3 * jnp.sum((K @ a) ** 2), rtol=1e-13)


@pytest.mark.parametrize("steps", [1, 2, 3, 1000, 10**6])
def test_one_quarter_is_optimal_on_1_1_for_every_horizon(steps):
    assert NOTES.optimal_rate(steps) == 0.25
    assert NOTES.loss(0.25, steps) == 0.0
    assert NOTES.slope(0.25, steps) == 0.0
    assert NOTES.asymptotic_rate() == 0.25


def test_the_corrected_loss_of_the_notes_is_not_their_double_well():
    eta, steps = 0.1, 2
    assert_close(NOTES.loss(eta, steps), 9 * (1 - 4 * eta) ** (2 * steps), rtol=1e-13)
    assert NOTES.curvature(0.25, steps) == 0.0  # so convex, but not with "> 0"


def optimal_rate_by_bisection(exact, steps):
    """The sign of L_T' in rational arithmetic, halved 60 times."""
    pairs = [
        (Fraction(float(p)), Fraction(float(v)))
        for p, v in zip(exact.weights, exact.eigenvalues, strict=True)
    ]
    low, high = 1 / pairs[-1][1], 1 / pairs[0][1]
    for _ in range(60):
        middle = Fraction(float((low + high) / 2))
        slope = sum(p * v * (1 - middle * v) ** (2 * steps - 1) for p, v in pairs)
        low, high = (middle, high) if slope > 0 else (low, middle)
    return float(low)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 40])
def test_the_optimal_rate_is_exact_against_rational_arithmetic(steps):
    expected = optimal_rate_by_bisection(SPECTRUM, steps)
    assert_close(SPECTRUM.optimal_rate(steps), expected, rtol=1e-14)


@pytest.mark.parametrize("steps", [2, 3, 10, 1000, 10**6])
def test_with_two_eigenvalues_the_optimal_rate_has_a_closed_form(steps):
    low, high, p, q = 0.02, 5.0, 0.3, 70.0
    two = Quadratic(eigenvalues=jnp.array([low, high]), weights=jnp.array([p, q]))
    s = (p * low / (q * high)) ** (1 / (2 * steps - 1))
    assert_close(two.optimal_rate(steps), (1 + s) / (high + s * low), rtol=1e-13)


def test_the_optimal_rate_tends_to_the_asymptotic_one():
    errors = [
        abs(SPECTRUM.optimal_rate(steps) - SPECTRUM.asymptotic_rate())
        for steps in (10, 100, 10**4, 10**6)
    ]
    assert np.all(np.diff(errors) < 0.0)
    assert errors[-1] < 1e-5


def test_the_best_rate_of_convergence_rises_to_that_of_the_condition_number():
    rho = (300.0 - 1.0) / (300.0 + 1.0)
    spectrum = Quadratic(eigenvalues=SPECTRUM.eigenvalues, weights=SPECTRUM.weights)
    rates = []
    for steps in (1, 2, 5, 20, 100, 1000, 10**4):
        ratio = spectrum.loss(spectrum.optimal_rate(steps), steps) / spectrum.loss(0, 0)
        rates.append(float(ratio ** (1 / (2 * steps))))
    assert np.all(np.diff(rates) >= 0.0)
    assert rates[-1] < rho
    assert_close(rates[-1], rho, rtol=2e-4)  # log(p share)/2T


def test_derivatives_at_zero_are_those_of_any_smooth_loss():
    X, t = regression()
    loss = lambda w: jnp.mean((X @ w - t) ** 2)
    g, H = jax.grad(loss)(jnp.zeros(8)), jax.hessian(loss)(jnp.zeros(8))
    exact, steps = Quadratic.from_regression(X, t), 7
    assert_close(exact.slope(0.0, steps), -steps * g @ g, rtol=1e-13)
    curvature = steps * (2 * steps - 1) * g @ H @ g
    assert_close(exact.curvature(0.0, steps), curvature, rtol=1e-13)


def test_a_million_steps_lose_no_digits():
    # (1 − ηλ)^(2T) for exactly representable ηλ, against rational arithmetic.
    one = Quadratic(eigenvalues=jnp.array([1.0]), weights=jnp.array([1.0]))
    eta, steps = 2.0**-12, 10**6
    exact = (1 - Fraction(1, 2**12)) ** 2000  # to the power 1000, by logarithm
    expected = float(np.exp(1000 * (np.log(float(exact)))))
    assert_close(one.loss(eta, steps), expected, rtol=1e-12)
    assert one.loss(3.0, steps) == jnp.inf
    assert one.slope(3.0, steps) == jnp.inf


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=5),
    st.integers(1, 10**6),
)
def test_the_optimal_rate_lies_between_the_reciprocals(eigenvalues, steps):
    values = jnp.sort(jnp.array(eigenvalues))
    exact = Quadratic(eigenvalues=values, weights=jnp.ones_like(values))
    best = float(exact.optimal_rate(steps))
    assert 1 / float(values[-1]) * (1 - 1e-12) <= best
    assert best <= 1 / float(values[0]) * (1 + 1e-12)


def test_the_optimal_rate_is_differentiable_in_the_spectrum():
    def best(weights):
        spectrum = Quadratic(eigenvalues=SPECTRUM.eigenvalues, weights=weights)
        return spectrum.optimal_rate(6)

    expected = finite_difference(best, SPECTRUM.weights)
    assert_close(jax.grad(best)(SPECTRUM.weights), expected, rtol=1e-6, atol=1e-9)
    forward = jax.jit(jax.jacfwd(best))(SPECTRUM.weights)
    assert_close(forward, expected, rtol=1e-6, atol=1e-9)


def test_a_start_that_is_optimal_is_said_so():
    X = jnp.array([[1.0, 0.0], [-1.0, 0.0]])
    still = Quadratic.from_regression(X, jnp.array([1.0, 1.0]))
    assert still.loss(0.3, 5) == 1.0
    assert still.slope(0.3, 5) == 0.0
    for call in (lambda: still.optimal_rate(3), still.asymptotic_rate):
        with pytest.raises(ValueError, match="already optimal"):
            call()


@pytest.mark.parametrize("steps", [-1, 1.0, True])
def test_steps_that_are_not_a_natural_number_are_refused(steps):
    from jaxtyping import TypeCheckError

    with pytest.raises((ValueError, TypeCheckError)):
        SPECTRUM.loss(0.1, steps)
    with pytest.raises(ValueError, match="steps = 0"):
        SPECTRUM.optimal_rate(0)


def test_bad_regressions_are_refused():
    X, t = regression()
    with pytest.raises(ValueError, match="not finite"):
        Quadratic.from_regression(X.at[0, 0].set(jnp.nan), t)
    with pytest.raises(ValueError, match="concrete"):
        jax.jit(Quadratic.from_regression)(X, t)


def test_float32_inputs_give_a_float32_spectrum():
    X, t = (array.astype(jnp.float32) for array in regression())
    exact = Quadratic.from_regression(X, t)
    objective = metalr.Unrolled(
        least_squares(X, t), optax.sgd, jnp.zeros(8, jnp.float32), steps=10
    )
    assert exact.eigenvalues.dtype == jnp.float32
    assert exact.loss(jnp.float32(0.3), 10).dtype == jnp.float32
    assert_close(exact.loss(jnp.float32(0.3), 10), objective(0.3), rtol=1e-5)

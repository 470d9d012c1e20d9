"""Momentum on a quadratic: closed form against rational arithmetic, loops and optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalr
from metalr.theory import Quadratic, momentum
from tests import helpers

RATES = [0.0, 1e-13, 1e-3, 0.3, 1.0, 2.0, 3.7, 5.0]


@pytest.fixture(scope="module")
def problem():
    X, t = helpers.normal_regression()
    return X, t, Quadratic.from_regression(jnp.array(X), jnp.array(t))


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 7, 64, 101])
@pytest.mark.parametrize("alpha", [0.0, 1e-12, 0.25, 0.9, 1.0, -0.3])
def test_heavy_ball_is_its_recursion_in_rational_arithmetic(steps, alpha):
    found = momentum.heavy_ball_factor(jnp.array(RATES), alpha, steps)
    exact = np.array([helpers.exact_heavy_ball(u, alpha, steps) for u in RATES])
    # Absolute: at a zero of the polynomial only rounding is left.
    np.testing.assert_allclose(found, exact, rtol=1e-12, atol=1e-15)


def test_heavy_ball_is_differentiable_at_the_double_roots_and_without_momentum():
    # Chebyshev's x = ±1, where the form with cosines divides 0 by 0; and α = 0.
    alpha = 0.25
    for u, a in [
        ((1 - alpha**0.5) ** 2, alpha),
        ((1 + alpha**0.5) ** 2, alpha),
        (0.7, 0.0),
    ]:
        slopes = jax.grad(momentum.heavy_ball_factor, (0, 1))(jnp.array(u), a, 5)
        h = 1e-6
        by_u = [helpers.exact_heavy_ball(u + s * h, a, 5) for s in (1, -1)]
        by_a = [helpers.exact_heavy_ball(u, a + s * h, 5) for s in (1, -1)]
        expected = [(up - down) / (2 * h) for up, down in (by_u, by_a)]
        np.testing.assert_allclose(slopes, expected, rtol=1e-8)


@pytest.mark.parametrize(
    ("u", "alpha", "value", "by_u", "by_alpha"),
    # Made with 60 digits (mpmath): the matrix of a step to the power 10⁶, and its
    # central differences with a step of 1e-25. The tolerance is eps times the number of
    # radians or time constants in the run.
    [
        (2.5e-13, 1 - 1e-6, 0.90979588216318, -3.53809962799903e11, -25272.1300910081),
        (1e-5, 0.5, 2.05995843224774e-9, -4.12015996027444e-3, -8.24063307147869e-8),
        (1e-5, 0.0, 4.53976598076130e-5, -45.3981137887509, -4.53985223758609e-4),
        (1e-3, 1.0, 0.668642812696266, -11761225.7362807, 340190.4280973421),
        (4.0, 1.0, 2000001.0, 3.333338333335e17, -6.66666666666e17),
        (3.7999999, 0.9, 6.98977210312773, 69897757.8076516, -139795511.935812),
    ],
)
def test_heavy_ball_is_stable_at_a_million_steps(u, alpha, value, by_u, by_alpha):
    rtol = {1e-3: 1e-10, 4.0: 1e-11, 3.7999999: 1e-8}.get(u, 1e-13)
    function = momentum.heavy_ball_factor
    found, slopes = jax.value_and_grad(function, (0, 1))(jnp.array(u), alpha, 10**6)
    np.testing.assert_allclose(found, value, rtol=rtol)
    np.testing.assert_allclose(slopes, (by_u, by_alpha), rtol=rtol)


def test_heavy_ball_ends_at_infinity_or_at_the_minimum_never_at_nan():
    losses = momentum.heavy_ball_factor(jnp.array([5.0, 0.01]), 0.9, 10**6)
    assert np.isinf(losses[0])
    assert losses[1] == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(("eta", "alpha", "steps"), [(0.1, 0.9, 17), (0.4, 0.5, 6)])
def test_momentum_is_that_of_optax(problem, nesterov, eta, alpha, steps):
    X, t, q = problem
    optimizer = lambda h: optax.sgd(h[0], h[1], nesterov=nesterov)
    loss = metalr.problems.least_squares(jnp.array(X), jnp.array(t))
    L = metalr.Unrolled(loss, optimizer, jnp.zeros(X.shape[1]), steps=steps)
    closed = q.nesterov_loss if nesterov else q.heavy_ball_loss
    hyper = jnp.array([eta, alpha])
    exact = lambda h: closed(h[0], h[1], steps)
    np.testing.assert_allclose(exact(hyper), L(hyper), rtol=1e-11)
    np.testing.assert_allclose(jax.grad(exact)(hyper), jax.grad(L)(hyper), rtol=1e-9)
    np.testing.assert_allclose(
        jax.hessian(exact)(hyper), jax.hessian(L)(hyper), rtol=1e-8
    )
    rates = [eta] * steps
    np.testing.assert_allclose(
        exact(hyper), helpers.descend(X, t, rates, alpha, nesterov), rtol=1e-11
    )


def test_without_momentum_both_are_gradient_descent(problem):
    q = problem[2]
    for steps in (0, 1, 30, 10**6):
        expected = q.loss(0.01, steps)
        np.testing.assert_allclose(q.heavy_ball_loss(0.01, 0.0, steps), expected, 1e-12)
        np.testing.assert_allclose(q.nesterov_loss(0.01, 0.0, steps), expected, 1e-12)


def test_nesterov_iterate_is_the_gradient_step_from_the_lookahead_point():
    u, alpha = 0.3, 0.8
    found = momentum.nesterov_factor(jnp.array(u), alpha, 2, at="iterate")
    np.testing.assert_allclose(found, (1 - u) * (1 - (1 + alpha) * u), rtol=1e-15)
    x, y = [1.0], [1.0]
    for _ in range(9):
        x.append((1 - u) * y[-1])
        y.append(x[-1] + alpha * (x[-1] - x[-2]))
    u = jnp.array(u)
    for steps in range(10):
        iterate = momentum.nesterov_factor(u, alpha, steps, at="iterate")
        np.testing.assert_allclose(iterate, x[steps], rtol=1e-12)
        lookahead = momentum.nesterov_factor(u, alpha, steps)
        np.testing.assert_allclose(lookahead, y[steps], rtol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 5, 12])
def test_one_eigenvalue_has_exactly_t_global_minima(steps):
    rates = momentum.heavy_ball_minimizers(2.0, 0.6, steps)
    assert rates.shape == (steps,)
    assert np.all(np.diff(rates) > 1e-3)
    q = Quadratic(eigenvalues=jnp.array([2.0]), weights=jnp.array([1.0]))
    at = [float(q.heavy_ball_loss(rate, 0.6, steps)) for rate in rates]
    np.testing.assert_allclose(at, 0.0, atol=1e-24)
    # No others: the sign of c_T changes T times, and a polynomial has no more roots.
    between = jnp.concatenate([rates - 1e-4, rates[-1:] + 1e-4]) * 2.0
    signs = np.sign(momentum.heavy_ball_factor(between, 0.6, steps))
    assert np.all(signs[1:] == -signs[:-1])


@pytest.mark.parametrize("seed", range(12))
def test_two_steps_are_convex_exactly_if_the_margin_is_not_negative(seed):
    rng = np.random.default_rng(seed)
    values = jnp.array(10.0 ** rng.uniform(-1.5, 0.5, 4))
    weights, alpha = jnp.array(10.0 ** rng.uniform(-3, 0, 4)), rng.uniform(0.0, 1.0)
    margin = momentum.two_step_convexity_margin(values, weights, alpha)
    rate, curvature = momentum.two_step_least_curvature(values, weights, alpha)
    # The numerical second derivative of the independent recursion, on a fine grid.
    c = lambda u: 1 - (2 + alpha) * u + u**2
    loss = lambda eta: jnp.sum(weights * c(eta * values) ** 2)
    second = jax.jit(jax.vmap(jax.grad(jax.grad(loss))))
    grid = jnp.linspace(0.0, 2.0, 4001) * rate
    assert (margin >= 0) == (jnp.min(second(grid)) >= -1e-12)
    np.testing.assert_allclose(curvature, jnp.min(second(grid)), rtol=1e-9)
    np.testing.assert_allclose(rate, grid[jnp.argmin(second(grid))], rtol=1e-3)


def test_two_step_criterion_is_the_published_formula():
    values, p, a = jnp.array([0.5, 1.0, 3.0]), jnp.array([1.0, 0.3, 0.1]), 0.35
    S = [float(jnp.sum(p * values**k)) for k in range(5)]
    expected = 3 * (2 + a) ** 2 * (1 - S[3] ** 2 / (S[2] * S[4])) - a * (a + 4)
    found = momentum.two_step_convexity_margin(values, p, a)
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_bad_input_is_named():
    u = jnp.array(0.1)
    with pytest.raises(ValueError, match="steps = -1"):
        momentum.heavy_ball_factor(u, 0.5, -1)
    with pytest.raises(ValueError, match="at = 'x'"):
        momentum.nesterov_factor(u, 0.5, 1, at="x")
    with pytest.raises(ValueError, match=r"momentum = -0\.5"):
        momentum.heavy_ball_minimizers(1.0, -0.5, 2)
    with pytest.raises(ValueError, match="no eigenvalue"):
        momentum.two_step_convexity_margin(jnp.zeros(0), jnp.zeros(0), 0.1)

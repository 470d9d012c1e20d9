"""SGD in expectation: the second-moment operator against all sample paths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import metalr
from metalr.theory import stochastic
from tests import helpers


@pytest.mark.parametrize(
    ("n", "d", "steps", "batch_size"),
    [(4, 2, 5, 1), (3, 5, 6, 1), (3, 2, 3, 2), (4, 1, 0, 1)],
)
def test_expected_loss_is_the_mean_over_all_sample_paths(n, d, steps, batch_size):
    X, t = helpers.normal_regression(n, n, d)
    rates = np.linspace(0.02, 0.3, steps)
    found = stochastic.sgd_expected_loss(
        jnp.array(X), jnp.array(t), jnp.array(rates), steps, batch_size=batch_size
    )
    expected = helpers.sgd_by_enumeration(X, t, rates, batch_size)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_start_counts_by_its_residual():
    X, t = helpers.normal_regression(0, 3, 2)
    w0 = np.array([0.5, -2.0])
    found = stochastic.sgd_expected_loss(
        jnp.array(X), jnp.array(t), 0.1, 4, w0=jnp.array(w0)
    )
    expected = helpers.sgd_by_enumeration(X, t - X @ w0, [0.1] * 4)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_many_draws_a_step_approach_full_gradient_descent():
    X, t = helpers.normal_regression()
    expected = helpers.descend(X, t, [0.1] * 9)
    loss = lambda size: stochastic.sgd_expected_loss(
        jnp.array(X), jnp.array(t), 0.1, 9, batch_size=size
    )
    gaps = [float(loss(size)) - expected for size in (10**3, 10**6)]
    assert 0 < gaps[0] < 1e-2
    np.testing.assert_allclose(gaps[0] / gaps[1], 1000, rtol=1e-2)


INTERPOLATED = jnp.array([[1.0], [2.0]]), jnp.zeros(2)  # one weight, from 1


@pytest.mark.parametrize("steps", [1, 30, 300])
def test_where_the_data_are_interpolated_the_loss_has_no_floor(steps):
    # One weight: each step multiplies E w² by the mean of (1 − 2ηx²)².
    factor = np.mean((1.0 - 2.0 * 0.1 * np.array([1.0, 2.0]) ** 2) ** 2)
    found = stochastic.sgd_expected_loss(*INTERPOLATED, 0.1, steps, w0=jnp.ones(1))
    np.testing.assert_allclose(found, 2.5 * factor**steps, rtol=1e-12)


@pytest.mark.parametrize("shape", [(2, 5), (5, 2), (4, 4)])
def test_a_rank_deficient_interpolation_shrinks_by_its_spectral_radius(shape):
    rng = np.random.default_rng(0)
    X = np.outer(rng.normal(size=shape[0]), rng.normal(size=shape[1]))  # rank 1
    w0, eta = rng.normal(size=shape[1]), 0.3 / np.max(np.sum(X**2, axis=1))
    factor = np.mean((1.0 - 2.0 * eta * np.sum(X**2, axis=1)) ** 2)
    found = stochastic.sgd_expected_loss(
        jnp.array(X), jnp.zeros(shape[0]), eta, 200, w0=jnp.array(w0)
    )
    expected = np.mean((X @ w0) ** 2) * factor**200
    assert expected < 1e-20
    np.testing.assert_allclose(found, expected, rtol=1e-11)


def test_the_rate_is_learned_at_a_horizon_where_the_loss_is_tiny():
    loss = lambda eta: stochastic.sgd_expected_loss(
        *INTERPOLATED, eta, 50, w0=jnp.ones(1)
    )
    learned = metalr.learn(loss, 0.1, outer_optimizer=metalr.Newton(), steps=60)
    assert learned.converged
    np.testing.assert_allclose(learned.hyper, 5.0 / 34.0, rtol=1e-6)


@pytest.mark.parametrize("shape", [(3, 2), (2, 3)])
def test_derivatives_in_the_data_need_no_derivative_of_the_coordinates(shape):
    rng = np.random.default_rng(4)
    X, w = rng.normal(size=shape), rng.normal(size=shape[1])
    X[:, -1] = X[:, 0]  # singular directions that are not unique
    directions = rng.normal(size=shape), rng.normal(size=shape[0])

    def loss(s):  # from data that are interpolated, at s = 0
        X_, t = X + s * directions[0], X @ w + s * directions[1]
        return stochastic.sgd_expected_loss(jnp.asarray(X_), jnp.asarray(t), 0.2, 3)

    h = 1e-4
    up, here, down = (
        helpers.sgd_by_enumeration(
            X + s * directions[0], X @ w + s * directions[1], [0.2] * 3
        )
        for s in (h, 0.0, -h)
    )
    np.testing.assert_allclose(jax.grad(loss)(0.0), (up - down) / (2 * h), rtol=1e-6)
    second = (up - 2 * here + down) / h**2
    np.testing.assert_allclose(jax.hessian(loss)(0.0), second, rtol=1e-5)


def test_derivatives_are_those_of_the_enumerated_mean():
    X, t = helpers.normal_regression(2, 3, 2)
    loss = lambda eta: stochastic.sgd_expected_loss(jnp.array(X), jnp.array(t), eta, 4)
    h = 1e-5
    up, down = (helpers.sgd_by_enumeration(X, t, [0.2 + s * h] * 4) for s in (1, -1))
    # The error of the central difference is h²L‴/6, about 2e-8 of it here.
    np.testing.assert_allclose(jax.grad(loss)(0.2), (up - down) / (2 * h), rtol=1e-7)


def test_the_expected_loss_need_not_be_convex_in_the_rate():
    # Found by search over small integers, then confirmed on all sample paths.
    X, t = np.array([[3.0, -3.0], [-3.0, 2.0]]), np.array([3.0, -3.0])
    at, h = 0.03, 1e-3
    left, here, right = (
        helpers.sgd_by_enumeration(X, t, [at + s * h] * 3) for s in (-1, 0, 1)
    )
    assert here > 0.5 * (left + right) + 1e-5
    loss = lambda eta: stochastic.sgd_expected_loss(jnp.array(X), jnp.array(t), eta, 3)
    assert jax.grad(jax.grad(loss))(at) < -50.0


def test_bad_input_is_named():
    X, t = jnp.ones((3, 2)), jnp.ones(3)
    with pytest.raises(ValueError, match=r"eta \(4,\) do not fit"):
        stochastic.sgd_expected_loss(X, t, jnp.ones(4), 3)
    with pytest.raises(ValueError, match="batch_size = 0"):
        stochastic.sgd_expected_loss(X, t, 0.1, 3, batch_size=0)

"""The helpers can fail."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests import helpers
from tests.helpers import assert_close, finite_difference


def test_assert_close_sees_a_difference_above_its_tolerance():
    assert_close({"a": jnp.ones(2)}, {"a": jnp.ones(2) + 1e-9}, rtol=1e-8)
    with pytest.raises(AssertionError):
        assert_close({"a": jnp.ones(2)}, {"a": jnp.ones(2) + 1e-7}, rtol=1e-8)


def test_finite_difference_of_a_cubic_is_its_derivative():
    slope = finite_difference(lambda h: h["a"] ** 3 * h["b"], {"a": 2.0, "b": 3.0})
    assert_close(slope, {"a": jnp.array(36.0), "b": jnp.array(8.0)}, rtol=1e-9)


def test_conjugate_gradients_solve_d_unknowns_in_d_steps():
    X, t = helpers.normal_regression()
    best = np.linalg.lstsq(X, t)[0]
    np.testing.assert_allclose(
        helpers.cgls(X, t, 4), helpers.mean_square(X, t, best), rtol=1e-12
    )
    assert helpers.cgls(X, t, 3) > 1.001 * helpers.cgls(X, t, 4)


def test_one_step_of_conjugate_gradients_is_a_line_search():
    X, t = helpers.normal_regression()
    losses = [helpers.descend(X, t, [rate]) for rate in np.linspace(0.0, 1.0, 2001)]
    np.testing.assert_allclose(helpers.cgls(X, t, 1), min(losses), rtol=1e-5)


def test_enumeration_of_whole_batches_of_one_example_is_gradient_descent():
    X, t = helpers.normal_regression(n=1)
    np.testing.assert_allclose(
        helpers.sgd_by_enumeration(X, t, [0.1, 0.2], batch_size=2),
        helpers.descend(X, t, [0.1, 0.2]),
        rtol=1e-12,
    )


def test_rational_heavy_ball_is_the_recursion():
    x = [1.0]
    velocity = 0.0
    for _ in range(3):
        velocity = 0.5 * velocity - 0.25 * x[-1]
        x.append(x[-1] + velocity)
    assert helpers.exact_heavy_ball(0.25, 0.5, 3) == x[-1]


def test_momentum_of_the_descent_reference_is_the_rational_one():
    X, t = np.array([[1.0]]), np.array([1.0])  # λ = 2, p = 1
    expected = helpers.exact_heavy_ball(0.25, 0.5, 5) ** 2
    np.testing.assert_allclose(
        helpers.descend(X, t, [0.125] * 5, 0.5), expected, rtol=1e-14
    )

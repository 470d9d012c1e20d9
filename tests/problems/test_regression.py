"""Regression problems: standardization, losses, prescribed spectra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from metalr.problems import least_squares, regression
from metalr.theory import Quadratic
from tests.helpers import assert_close, regression as random_regression


def test_standardized_columns_have_mean_0_and_deviation_1():
    X, _ = random_regression(20, 3)
    X = 1e3 + 5.0 * X
    Z, recorded = regression.standardize(X)
    assert_close(jnp.mean(Z, axis=0), jnp.zeros(3), rtol=0, atol=1e-11)
    assert_close(jnp.std(Z, axis=0), jnp.ones(3), rtol=1e-12)
    assert_close(recorded(X[:4]), Z[:4], rtol=1e-14)


def test_a_constant_column_becomes_zero_and_keeps_its_scale():
    X = jnp.full((5, 1), 0.1)  # the mean of five 0.1 is not 0.1
    Z, recorded = regression.standardize(X)
    assert_close(Z, jnp.zeros((5, 1)), rtol=0)
    assert_close(recorded.scale, jnp.ones(1), rtol=0)


def test_a_batch_of_row_indices_is_the_mean_over_those_rows():
    X, t = random_regression(6, 3)
    w, rows = jnp.arange(3.0), jnp.array([4, 1])
    loss = least_squares(X, t)
    assert_close(loss(w, None, rows), jnp.mean((X[rows] @ w - t[rows]) ** 2), rtol=0)
    assert_close(loss(w, None, None), jnp.mean((X @ w - t) ** 2), rtol=0)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.floats(1e-3, 1e2), min_size=1, max_size=4, unique=True),
    st.integers(0, 3),
    st.sampled_from([0.0, 0.7]),
)
def test_the_prescribed_spectrum_is_found_again(eigenvalues, extra, minimum):
    k = len(eigenvalues)
    weights = np.linspace(0.5, 2.0, k)
    X, t = regression.with_spectrum(
        jax.random.key(3),
        eigenvalues,
        n=k + 1 + extra,
        d=k + extra,
        weights=weights,
        minimum=minimum,
    )
    found = Quadratic.from_regression(X, t)
    order = np.argsort(eigenvalues)
    expected = np.array(eigenvalues)[order]
    assert_close(found.eigenvalues, jnp.array(expected), rtol=1e-9)
    assert_close(found.minimum, minimum, rtol=1e-10)
    # Directions of near-equal eigenvalues mix; the sum of their weights does not.
    assert_close(jnp.sum(found.weights), np.sum(weights), rtol=1e-10)
    assert_close(found.loss(0.0, 1), np.sum(weights) + minimum, rtol=1e-10)


def bad_calls():
    key = jax.random.key(0)
    make = lambda *a, **k: regression.with_spectrum(key, *a, **k)
    return {
        "positive numbers": lambda: make([1.0, 0.0], n=3),
        "too small": lambda: make([1.0, 2.0], n=2, minimum=0.1),
        "must not be negative": lambda: make([1.0], n=2, weights=-1.0),
        "do not fit": lambda: least_squares(jnp.ones((3, 2)), jnp.ones(2)),
        "cast both": lambda: least_squares(jnp.ones((2, 2), int), jnp.ones(2)),
    }


@pytest.mark.parametrize("message", bad_calls())
def test_bad_input_is_a_value_error_that_says_what_to_do(message):
    from jaxtyping import TypeCheckError

    with pytest.raises((ValueError, TypeCheckError)):
        bad_calls()[message]()

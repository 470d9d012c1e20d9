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
    assert_close(recorded.scale, np.ones(1), rtol=0)
    assert recorded.constant.all()
    assert_close(recorded(X + 1.0), jnp.zeros((5, 1)), rtol=0)  # elsewhere too


@pytest.mark.parametrize(
    ("mean", "deviation"), [(100.0, 1.0), (300.0, 10.0), (1e7, 4.0)]
)
def test_a_float32_column_keeps_what_it_holds_however_many_rows(mean, deviation):
    draws = np.random.default_rng(0).normal(size=10**5)
    X = np.stack([draws, mean + deviation * draws], axis=1).astype("float32")
    Z, recorded = regression.standardize(jnp.asarray(X))
    exact = (X - np.mean(X, 0, np.float64)) / np.std(X, 0, np.float64)
    assert Z.dtype == "float32"
    assert not recorded.constant.any()
    assert_close(np.asarray(Z, np.float64), exact, rtol=1e-6, atol=1e-7)
    assert_close(np.std(Z, axis=0, dtype=np.float64), np.ones(2), rtol=1e-6)


def test_a_narrow_dtype_is_standardized_in_float64():
    X = jnp.linspace(0.0, 300.0, 1000).astype(jnp.bfloat16)[:, None]
    Z, recorded = regression.standardize(X)
    assert Z.dtype == jnp.bfloat16
    assert_close(recorded.scale, np.std(np.asarray(X, np.float64), 0), rtol=1e-13)


def test_rounding_of_the_last_place_is_no_information_and_one_more_place_is():
    one = np.array([0.1 + 0.2, 0.3, 0.3])[:, None]
    two = np.array([0.3, 0.3, 0.3 * (1 + 2**-50)])[:, None]
    assert regression.standardize(one)[1].constant.all()
    assert not regression.standardize(two)[1].constant.any()


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_extreme_units_neither_over_nor_underflow(scale):
    X, _ = random_regression(9, 2)
    Z, _ = regression.standardize(scale * np.asarray(X))
    assert_close(Z, regression.standardize(X)[0], rtol=1e-13)


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
        "column 1 of X": lambda: regression.standardize(np.array([[1.0, np.nan]])),
        "n ≥ 1": lambda: regression.standardize(np.ones((0, 2))),
        "outside of jit": lambda: jax.jit(regression.standardize)(jnp.ones((2, 2))),
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

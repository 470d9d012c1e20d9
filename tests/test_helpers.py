"""The helpers can fail."""

import jax.numpy as jnp
import pytest

from tests.helpers import assert_close, finite_difference


def test_assert_close_sees_a_difference_above_its_tolerance():
    assert_close({"a": jnp.ones(2)}, {"a": jnp.ones(2) + 1e-9}, rtol=1e-8)
    with pytest.raises(AssertionError):
        assert_close({"a": jnp.ones(2)}, {"a": jnp.ones(2) + 1e-7}, rtol=1e-8)


def test_finite_difference_of_a_cubic_is_its_derivative():
    slope = finite_difference(lambda h: h["a"] ** 3 * h["b"], {"a": 2.0, "b": 3.0})
    assert_close(slope, {"a": jnp.array(36.0), "b": jnp.array(8.0)}, rtol=1e-9)

"""Settings of every test: float64."""

import jax
import pytest

jax.config.update("jax_enable_x64", True)


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)

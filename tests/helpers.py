"""Slow, obvious references, and the comparisons that tests use."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree


def assert_close(actual: Any, expected: Any, *, rtol: float, atol: float = 0.0) -> None:
    """Leaf by leaf; structures must agree."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(e), rtol=rtol, atol=atol)


def finite_difference(function: Any, hyper: Any) -> Any:
    """Central differences in float64; error about eps^(2/3) of the function's scale."""
    flat, unravel = ravel_pytree(hyper)
    step = float(np.finfo(np.float64).eps) ** (1 / 3)

    def slope(index: int) -> float:
        shift = step * jnp.zeros_like(flat).at[index].set(1.0)
        up, down = function(unravel(flat + shift)), function(unravel(flat - shift))
        return float((up - down) / (2 * step))

    return unravel(jnp.array([slope(index) for index in range(flat.size)]))


def python_loop(loss, optimizer, params, hyper, steps, batches=None):
    """The run as one would write it without scan: a Python loop over optax updates."""
    tx = optax.with_extra_args_support(optimizer(hyper))
    state = tx.init(params)
    losses = []
    for step in range(steps):
        batch = jax.tree.map(lambda b, step=step: b[step], batches)
        value, grads = jax.value_and_grad(loss)(params, hyper, batch)
        losses.append(value)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, losses


def regression(n: int = 5, d: int = 8, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    """A small random regression, overparametrized by default."""
    rng = np.random.default_rng(seed)
    X = jnp.array(rng.normal(size=(n, d)) / np.sqrt(d))
    return X, jnp.array(rng.normal(size=n))

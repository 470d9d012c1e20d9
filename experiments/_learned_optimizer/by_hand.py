"""The same hypergradient in plain JAX: what metalr's is held against."""

from typing import Any

import jax
import jax.numpy as jnp

from experiments._learned_optimizer.problems import Drawn, Family, draw
from experiments._learned_optimizer.rule import AVERAGES, TIMES


def hypergradient(
    family: Family, dimension: int, keys: jax.Array, theta: Any
) -> tuple[jax.Array, Any]:
    """The mean loss along runs on problems drawn from the keys, and its gradient."""

    def outer(theta: Any) -> jax.Array:
        one = lambda key: along(family, draw(family, dimension, key), theta)
        return jnp.mean(jax.vmap(one)(keys))

    return jax.value_and_grad(outer)(theta)


def along(family: Family, problem: Drawn, theta: Any) -> jax.Array:
    """The mean loss of one run: one scan, no metalr and no optax."""
    root, start, key = problem

    def step(state: Any, index: jax.Array) -> tuple[Any, jax.Array]:
        w, averages, square = state
        drawn = jax.random.normal(jax.random.fold_in(key, index), w.shape, w.dtype)
        g = root.T @ (root @ w + family.noise * drawn)
        averages = [
            decay * a + (1 - decay) * g
            for decay, a in zip(AVERAGES, averages, strict=True)
        ]
        square = 0.99 * square + 0.01 * g * g
        scaled = [x / jnp.sqrt(jnp.mean(x**2) + 1e-12) for x in (g, *averages)]
        time = jnp.tanh(index / jnp.array(TIMES, w.dtype))
        features = [*scaled, averages[1] / jnp.sqrt(square + 1e-12)]
        features = jnp.stack([*features, *(jnp.full_like(w, t) for t in time)])
        hidden = jnp.maximum(theta["W"].T @ features + theta["b"][:, None], 0)
        direction, size = theta["V"].T @ hidden + theta["c"][:, None]
        w = w + 0.1 * direction * jnp.exp(size)
        return (w, averages, square), 0.5 * jnp.sum((root @ w) ** 2)

    zero = jnp.zeros_like(start)
    state = (start, [zero] * len(AVERAGES), zero)
    return jnp.mean(jax.lax.scan(step, state, jnp.arange(family.steps))[1])

"""What one writes without metalr: a `lax.scan` of optax, differentiated by JAX."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import metalr

Loop = Callable[[Any, Any, jax.Array], tuple[Any, Any]]
"""`loop(step, start, indices)`, as `jax.lax.scan`."""


def one_rate(objective: metalr.Unrolled) -> Callable[[jax.Array], Any]:
    """The value and its derivative in Adam's rate: `jax.jvp` of the scan."""

    def value(rate: jax.Array) -> jax.Array:
        optimizer = optax.adam(rate)

        def step(carry: Any, batch: Any) -> tuple[Any, None]:
            params, state = carry
            grads = jax.grad(objective.loss)(params, None, batch)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        start = objective.params, optimizer.init(objective.params)
        (params, _), _ = jax.lax.scan(step, start, objective.batches)
        return objective.loss(params, None, objective.batches[-1])

    return lambda rate: jax.jvp(value, (rate,), (jnp.ones_like(rate),))


def many_rates(objective: metalr.Unrolled, loop: Loop) -> Callable[[jax.Array], Any]:
    """The value and its gradient in a rate for each of Adam's steps."""

    def value(rates: jax.Array) -> jax.Array:
        def step(carry: Any, index: jax.Array) -> tuple[Any, None]:
            params, state = carry
            grads = jax.grad(objective.loss)(params, None, objective.batches[index])
            updates, state = optax.adam(rates[index]).update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        start = objective.params, optax.adam(0.0).init(objective.params)
        (params, _), _ = loop(step, start, jnp.arange(len(rates)))
        return objective.loss(params, None, objective.batches[-1])

    return jax.value_and_grad(value)


def scan_of_scans(step: Any, start: Any, indices: jax.Array) -> tuple[Any, Any]:
    """Two nested scans, the inner one under `jax.checkpoint`: about 2√T states."""
    piece = jax.checkpoint(lambda carry, part: jax.lax.scan(step, carry, part))
    return jax.lax.scan(piece, start, indices.reshape(pieces(len(indices))))


def pieces(steps: int) -> tuple[int, int]:
    """The two factors of `steps` that are nearest to each other."""
    fewer = max(n for n in range(1, math.isqrt(steps) + 1) if steps % n == 0)
    return fewer, steps // fewer

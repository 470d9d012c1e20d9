"""The same metagradient in plain JAX: what metalr's is held against."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments._example_weights.runs import Training


def metagradient(
    run: Training, steps: int, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The held-out loss after `steps` steps, and its gradient in the weights.

    `jax.grad` through a scan of scans: the states between the inner scans are stored;
    each inner one runs again in the backward pass and stores its own states then.
    """

    def value(weights: jax.Array) -> jax.Array:
        def step(carry: Any, start: jax.Array) -> tuple[Any, None]:
            params, state = carry
            rows = jax.lax.dynamic_slice(run.order, (start,), (run.batch,))
            examples = run.train.taken(rows)
            loss = lambda params: jnp.mean(weights[rows] * run.each(params, examples))
            grads = jax.grad(loss)(params)
            updates, state = run.optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        def segment(carry: Any, starts: jax.Array) -> tuple[Any, None]:
            return jax.lax.scan(jax.checkpoint(step), carry, starts)

        starts = run.batch * jnp.arange(steps).reshape(_segments(steps), -1)
        carry = run.params, run.optimizer.init(run.params)
        (params, _), _ = jax.lax.scan(jax.checkpoint(segment), carry, starts)
        return jnp.mean(run.each(params, run.held_out))

    return jax.value_and_grad(value)(weights)


def _segments(steps: int) -> int:
    """The largest divisor of T up to √T: a scan of scans needs one."""
    return max(k for k in range(1, int(steps**0.5) + 1) if steps % k == 0)

"""A learned update rule, as an optax transformation of its weights."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

AVERAGES = (0.5, 0.9, 0.99)
"""Decays of the averages of the gradient."""

TIMES = (3.0, 10.0, 30.0, 100.0)
"""Steps τ of the features tanh(t / τ)."""

_INPUTS = 2 + len(AVERAGES) + len(TIMES)


def first_rule(key: jax.Array, hidden: int, dtype: Any) -> dict[str, jax.Array]:
    """Random features and an output of 0: the first rule does not move."""
    hold = jax.random.normal(key, (_INPUTS, hidden), dtype) / _INPUTS**0.5
    zeros = lambda *shape: jnp.zeros(shape, dtype)
    return {"W": hold, "b": zeros(hidden), "V": zeros(hidden, 2), "c": zeros(2)}


def update_rule(theta: Any) -> optax.GradientTransformation:
    """The rule: `theta` are the weights of a network that all parameters share."""

    def init(params: Any) -> Any:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return jnp.zeros((), jnp.int32), (zeros,) * len(AVERAGES), zeros

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        del params, extra_args
        grads = updates
        count, averages, square = state
        blend = lambda decay, a, x: decay * a + (1.0 - decay) * x
        averages = tuple(
            jax.tree.map(lambda a, g, decay=decay: blend(decay, a, g), average, grads)
            for decay, average in zip(AVERAGES, averages, strict=True)
        )
        square = jax.tree.map(lambda a, g: blend(0.99, a, g * g), square, grads)
        updates = jax.tree.map(
            lambda g, v, *m: _move(theta, count, g, v, m), grads, square, *averages
        )
        return updates, (count + 1, averages, square)

    return optax.GradientTransformation(init, update)


def _move(theta: Any, count: Any, g: Any, v: Any, averages: Any) -> jax.Array:
    """The network at each parameter: a direction, and the logarithm of its size."""
    scaled = [x * jax.lax.rsqrt(jnp.mean(x * x) + 1e-12) for x in (g, *averages)]
    time = count.astype(g.dtype) / jnp.array(TIMES, g.dtype)
    time = jnp.broadcast_to(jnp.tanh(time), (*g.shape, len(TIMES)))
    each = jnp.stack([*scaled, averages[1] * jax.lax.rsqrt(v + 1e-12)], axis=-1)
    features = jnp.concatenate([each, time], axis=-1)
    hidden = jax.nn.relu(features @ theta["W"] + theta["b"])
    direction, size = jnp.moveaxis(hidden @ theta["V"] + theta["c"], -1, 0)
    return 0.1 * direction * jnp.exp(size)

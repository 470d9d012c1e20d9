"""The same hypergradient in plain JAX: what metalr's is held against."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from experiments._learned_schedule.recipe import Method, Problem, Sizes, entropy, init


def hypergradient(
    problem: Problem, method: Method, sizes: Sizes, keys: jax.Array, z: Any
) -> tuple[jax.Array, Any]:
    """The mean validation loss of runs drawn from the keys, and its gradient by z.

    Memory: the states at the ends of blocks of about √T steps, and those of one block.
    """
    steps = sizes.steps
    block = max(n for n in range(1, math.isqrt(steps) + 1) if steps % n == 0)

    def outer(z: Any) -> jax.Array:
        done = jnp.linspace(0.0, 1.0, steps, dtype=z["log_rate"].dtype)
        known = jnp.linspace(0.0, 1.0, len(z["log_rate"]), dtype=done.dtype)
        rates = jnp.interp(done, known, jnp.exp(z["log_rate"]))
        momenta = jnp.interp(done, known, jax.nn.sigmoid(z["logit_momentum"]))
        one = functools.partial(trained, problem, method, sizes, rates, momenta, block)
        return jnp.mean(jax.vmap(one)(keys))

    return jax.value_and_grad(outer)(z)


def trained(
    problem: Problem,
    method: Method,
    sizes: Sizes,
    rates: jax.Array,
    momenta: jax.Array,
    block: int,
    key: jax.Array,
) -> jax.Array:
    """The validation loss after one run."""
    start, noise = jax.random.split(key)
    params = init(start, problem, sizes.hidden)
    zeros = jax.tree.map(jnp.zeros_like, params)
    update = adam if method == "adam" else sgd

    def loss(w: Any, rows: jax.Array, key: jax.Array) -> jax.Array:
        shape = (sizes.batch, sizes.hidden)
        mask = jax.random.bernoulli(key, problem.keep, shape) / problem.keep
        hidden = jnp.tanh(problem.inputs[rows] @ w["W"] + w["b"]) * mask
        return entropy(hidden @ w["V"] + w["c"], problem.labels[rows])

    def step(state: Any, x: Any) -> tuple[Any, None]:
        params, moments = state
        index, rate, momentum = x
        drawn, dropped = jax.random.split(jax.random.fold_in(noise, index))
        rows = jax.random.randint(drawn, (sizes.batch,), 0, len(problem.labels))
        grads = jax.grad(loss)(params, rows, dropped)
        return update(params, moments, grads, index, rate, momentum), None

    @jax.checkpoint
    def steps_of_block(state: Any, xs: Any) -> tuple[Any, None]:
        return jax.lax.scan(step, state, xs)

    xs = (jnp.arange(sizes.steps), rates, momenta)
    blocks = jax.tree.map(lambda x: x.reshape(-1, block), xs)
    (w, _), _ = jax.lax.scan(steps_of_block, (params, (zeros, zeros)), blocks)
    hidden = jnp.tanh(problem.held_inputs @ w["W"] + w["b"])
    return entropy(hidden @ w["V"] + w["c"], problem.held_labels)


def adam(
    params: Any, moments: Any, grads: Any, index: Any, rate: Any, momentum: Any
) -> Any:
    """One step, with a square root that has the slope 0 at 0."""
    first, second = moments
    first = jax.tree.map(lambda m, g: momentum * m + (1 - momentum) * g, first, grads)
    second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, grads)
    of_first = 1 - momentum ** (index + 1)
    of_second = 1 - 0.999 ** (index + 1)

    def move(w: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
        seen = v > 0
        root = jnp.where(seen, jnp.sqrt(jnp.where(seen, v / of_second, 1.0)), 0.0)
        return w - rate * (m / of_first) / (root + 1e-8)

    return jax.tree.map(move, params, first, second), (first, second)


def sgd(
    params: Any, moments: Any, grads: Any, index: Any, rate: Any, momentum: Any
) -> Any:
    """One step of heavy ball."""
    del index
    trace, unused = moments
    trace = jax.tree.map(lambda m, g: momentum * m + g, trace, grads)
    moved = jax.tree.map(lambda w, m: w - rate * m, params, trace)
    return moved, (trace, unused)

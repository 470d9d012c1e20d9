"""The hypergradient as one writes it without metalr, and its outer steps."""

from typing import Any

import jax
import jax.numpy as jnp

from experiments._hyper_cleaning.problem import Problem, cross_entropy


def hypergradient(
    problem: Problem,
    params: list,
    weights: jax.Array,
    *,
    steps: int,
    rate: float,
    batch: int | None,
    key: Any,
) -> tuple[jax.Array, jax.Array]:
    """The validation loss after T steps with momentum 0.9, and its derivative."""

    def value(weights: jax.Array) -> jax.Array:
        def loss(params: list, index: jax.Array) -> jax.Array:
            rows = jnp.arange(len(weights))
            if batch is not None:
                drawn = jax.random.fold_in(key, index)
                rows = jax.random.randint(drawn, (batch,), 0, len(weights))
            inputs, labels = problem.inputs[rows], problem.given[rows]
            return jnp.mean(weights[rows] * cross_entropy(params, inputs, labels))

        def step(carry: tuple, index: jax.Array) -> tuple[tuple, None]:
            params, trace = carry
            slope = jax.grad(loss)(params, index)
            trace = jax.tree.map(lambda t, g: g + 0.9 * t, trace, slope)
            return (jax.tree.map(lambda w, t: w - rate * t, params, trace), trace), None

        start = params, jax.tree.map(jnp.zeros_like, params)
        end, _ = jax.lax.scan(step, start, jnp.arange(steps))[0]
        return jnp.mean(cross_entropy(end, *problem.validation))

    return jax.value_and_grad(value)(weights)

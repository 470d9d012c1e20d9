"""The same hypergradient in plain JAX: what metalr's is held against."""

from typing import Any

import jax
import jax.numpy as jnp

from experiments._distillation.recipe import Task
from experiments._settings.images import Labeled
from metalr.problems.network import NetworkLoss


def hypergradient(
    network: NetworkLoss, hyper: Any, drawn: Task, steps: int
) -> tuple[jax.Array, Any]:
    """The loss on real images after T steps on the learned ones, and its gradient."""

    def outer(hyper: Any) -> jax.Array:
        learned = Labeled(hyper["images"], jnp.arange(10))

        def step(params: Any, _: None) -> tuple[Any, None]:
            grads = jax.grad(entropy, argnums=1)(network, params, learned)
            move = lambda w, g: w - hyper["rate"] * g
            return jax.tree.map(move, params, grads), None

        end, _ = jax.lax.scan(step, drawn.start, length=steps)
        return entropy(network, end, drawn.real)

    return jax.value_and_grad(outer)(hyper)


def entropy(network: NetworkLoss, params: Any, data: Labeled) -> jax.Array:
    """Cross-entropy, the mean over images."""
    scores = jax.nn.log_softmax(network.apply(params, data.images))
    return -jnp.mean(jnp.take_along_axis(scores, data.labels[:, None], 1))

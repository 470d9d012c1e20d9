"""The models of all frameworks as plain functions: what they are held against."""

from typing import Any

import jax
import jax.numpy as jnp

from experiments._frameworks.model import Model, PlainParams, Shape

MOMENTUM = 0.9
"""Of the running statistics, in every model that has them."""
EPSILON = 1e-5


def dropped(hidden: jax.Array, key: jax.Array | None, rate: float) -> jax.Array:
    """Dropout; none without a key."""
    if key is None:
        return hidden
    kept = jax.random.bernoulli(key, 1.0 - rate, hidden.shape)
    return jnp.where(kept, hidden / (1.0 - rate), 0.0)


def model(other: Model, shape: Shape) -> Model:
    """The same model as `other`, with the same parameters."""
    params = other.to_plain(other.params)
    normed = "scale" in params
    state = None
    if normed:
        zeros = jnp.zeros_like(params["scale"])
        state = {"mean": zeros, "variance": jnp.ones_like(zeros)}

    def logits(
        params: PlainParams, state: Any, inputs: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, Any]:
        hidden = inputs @ params["w1"] + params["b1"]
        if normed:
            used = state
            if key is not None:
                used = {"mean": hidden.mean(0), "variance": hidden.var(0)}
                step = lambda old, new: MOMENTUM * old + (1.0 - MOMENTUM) * new
                state = jax.tree.map(step, state, used)
            deviation = jnp.sqrt(used["variance"] + EPSILON)
            hidden = (hidden - used["mean"]) / deviation
            hidden = hidden * params["scale"] + params["bias"]
        hidden = dropped(jax.nn.relu(hidden), key, shape.dropout)
        return hidden @ params["w2"] + params["b2"], state

    return Model(params, state, logits, lambda params: params)

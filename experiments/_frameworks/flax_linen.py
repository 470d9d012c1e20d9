"""flax linen: `params` are trained, `batch_stats` are the model's state."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen

from experiments._frameworks.model import Model, PlainParams, Shape
from experiments._frameworks.plain import EPSILON, MOMENTUM


class Network(linen.Module):
    """Dense, batch norm, ReLU, dropout, dense."""

    shape: Shape

    @linen.compact
    def __call__(self, inputs: jax.Array, key: jax.Array | None) -> jax.Array:
        """Logits; in training if there is a key."""
        hidden = linen.Dense(self.shape.hidden, name="first")(inputs)
        hidden = linen.BatchNorm(
            key is None, momentum=MOMENTUM, epsilon=EPSILON, name="norm"
        )(hidden)
        dropout = linen.Dropout(self.shape.dropout, deterministic=key is None)
        hidden = dropout(jax.nn.relu(hidden), rng=key)
        return linen.Dense(self.shape.classes, name="second")(hidden)


def model(shape: Shape, seed: int) -> Model:
    """Take the network apart."""
    network = Network(shape)
    made = network.init(jax.random.key(seed), jnp.zeros((1, shape.inputs)), None)

    def logits(
        params: Any, state: Any, inputs: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, Any]:
        variables = {"params": params, "batch_stats": state}
        found, new = network.apply(variables, inputs, key, mutable=["batch_stats"])
        return found, new["batch_stats"]

    return Model(made["params"], made["batch_stats"], logits, to_plain)


def to_plain(params: Any) -> PlainParams:
    """Under the names of `plain`."""
    first, second, norm = params["first"], params["second"], params["norm"]
    return {
        "w1": first["kernel"],
        "b1": first["bias"],
        "scale": norm["scale"],
        "bias": norm["bias"],
        "w2": second["kernel"],
        "b2": second["bias"],
    }

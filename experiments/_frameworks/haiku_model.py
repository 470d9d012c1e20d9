"""haiku: `hk.transform` makes the two functions."""

from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from experiments._frameworks.model import Model, PlainParams, Shape


def model(shape: Shape, seed: int) -> Model:
    """Dense, ReLU, dropout, dense, taken apart."""

    def network(inputs: jax.Array, key: jax.Array | None) -> jax.Array:
        hidden = jax.nn.relu(hk.Linear(shape.hidden, name="first")(inputs))
        if key is not None:
            hidden = hk.dropout(key, shape.dropout, hidden)
        return hk.Linear(shape.classes, name="second")(hidden)

    init, apply = hk.without_apply_rng(hk.transform(network))
    params = init(jax.random.key(seed), jnp.zeros((1, shape.inputs)), None)

    def logits(
        params: Any, state: None, inputs: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, None]:
        return apply(params, inputs, key), state

    return Model(params, None, logits, to_plain)


def to_plain(params: Any) -> PlainParams:
    """Under the names of `plain`."""
    first, second = params["first"], params["second"]
    return {"w1": first["w"], "b1": first["b"], "w2": second["w"], "b2": second["b"]}

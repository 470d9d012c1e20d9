"""equinox: the module is the pytree; `eqx.partition` sets its functions aside."""

from typing import Any

import equinox as eqx
import jax

from experiments._frameworks.model import Model, PlainParams, Shape


class Network(eqx.Module):
    """Dense, ReLU, dropout, dense."""

    first: eqx.nn.Linear
    second: eqx.nn.Linear
    dropout: eqx.nn.Dropout

    def __init__(self, shape: Shape, key: jax.Array) -> None:
        first, second = jax.random.split(key)
        self.first = eqx.nn.Linear(shape.inputs, shape.hidden, key=first)
        self.second = eqx.nn.Linear(shape.hidden, shape.classes, key=second)
        self.dropout = eqx.nn.Dropout(shape.dropout)

    def __call__(self, inputs: jax.Array, key: jax.Array | None) -> jax.Array:
        """Logits; in training if there is a key."""
        hidden = jax.nn.relu(jax.vmap(self.first)(inputs))
        hidden = self.dropout(hidden, key=key, inference=key is None)
        return jax.vmap(self.second)(hidden)


def model(shape: Shape, seed: int) -> Model:
    """Take the network apart."""
    network = Network(shape, jax.random.key(seed))
    params, rest = eqx.partition(network, eqx.is_inexact_array)

    def logits(
        params: Any, state: None, inputs: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, None]:
        return eqx.combine(params, rest)(inputs, key), state

    return Model(params, None, logits, to_plain)


def to_plain(params: Any) -> PlainParams:
    """Under the names of `plain`."""
    first, second = params.first, params.second
    return {
        "w1": first.weight.T,
        "b1": first.bias,
        "w2": second.weight.T,
        "b2": second.bias,
    }

"""flax nnx: `nnx.split` into structure, parameters and statistics; `nnx.merge` back.

`nnx.BatchNorm` stops the gradient of its running statistics: the run is the same, but
the derivatives of a loss in evaluation mode leave a path out, silently. `Norm` is the
same layer without that.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from experiments._frameworks.model import Model, PlainParams, Shape
from experiments._frameworks.plain import EPSILON, MOMENTUM


class Norm(nnx.Module):
    """Batch norm whose running statistics are differentiated."""

    def __init__(self, features: int) -> None:
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.var = nnx.BatchStat(jnp.ones(features))

    def __call__(self, inputs: jax.Array, *, use_running_average: bool) -> jax.Array:
        """Normalize by the batch, or by the running statistics."""
        if use_running_average:
            mean, var = self.mean[...], self.var[...]
        else:
            mean, var = inputs.mean(0), inputs.var(0)
            self.mean[...] = MOMENTUM * self.mean[...] + (1.0 - MOMENTUM) * mean
            self.var[...] = MOMENTUM * self.var[...] + (1.0 - MOMENTUM) * var
        normal = (inputs - mean) / jnp.sqrt(var + EPSILON)
        return normal * self.scale[...] + self.bias[...]


class Network(nnx.Module):
    """Dense, batch norm, ReLU, dropout, dense."""

    def __init__(self, shape: Shape, norm: nnx.Module, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(shape.inputs, shape.hidden, rngs=rngs)
        self.norm = norm
        self.dropout = nnx.Dropout(shape.dropout)
        self.second = nnx.Linear(shape.hidden, shape.classes, rngs=rngs)

    def __call__(self, inputs: jax.Array, key: jax.Array | None) -> jax.Array:
        """Logits; in training if there is a key."""
        hidden = self.norm(self.first(inputs), use_running_average=key is None)
        hidden = self.dropout(jax.nn.relu(hidden), deterministic=key is None, rngs=key)
        return self.second(hidden)


def model(shape: Shape, seed: int) -> Model:
    """The network with statistics that are differentiated, taken apart."""
    return apart(Network(shape, Norm(shape.hidden), nnx.Rngs(seed)))


def as_shipped(shape: Shape, seed: int) -> Model:
    """The network with flax's own batch norm, taken apart."""
    rngs = nnx.Rngs(seed)
    norm = nnx.BatchNorm(shape.hidden, momentum=MOMENTUM, epsilon=EPSILON, rngs=rngs)
    return apart(Network(shape, norm, rngs))


def apart(network: Network) -> Model:
    """Structure, parameters and statistics."""
    graph, params, state = nnx.split(network, nnx.Param, nnx.BatchStat)

    def logits(
        params: Any, state: Any, inputs: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, Any]:
        network = nnx.merge(graph, params, state)
        found = network(inputs, key)
        return found, nnx.to_pure_dict(nnx.state(network, nnx.BatchStat))

    return Model(nnx.to_pure_dict(params), nnx.to_pure_dict(state), logits, to_plain)


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

"""The tasks of Finn et al. 2017: sinusoids to be learned from a few points."""

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

Params: TypeAlias = dict[str, Any]


class Points(NamedTuple):
    """Inputs and targets."""

    x: jax.Array
    y: jax.Array


class Sinusoid(NamedTuple):
    """A task: a few points to adapt to, and points to be judged by."""

    support: Points
    query: Points


class Family(NamedTuple):
    """The distribution of tasks: y = A sin(ωx + φ), all uniform."""

    support: int  # points
    query: int
    frequency: tuple[float, float] = (1.0, 1.0)
    dtype: str = "float32"

    def draw(self, key: jax.Array) -> Sinusoid:
        """A sinusoid and its points."""
        of_task, of_support, of_query = jax.random.split(key, 3)
        low = jnp.array([0.1, 0.0, self.frequency[0]], self.dtype)
        high = jnp.array([5.0, jnp.pi, self.frequency[1]], self.dtype)
        unit = jax.random.uniform(of_task, (3,), self.dtype)
        amplitude, phase, frequency = low + (high - low) * unit

        def points(key: jax.Array, count: int) -> Points:
            x = jax.random.uniform(key, (count,), self.dtype, -5.0, 5.0)
            return Points(x, amplitude * jnp.sin(frequency * x + phase))

        return Sinusoid(points(of_support, self.support), points(of_query, self.query))


def network(key: jax.Array, dtype: str, width: int = 40) -> Params:
    """The 1-40-40-1 network: truncated normal weights of deviation 1/√fan-in."""
    sizes = [(1, width), (width, width), (width, 1)]
    init = jax.nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
    layers = [
        {"w": init(key, shape, dtype), "b": jnp.zeros(shape[1], dtype)}
        for key, shape in zip(jax.random.split(key, 3), sizes, strict=True)
    ]
    return {"body": layers[:2], "head": layers[2]}


def error(params: Params, points: Points) -> jax.Array:
    """The mean squared error of the network."""
    hidden = points.x[:, None]
    for layer in params["body"]:
        hidden = jax.nn.relu(hidden @ layer["w"] + layer["b"])
    found = hidden @ params["head"]["w"] + params["head"]["b"]
    return jnp.mean((found[:, 0] - points.y) ** 2)

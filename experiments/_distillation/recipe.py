"""Distillation with metalr: the inner loss, the outer loss, the run."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

import metalr
from experiments._settings.images import Labeled
from metalr.convnet import Conv, Dense, Pool
from metalr.problems.network import NetworkLoss

NETWORKS = {
    "mlp": (Dense(64), Dense(10)),
    "lenet": (
        *(Conv(6, 5), Pool(2), Conv(16, 5), Pool(2)),
        *(Dense(120), Dense(84), Dense(10)),
    ),
}


class Task(NamedTuple):
    """What an outer step draws: where training starts, and real images to judge by."""

    start: Any
    real: Labeled


def task(network: NetworkLoss, start: Any, batch: int, key: jax.Array) -> Task:
    """The fixed start, or a new one where it is None; images from all there are."""
    init_key, batch_key = jax.random.split(key)
    n = len(network.labels)
    rows = jax.random.randint(batch_key, (min(batch, n),), 0, n)
    real = Labeled(network.inputs[rows], network.labels[rows])
    return Task(network.init(init_key) if start is None else start, real)


def objective(network: NetworkLoss, drawn: Task, steps: int) -> metalr.Unrolled:
    """The loss on real images after T steps on the learned ones."""
    return metalr.Unrolled(
        Partial(on_images, network),
        descent,
        drawn.start,
        steps=steps,
        outer_loss=Partial(on_real, network, drawn.real),
    )


def on_images(network: NetworkLoss, params: Any, hyper: Any, batch: Any) -> jax.Array:
    """The inner loss: cross-entropy on the ten learned images."""
    del batch
    return cross_entropy(network, params, Labeled(hyper["images"], jnp.arange(10)))


def on_real(network: NetworkLoss, data: Labeled, params: Any, hyper: Any) -> jax.Array:
    """The outer loss."""
    del hyper
    return cross_entropy(network, params, data)


def descent(hyper: Any) -> optax.GradientTransformation:
    """Gradient descent at the learned rate."""
    return optax.sgd(hyper["rate"])


def cross_entropy(network: NetworkLoss, params: Any, data: Labeled) -> jax.Array:
    """The mean over images."""
    logits = network.apply(params, data.images)
    return jnp.mean(
        optax.softmax_cross_entropy_with_integer_labels(logits, data.labels)
    )


def class_means(network: NetworkLoss) -> jax.Array:
    """Ten images to start from."""
    ones = [1] * (network.inputs.ndim - 1)
    of_class = lambda label: jnp.mean(
        network.inputs, axis=0, where=(network.labels == label).reshape(-1, *ones)
    )
    return jax.vmap(of_class)(jnp.arange(10))

"""What ten learned images are held against: ten real ones, and all of them."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

import metalr
from experiments._distillation.recipe import Task, objective
from experiments._settings.images import Labeled
from metalr.problems.network import NetworkLoss

_BATCH = 64
"""Images in a step of training on everything."""


def starts_of(network: NetworkLoss, start: Any, key: jax.Array, count: int) -> Any:
    """Starts for a test, along a leading axis: new ones, or the one that is known."""
    if start is None:
        return jax.vmap(network.init)(jax.random.split(key, count))
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), start)


def accuracies(
    network: NetworkLoss, hyper: Any, starts: Any, test: Labeled, steps: int
) -> jax.Array:
    """Test accuracy after T steps on given images, from each start."""
    one = lambda start: _accuracy(network, hyper, start, test, steps)
    return jax.jit(lambda starts: jax.lax.map(one, starts))(starts)


def ten_real(network: NetworkLoss, key: jax.Array, count: int) -> jax.Array:
    """Ten real images, one of each class, drawn `count` times."""

    def draw(key: jax.Array) -> jax.Array:
        rows = jax.random.permutation(key, len(network.labels))
        first = lambda label: rows[jnp.argmax(network.labels[rows] == label)]
        return network.inputs[jax.vmap(first)(jnp.arange(10))]

    return jax.vmap(draw)(jax.random.split(key, count))


def best_of_real(
    network: NetworkLoss, images: jax.Array, starts: Any, test: Labeled, steps: int
) -> tuple[jax.Array, float]:
    """Accuracies after training on real images, at the best of 13 rates; that rate.

    The rate is chosen by the accuracy on the tests themselves, in their favor.

    Args:
        network: what is trained.
        images: (count, 10, …), for each start ten of its own.
        starts: along a leading axis.
        test: what the accuracy is of.
        steps: T.
    """

    def at(rate: jax.Array) -> jax.Array:
        def one(case: Any) -> jax.Array:
            start, ten = case
            hyper = {"images": ten, "rate": rate}
            return _accuracy(network, hyper, start, test, steps)

        return jax.lax.map(one, (starts, images))

    rates = jnp.logspace(-3.0, 0.0, 13, dtype=images.dtype)
    found = jax.jit(lambda rates: jax.lax.map(at, rates))(rates)
    best = int(jnp.argmax(jnp.mean(found, axis=1)))
    return found[best], float(rates[best])


def full_training(
    network: NetworkLoss, start: Any, test: Labeled, epochs: int, key: jax.Array
) -> float:
    """Test accuracy after Adam at 1e-3 on all images, in batches of 64."""
    n = len(network.labels)
    training = metalr.Unrolled(
        network,
        optax.adam,
        start,
        steps=max(1, epochs * n // _BATCH),
        batches=Partial(_rows, key, jnp.arange(n)),
    )
    params = training.final_params(jnp.asarray(1e-3, network.inputs.dtype))
    return float(network.accuracy(params, test.images, test.labels))


def _rows(key: jax.Array, all_rows: jax.Array, index: jax.Array) -> jax.Array:
    return jax.random.choice(jax.random.fold_in(key, index), all_rows, (_BATCH,))


def _accuracy(
    network: NetworkLoss, hyper: Any, start: Any, test: Labeled, steps: int
) -> jax.Array:
    run = objective(network, Task(start, test), steps)
    return network.accuracy(run.final_params(hyper), test.images, test.labels)

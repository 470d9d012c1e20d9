r"""Trainings whose hyperparameters are the weights of their examples.

$$\ell(p, w, b) = \frac1{|b|}\sum_{i\in b} w_i\,\ell_i(p), \qquad
  L(w) = \frac1m\sum_{j}\ell_j(p_T(w))$$

with j over held-out examples. A batch is gathered by index within its step: T batches
are never in memory.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

import metalr
from metalr import convnet


class Data(NamedTuple):
    """Examples, as arrays with one leading axis."""

    inputs: Any
    labels: Any

    def taken(self, rows: Any) -> "Data":
        """Some of the examples."""
        return Data(self.inputs[rows], self.labels[rows])


class Training(NamedTuple):
    """What is trained, and on what."""

    each: Callable[[Any, Data], jax.Array]  # the loss of each example
    hits: Callable[[Any, Data], jax.Array]  # the part of labels (tokens) that is right
    optimizer: optax.GradientTransformation
    params: Any
    train: Data
    held_out: Data  # the outer loss
    test: Data  # seen by no derivative
    batch: int
    order: jax.Array  # of examples, epoch after epoch


def objective(run: Training, steps: int) -> metalr.Unrolled:
    """L(w): the held-out loss after `steps` steps on weighted examples."""

    def loss(params: Any, weights: jax.Array, batch: Any) -> jax.Array:
        rows, examples = batch
        return jnp.mean(weights[rows] * run.each(params, examples))

    def batches(order: jax.Array, data: Data, index: jax.Array) -> Any:
        start = index * run.batch
        rows = jax.lax.dynamic_slice(order, (start,), (run.batch,))
        return rows, data.taken(rows)

    def held_out_loss(data: Data, params: Any, weights: jax.Array) -> jax.Array:
        del weights
        return jnp.mean(run.each(params, data))

    return metalr.Unrolled(
        loss,
        lambda _: run.optimizer,
        run.params,
        steps=steps,
        batches=Partial(batches, run.order, run.train),
        outer_loss=Partial(held_out_loss, run.held_out),
    )


def uniform(run: Training) -> jax.Array:
    """Every example counts once."""
    dtype = jax.tree.leaves(run.params)[0].dtype
    return jnp.ones(len(run.train.labels), dtype)


def epochs(seed: int, n: int, count: int) -> jax.Array:
    """`count` examples, each epoch another permutation of all n."""
    rng = np.random.default_rng(seed)
    rounds = -(-count // n)
    drawn = np.concatenate([rng.permutation(n) for _ in range(rounds)])
    return jnp.asarray(drawn[:count], jnp.int32)


def layers(channels: int, pooling: Any, shrink: int = 1) -> tuple[convnet.Layer, ...]:
    """Two convolutions, each followed by a pool, and a dense layer.

    Where `shrink` is above 1, the images are averaged over such squares first.
    """
    first = (convnet.Pool(shrink, kind="average"),) if shrink > 1 else ()
    return (
        *first,
        convnet.Conv(channels, 3),
        convnet.Pool(2, kind=pooling),
        convnet.Conv(2 * channels, 3),
        convnet.Pool(2, kind=pooling),
        convnet.Dense(10),
    )


def classification(
    parts: Sequence[Data],
    network: Sequence[convnet.Layer],
    *,
    activation: Callable[[Any], Any],
    optimizer: optax.GradientTransformation,
    batch: int,
    steps: int,
    seed: int,
) -> Training:
    """A conv net on labeled images; `parts` are training, held-out and test data."""
    train, held_out, test = parts
    shape, dtype = train.inputs.shape[1:], train.inputs.dtype

    def logits(params: Any, data: Data) -> jax.Array:
        return convnet.apply(network, params, data.inputs, activation=activation)

    def each(params: Any, data: Data) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(
            logits(params, data), data.labels
        )

    def hits(params: Any, data: Data) -> jax.Array:
        return jnp.mean(jnp.argmax(logits(params, data), axis=-1) == data.labels)

    return Training(
        each,
        hits,
        optimizer,
        convnet.init(jax.random.key(seed), network, shape, dtype=dtype),
        train,
        held_out,
        test,
        batch,
        epochs(seed, len(train.labels), batch * steps),
    )

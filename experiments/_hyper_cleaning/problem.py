"""Classification with wrong labels: the data, the model, and a weight an example."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

import metalr


class Problem(NamedTuple):
    """Training examples of which some labels are wrong, and clean ones beside them."""

    inputs: jax.Array  # (n, pixels)
    given: jax.Array  # (n,) labels, some of them wrong
    true: jax.Array  # (n,)
    wrong: np.ndarray  # (n,) bool
    validation: tuple[jax.Array, jax.Array]
    test: tuple[jax.Array, jax.Array]
    classes: int


def corrupted(
    train: Any, test: Any, *, part: float, wrong: float, seed: int
) -> Problem:
    """`part` of the training set gets `wrong` of its labels exchanged for others.

    The rest of it is the validation set, which stays as it is.
    """
    flat = lambda images: jnp.reshape(images, (images.shape[0], -1))
    n = int(part * len(train.labels))
    rng = np.random.default_rng(seed)
    true = np.asarray(train.labels)[:n]
    classes = int(jnp.max(train.labels)) + 1
    flipped = np.zeros(n, bool)
    flipped[rng.permutation(n)[: round(wrong * n)]] = True
    other = (true + rng.integers(1, classes, n)) % classes
    given = np.where(flipped, other, true)
    return Problem(
        flat(train.images[:n]),
        jnp.asarray(given),
        jnp.asarray(true),
        flipped,
        (flat(train.images[n:]), train.labels[n:]),
        (flat(test.images), test.labels),
        classes,
    )


def network(sizes: tuple[int, ...], *, seed: int, dtype: str) -> list:
    """Weights and biases, hidden units sigmoid; of a softmax regression they are 0."""
    keys = jax.random.split(jax.random.key(seed), len(sizes))
    pairs = list(itertools.pairwise(sizes))
    scale = lambda rows: 0.0 if len(pairs) == 1 else np.sqrt(1.0 / rows)
    return [
        (
            scale(rows) * jax.random.normal(key, (rows, columns), dtype),
            jnp.zeros(columns, dtype),
        )
        for key, (rows, columns) in zip(keys, pairs, strict=False)
    ]


def logits(params: list, inputs: jax.Array) -> jax.Array:
    """The network's outputs."""
    *hidden, (matrix, bias) = params
    for weights, offsets in hidden:
        inputs = jax.nn.sigmoid(inputs @ weights + offsets)
    return inputs @ matrix + bias


def cross_entropy(params: list, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    """One number an example."""
    scores = logits(params, inputs)
    return optax.softmax_cross_entropy_with_integer_labels(scores, labels)


def weighted_loss(
    inputs: jax.Array, labels: jax.Array, params: list, weights: Any, rows: Any
) -> jax.Array:
    """The inner loss: the weighted mean over a minibatch `rows`, or over all."""
    if rows is not None:
        inputs, labels, weights = inputs[rows], labels[rows], weights[rows]
    return jnp.mean(weights * cross_entropy(params, inputs, labels))


def validation_loss(
    inputs: jax.Array, labels: jax.Array, params: list, weights: Any
) -> jax.Array:
    """The outer loss: clean examples, each of weight 1."""
    del weights
    return jnp.mean(cross_entropy(params, inputs, labels))


def unrolled(
    problem: Problem,
    params: list,
    *,
    steps: int,
    optimizer: optax.GradientTransformation,
    batch: int | None,
    seed: int,
) -> metalr.Unrolled:
    """The validation loss after T inner steps, as a function of the weights."""
    return metalr.Unrolled(
        Partial(weighted_loss, problem.inputs, problem.given),
        lambda _: optimizer,
        params,
        steps=steps,
        batches=None if batch is None else sampler(len(problem.given), batch, seed),
        outer_loss=Partial(validation_loss, *problem.validation),
    )


def sampler(n: int, size: int, seed: int) -> Callable[[Any], jax.Array]:
    """Rows of minibatch `index`, drawn with a key that is folded with it."""
    key = jax.random.key(seed)

    def rows(key: jax.Array, index: Any) -> jax.Array:
        return jax.random.randint(jax.random.fold_in(key, index), (size,), 0, n)

    return Partial(rows, key)


def capped(limit: float) -> Callable[[jax.Array], jax.Array]:
    r"""The projection onto $\{0 \le \lambda_i \le 1,\; \sum_i \lambda_i \le R\}$.

    $\lambda = \mathrm{clip}(z - \tau, 0, 1)$ with the least $\tau \ge 0$ that meets
    the limit, found by bisection.
    """

    def project(z: jax.Array) -> jax.Array:
        total = lambda shift: jnp.sum(jnp.clip(z - shift, 0.0, 1.0))

        def halve(_: Any, bracket: tuple) -> tuple:
            low, high = bracket
            middle = 0.5 * (low + high)
            above = total(middle) > limit
            return jnp.where(above, middle, low), jnp.where(above, high, middle)

        bracket = jnp.zeros((), z.dtype), jnp.maximum(jnp.max(z), 0.0)
        _, shift = jax.lax.fori_loop(0, 60, halve, bracket)
        shift = jnp.where(total(0.0) > limit, shift, 0.0)
        return jnp.clip(z - shift, 0.0, 1.0)

    return project


def f1(said: np.ndarray, truth: np.ndarray) -> float:
    """Harmonic mean of precision and recall; 0 where nothing is found."""
    found = int(np.sum(said & truth))
    return 2.0 * found / max(int(said.sum()) + int(truth.sum()), 1)


def accuracy(params: list, inputs: jax.Array, labels: jax.Array) -> float:
    """The part of the examples that are classified rightly."""
    return float(jnp.mean(jnp.argmax(logits(params, inputs), axis=1) == labels))

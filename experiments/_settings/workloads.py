"""Inner problems of several sizes, for the experiments on memory and time."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

import metalr
from experiments._settings.data import BundledData, load_regression
from metalr.convnet import Conv, Dense, Pool
from metalr.problems import classifier, least_squares

Problem: TypeAlias = Literal["regression", "mlp_momentum", "mlp_adam", "conv_adam"]
Learned: TypeAlias = Literal["scalar", "per_step"]


class Workload(NamedTuple):
    """An inner problem for every horizon, and the point in the hyperparameters."""

    make: Callable[[int], metalr.Unrolled]
    hyper: Callable[[int], Any]


def workload(problem: Problem, learned: Learned, *, dtype: str, seed: int) -> Workload:
    """Build one of the problems, with one rate or one rate for each step.

    `regression`: diabetes, gradient descent, full batch. The others classify digits in
    minibatches of 64: an MLP 64-32-10 with momentum 0.9 or Adam, a conv net (conv3-8,
    pool, conv3-16, pool, dense) with Adam.
    """
    if problem == "regression":
        X, t, _ = load_regression(BundledData(), seed=seed, dtype=dtype)
        loss, params, rate = least_squares(X, t), jnp.zeros_like(X[0]), 0.05
        optimizer, batches = optax.sgd, lambda _: None
    else:
        loss, batches = _digits(problem, dtype, seed)
        params = loss.init(jax.random.key(seed))
        momentum = problem == "mlp_momentum"
        optimizer = _momentum if momentum else optax.adam
        rate = 0.05 if momentum else 1e-3
    per_step = learned == "per_step"
    if per_step:
        optimizer = metalr.per_step(optimizer)

    def make(steps: int) -> metalr.Unrolled:
        return metalr.Unrolled(
            loss, optimizer, params, steps=steps, batches=batches(steps)
        )

    def hyper(steps: int) -> jax.Array:
        return jnp.full((steps,) if per_step else (), rate, dtype)

    return Workload(make, hyper)


def _momentum(rate: Any) -> optax.GradientTransformation:
    return optax.sgd(rate, momentum=0.9)


def _digits(problem: Problem, dtype: str, seed: int) -> tuple[Any, Any]:
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    images = jnp.asarray(digits.images / 16.0, dtype)
    conv = [Conv(8, 3), Pool(2), Conv(16, 3), Pool(2), Dense(10)]
    layers, inputs = (
        (conv, images[..., None])
        if problem == "conv_adam"
        else ([Dense(32), Dense(10)], images.reshape(len(images), -1))
    )
    key = jax.random.key(seed)

    def batches(steps: int) -> jax.Array:
        return jax.random.randint(key, (steps, 64), 0, len(images))

    return classifier(layers, inputs, jnp.asarray(digits.target)), batches

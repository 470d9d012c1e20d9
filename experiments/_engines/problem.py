"""The problem of most parts: an MLP 784-hidden-10 in minibatches, made-up data."""

import dataclasses
from typing import Any

import jax

import metalr
from experiments._engines.options import Options
from metalr.convnet import Dense
from metalr.problems import classifier


def mlp(options: Options, optimizer: Any, steps: int) -> metalr.Unrolled:
    """`steps` steps of an optimizer on it."""
    keys = jax.random.split(jax.random.key(options.seed), 4)
    inputs = jax.random.normal(keys[0], (2000, 784), options.dtype)
    labels = jax.random.randint(keys[1], (2000,), 0, 10)
    loss = classifier([Dense(options.hidden), Dense(10)], inputs, labels)
    batches = jax.random.randint(keys[2], (steps, options.batch), 0, 2000)
    return metalr.Unrolled(
        loss, optimizer, loss.init(keys[3]), steps=steps, batches=batches
    )


def unguarded(objective: metalr.Unrolled) -> metalr.Unrolled:
    """As JAX differentiates it: cheaper, and nan where a coordinate is dead."""
    return dataclasses.replace(objective, guarded=False)

"""What the models learn: a rate and example weights, through training on digits."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import metalr
from experiments._command.experiment import ConfigError
from experiments._frameworks.model import Model


class Digits(NamedTuple):
    """Images as rows, and labels."""

    inputs: jax.Array
    labels: jax.Array


class Batch(NamedTuple):
    """Rows of a step, and the key of its dropout."""

    rows: jax.Array
    key: jax.Array


def objective(
    model: Model,
    training: Digits,
    held_out: Digits,
    *,
    steps: int,
    batch: int,
    seed: int,
) -> metalr.Unrolled:
    """The held-out cross-entropy after training, of rate and example weights."""
    sample, drop = jax.random.split(jax.random.key(seed))
    rows = jax.random.randint(sample, (steps, batch), 0, len(training.labels))
    stateful = model.state is not None

    def loss(params: Any, hyper: Any, drawn: Batch, state: Any = None) -> Any:
        inputs, labels = jax.tree.map(lambda x: x[drawn.rows], training)
        logits, state = model.logits(params, state, inputs, drawn.key)
        value = jnp.mean(hyper["weights"][drawn.rows] * entropy(logits, labels))
        return (value, state) if stateful else value

    def outer_loss(params: Any, hyper: Any, state: Any = None) -> jax.Array:
        del hyper
        logits, _ = model.logits(params, state, held_out.inputs, None)
        return jnp.mean(entropy(logits, held_out.labels))

    return metalr.Unrolled(
        loss,
        momentum,
        model.params,
        steps=steps,
        batches=Batch(rows, jax.random.split(drop, steps)),
        # By the number of parameters, the loss of a model with state or without it.
        outer_loss=outer_loss if stateful else partial(outer_loss, state=None),
        model_state=model.state,
    )


entropy = optax.softmax_cross_entropy_with_integer_labels


def momentum(hyper: Any) -> optax.GradientTransformation:
    """SGD of the learned rate."""
    return optax.sgd(hyper["rate"], 0.9)


def digits(examples: int, dtype: str) -> tuple[Digits, Digits]:
    """The first examples of scikit-learn's digits, for training and held out."""
    from sklearn.datasets import load_digits

    inputs, labels = load_digits(return_X_y=True)
    if examples > len(labels):
        msg = f"examples = {examples}: the data has only {len(labels)}"
        raise ConfigError(msg)
    half = examples // 2
    inputs, labels = jnp.asarray(inputs / 16.0, dtype), jnp.asarray(labels)
    parts = [slice(0, half), slice(half, examples)]
    training, held_out = (Digits(inputs[part], labels[part]) for part in parts)
    return training, held_out

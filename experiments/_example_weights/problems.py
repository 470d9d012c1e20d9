"""The trainings that a config describes, and the engines for them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metalr
from experiments._command.experiment import ConfigError
from experiments._example_weights import runs, text
from experiments._example_weights.settings import Settings


def engines(config: Settings) -> tuple[metalr.Mixed, metalr.Reverse]:
    """Two that are exact and keep few states."""
    return (
        metalr.Mixed(checkpoints=config.checkpoints),
        metalr.Reverse(checkpoints=config.checkpoints),
    )


def vision(config: Settings, labels: Any = None, **changed: Any) -> runs.Training:
    """The conv net, with other labels or with some of its options changed."""
    setting = config.vision.model_copy(update=changed)
    train, held_out, test = _split(config)
    if labels is not None:
        train = train._replace(labels=jnp.asarray(labels))
    return runs.classification(
        (train, held_out, test),
        runs.layers(setting.channels, setting.pooling, setting.shrink),
        activation=jnp.tanh
        if setting.activation == "tanh"
        else getattr(jax.nn, setting.activation),
        optimizer=optax.sgd(setting.learning_rate, momentum=setting.momentum),
        batch=setting.batch,
        steps=setting.steps,
        seed=config.seed,
    )


def poisoned(config: Settings) -> tuple[runs.Training, np.ndarray]:
    """The conv net with labels made wrong, and which are."""
    labels = np.array(_split(config)[0].labels)
    rng = np.random.default_rng(config.seed + 1)
    wrong, classes = np.zeros(len(labels), bool), labels.max() + 1
    count = max(1, round(config.wrong * len(labels)))
    wrong[rng.choice(len(labels), count, replace=False)] = True
    labels[wrong] = (labels[wrong] + rng.integers(1, classes, count)) % classes
    return vision(config, labels), wrong


def language(config: Settings, **changed: Any) -> runs.Training:
    """The transformer, with some of its options changed."""
    if config.text is None:
        msg = "text: null has no transformer to train"
        raise ConfigError(msg)
    setting = config.text.model_copy(update=changed)
    return text.language_model(
        examples=setting.examples,
        held_out=setting.held_out,
        length=setting.length,
        width=setting.width,
        blocks=setting.blocks,
        batch=setting.batch,
        steps=max(setting.steps, *setting.cost_steps),
        optimizer=optax.adam(setting.learning_rate, eps_root=setting.eps_root),
        dtype=config.dtype,
        seed=config.seed,
    )


def _split(config: Settings) -> tuple[runs.Data, runs.Data, runs.Data]:
    """Images of the training, of the outer loss and of the test."""
    train, test, _ = config.images()
    held = config.vision.held_out
    n = config.vision.examples or len(train.labels) - held
    if n < 1 or n + held > len(train.labels):
        msg = (
            f"vision: examples + held_out = {max(n, 1) + held}, but data has "
            f"{len(train.labels)} images that are not for the test: take fewer"
        )
        raise ConfigError(msg)
    rows = slice(held, held + n), slice(held)
    parts = [runs.Data(train.images[r], train.labels[r]) for r in rows]
    return parts[0], parts[1], runs.Data(*test)

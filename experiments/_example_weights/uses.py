"""What the derivatives are for: to find wrong labels, and to choose the data."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metalr
from experiments._command.experiment import Record
from experiments._example_weights import problems, runs, score
from experiments._example_weights.settings import Settings


def poison(config: Settings) -> Iterator[Record]:
    """Wrong labels found: those whose weight, made larger, raises the held-out loss."""
    training, wrong = problems.poisoned(config)
    objective = runs.objective(training, config.vision.steps)
    ones = runs.uniform(training)
    grad = metalr.hypergradient(objective, ones, problems.engines(config)[0]).grad
    own = training.each(objective.final_params(ones), training.train)
    guesses = {"metagradient": grad, "own loss at the end": own}
    every = accuracy(training, objective, ones)
    right = accuracy(training, objective, 1.0 - wrong)
    count = int(wrong.sum())
    for name, guess in jax.tree.map(np.asarray, guesses).items():
        worst = np.argsort(-guess)
        kept = np.ones(len(guess))
        kept[worst[:count]] = 0.0
        yield {
            "table": f"wrong labels, {config.wrong:.0%} of them",
            "ranked_by": name,
            "area_under_roc": score.ranked_above(guess, wrong),
            **{
                f"precision_at_{k}": float(np.mean(wrong[worst[:k]]))
                for k in dict.fromkeys((max(1, count // 4), max(1, count // 2), count))
            },
            "test_accuracy": every,
            "test_accuracy_without_flagged": accuracy(training, objective, kept),
            "test_accuracy_without_wrong": right,
        }


def selection(config: Settings) -> Iterator[Record]:
    """Weights in [0, 1] learned by sign steps: metagradient descent."""
    training, wrong = problems.poisoned(config)
    objective = runs.objective(training, config.vision.steps)
    ones = runs.uniform(training)
    learned = metalr.learn(
        objective,
        ones,
        outer_optimizer=optax.sign_sgd(config.outer_rate),
        steps=config.outer_steps,
        engine=problems.engines(config)[0],
        project=_in_box,
        history="scalars",
    )
    candidates = {"all": ones, "learned": learned.hyper, "true labels": 1.0 - wrong}
    for name, weights in candidates.items():
        flagged = np.asarray(weights) < 0.5
        yield {
            "table": "selection of data",
            "weights": name,
            "held_out_loss": float(objective(jnp.asarray(weights, ones.dtype))),
            "test_accuracy": accuracy(training, objective, weights),
            "f1_of_wrong": float(
                2 * np.sum(flagged & wrong) / np.sum(flagged + wrong * 1)
            ),
        }


def accuracy(training: runs.Training, objective: Any, weights: Any) -> float:
    """On the test set, after training with weights."""
    weights = jnp.asarray(weights, runs.uniform(training).dtype)
    return float(training.hits(objective.final_params(weights), training.test))


def _in_box(weights: jax.Array) -> jax.Array:
    return jnp.clip(weights, 0.0, 1.0)

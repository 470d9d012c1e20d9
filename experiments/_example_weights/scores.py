"""Predicted losses against retrainings, for each run, engine and part left out."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import metalr
from experiments._command.experiment import Record
from experiments._example_weights import problems, runs, score
from experiments._example_weights.retraining import Kept, retrained
from experiments._example_weights.settings import Settings


class Problem(NamedTuple):
    """A training, and for how long."""

    name: str
    training: runs.Training
    steps: int


def both(config: Settings) -> Iterator[Problem]:
    """The conv net, and the transformer where there is one."""
    yield Problem("conv net", problems.vision(config), config.vision.steps)
    if config.text:
        yield Problem("transformer", problems.language(config), config.text.steps)


def size(config: Settings) -> int:
    """Records of `scores`."""
    return (3 + (config.text is not None)) * len(config.left_out)


def scores(config: Settings, kept: Kept) -> Iterator[Record]:
    """The linear datamodeling score of each engine and fraction."""
    for name, training, steps in both(config):
        objective, ones = runs.objective(training, steps), runs.uniform(training)
        exact, *further = problems.engines(config)
        truncated = metalr.Truncated(last=max(1, steps // 10))
        engines = (exact, *further, truncated) if name == "conv net" else (exact,)
        within = kept / name
        found = [
            (engine, *derivative(objective, ones, engine, within)) for engine in engines
        ]
        for fraction in config.left_out:
            weights = score.subsets(
                config.seed, len(ones), fraction, config.retrainings
            )
            truth = retrained(
                objective,
                jnp.asarray(weights, ones.dtype),
                together=config.together,
                kept=within,
                name=f"{name}, {fraction:.1%} left out",
            )
            for engine, value, grad in found:
                guess = score.predicted(value, grad, weights)
                scored = score.score(guess, truth, seed=config.seed)
                yield {
                    "table": "linear datamodeling score",
                    "run": name,
                    "T": steps,
                    "examples": len(ones),
                    "engine": str(engine),
                    "left_out": fraction,
                    "retrainings": len(truth),
                    "score": scored.value,
                    "standard_error": scored.error,
                    "slope": scored.slope,
                    "points": {
                        "predicted": guess.tolist(),
                        "retrained": truth.tolist(),
                    },
                }


def beyond_first_order(config: Settings, kept: Kept) -> Iterator[Record]:
    r"""What the score does not see: the run's curvature in the weights.

    With examples left out (1 − d) and counted twice (1 + d), the odd part
    $(L(1-d) - L(1+d))/2 = -\nabla L\cdot d + O(d^3)$ has no second order, and the even
    part $(L(1-d) + L(1+d))/2 - L(1)$ no first. Deviations are over the subsets, as
    parts of that of the prediction: what ranks is what differs between subsets.
    """
    fraction = max(config.left_out)
    for name, training, steps in both(config):
        objective, ones = runs.objective(training, steps), runs.uniform(training)
        within = kept / name
        engine = problems.engines(config)[0]
        value, grad = derivative(objective, ones, engine, within)
        weights = score.subsets(config.seed, len(ones), fraction, config.retrainings)
        without, twice = (
            retrained(
                objective,
                jnp.asarray(rows, ones.dtype),
                together=config.together,
                kept=within,
                name=f"{name}, {fraction:.1%} {what}",
            )
            for what, rows in (("left out", weights), ("twice", 2.0 - weights))
        )
        first = (weights - 1.0) @ grad
        odd, even = 0.5 * (without - twice), 0.5 * (without + twice) - value
        scored = score.score(first, odd, seed=config.seed)
        yield {
            "table": "beyond the first order",
            "run": name,
            "left_out": fraction,
            "deviation_predicted": float(first.std()),
            "even_part": float(even.std() / first.std()),
            "odd_part_beyond_it": float((odd - first).std() / first.std()),
            "score_of_the_odd_part": scored.value,
            "standard_error": scored.error,
        }


def derivative(
    objective: metalr.Unrolled, ones: Any, engine: Any, kept: Kept
) -> tuple[float, np.ndarray]:
    """The held-out loss at equal weights and its gradient, in float64."""

    def compute() -> np.ndarray:
        value, grad = metalr.hypergradient(objective, ones, engine)
        return np.append(np.float64(value), np.asarray(grad, np.float64))

    value, *grad = kept.once(str(engine), compute)
    return float(value), np.asarray(grad)

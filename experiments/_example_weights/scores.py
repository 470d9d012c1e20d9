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
    """A training, for how long, and by which engines it is differentiated."""

    name: str
    training: runs.Training
    steps: int
    engines: tuple[Any, ...]


def size(config: Settings) -> int:
    """Records of `scores`."""
    return (3 + (config.text is not None)) * len(config.left_out)


def scores(config: Settings, kept: Kept) -> Iterator[Record]:
    """The linear datamodeling score of each engine and fraction."""
    steps = config.vision.steps
    exact = problems.engines(config)
    truncated = metalr.Truncated(last=max(1, steps // 10))
    problem = Problem("conv net", problems.vision(config), steps, (*exact, truncated))
    yield from _scores(config, problem, kept)
    if config.text:
        training = problems.language(config)
        problem = Problem("transformer", training, config.text.steps, exact[:1])
        yield from _scores(config, problem, kept)


def _scores(config: Settings, problem: Problem, kept: Kept) -> Iterator[Record]:
    name, training, steps, engines = problem
    objective, ones = runs.objective(training, steps), runs.uniform(training)
    kept /= name
    found = []
    for engine in engines:

        def compute(engine: Any = engine) -> np.ndarray:
            value, grad = metalr.hypergradient(objective, ones, engine)
            return np.append(np.float64(value), np.asarray(grad, np.float64))

        value, *grad = kept.once(str(engine), compute)
        found.append((engine, value, np.asarray(grad)))
    for fraction in config.left_out:
        subsets = score.subsets(config.seed, len(ones), fraction, config.retrainings)
        truth = retrained(
            objective,
            jnp.asarray(subsets, ones.dtype),
            together=config.together,
            kept=kept,
            name=f"{name}, {fraction:.1%} left out",
        )
        for engine, value, grad in found:
            guess = score.predicted(value, grad, subsets)
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
                "points": {"predicted": guess.tolist(), "retrained": truth.tolist()},
            }

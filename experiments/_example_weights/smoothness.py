"""Three runs that say beforehand whether a metagradient will predict retrainings."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import metalr
from experiments._command.experiment import Record
from experiments._example_weights import problems, runs, score
from experiments._example_weights.retraining import Kept, retrained
from experiments._example_weights.settings import Settings
from experiments._example_weights.uses import accuracy
from metalr.diagnosis import metasmoothness

_NETS: dict[str, dict[str, Any]] = {
    "tanh, average pooling": {"activation": "tanh", "pooling": "average"},
    "tanh, max pooling": {"activation": "tanh", "pooling": "max"},
    "ReLU, average pooling": {"activation": "relu", "pooling": "average"},
    "ReLU, max pooling": {"activation": "relu", "pooling": "max"},
}

_TEXTS: dict[str, dict[str, Any]] = {
    "as configured": {},
    "eps_root = 1e-6": {"eps_root": 1e-6},
    "eps_root = 1e-8": {"eps_root": 1e-8},
    "batches of 64": {"batch": 64},
    "twice as wide": {"width": 32},
    "a third of the rate": {"learning_rate": 1e-3},
}


class _Variant(NamedTuple):
    run: str
    name: str
    training: runs.Training
    steps: int
    fraction: float


def size(config: Settings) -> int:
    """Records of `smoothness`."""
    return len(_NETS) + (len(_TEXTS) if config.text else 0)


def smoothness(config: Settings, kept: Kept) -> Iterator[Record]:
    """Metasmoothness beside the score: kinks, and what is known to make runs smooth."""
    few, many = min(config.left_out), max(config.left_out)
    for name, changed in _NETS.items():
        training = problems.vision(config, **changed)
        variant = _Variant("conv net", name, training, config.vision.steps, few)
        yield _record(config, variant, kept)
    if config.text is None:
        return
    for name, changed in _TEXTS.items():
        training = problems.language(config, **changed)
        variant = _Variant("transformer", name, training, config.text.steps, many)
        yield _record(config, variant, kept)


def _record(config: Settings, variant: _Variant, kept: Kept) -> Record:
    run, name, training, steps, fraction = variant
    objective, ones = runs.objective(training, steps), runs.uniform(training)
    value, grad = metalr.hypergradient(objective, ones, problems.engines(config)[0])
    count = max(3, config.retrainings // 4)
    subsets = score.subsets(config.seed, len(ones), fraction, count)
    truth = retrained(
        objective,
        jnp.asarray(subsets, ones.dtype),
        together=config.together,
        kept=kept / "smoothness",
        name=f"{run}, {name}",
    )
    guess = score.predicted(value, grad, subsets)
    found = score.score(guess, truth, seed=config.seed)
    return {
        "table": f"metasmoothness of the {run}",
        "setting": name,
        "metasmoothness": _metasmoothness(config, objective, ones),
        "left_out": fraction,
        "score": found.value,
        "standard_error": found.error,
        "held_out_loss": float(value),
        "test_accuracy": accuracy(training, objective, ones),
    }


def _metasmoothness(config: Settings, objective: Any, ones: jax.Array) -> float:
    """The mean over random directions of the weights, 5 % of each."""
    keys = jax.random.split(jax.random.key(config.seed), config.directions)
    along = [jax.random.normal(key, ones.shape, ones.dtype) for key in keys]
    return float(np.mean([metasmoothness(objective, ones, v) for v in along]))

"""The work that every way gets: defined once, in NumPy, the same float32 numbers."""

from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

Problem: TypeAlias = Literal["regression", "mlp"]
Optimizer: TypeAlias = Literal["sgd", "adam"]
Learned: TypeAlias = Literal["scalar", "per_step"]


class Case(NamedTuple):
    """One hypergradient to compute."""

    problem: Problem
    optimizer: Optimizer
    learned: Learned
    steps: int

    def __str__(self) -> str:
        return f"{self.problem}, {self.optimizer}, {self.learned}, T = {self.steps}"


class Work(NamedTuple):
    """Mean squared error of a model on all examples, and where training starts."""

    inputs: np.ndarray  # (n, d)
    targets: np.ndarray  # (n,)
    params: dict[str, np.ndarray]  # "w" alone, or "w1", "b1", "w2", "b2"


# Far enough from convergence at T = 1000 for a hypergradient that float32 resolves.
_RATES = {
    ("regression", "sgd"): 1e-3,
    ("regression", "adam"): 1e-3,
    ("mlp", "sgd"): 1e-2,
    ("mlp", "adam"): 1e-4,
}


def make_work(problem: Problem, seed: int) -> Work:
    """A 100 × 20 linear regression, or an MLP 64-256-1 (tanh) on 512 examples."""
    rng = np.random.default_rng(seed)
    n, d = (100, 20) if problem == "regression" else (512, 64)
    inputs = rng.normal(size=(n, d))
    noise = 0.1 * rng.normal(size=n)
    if problem == "regression":
        targets = inputs @ rng.normal(size=d) + noise
        params = {"w": 0.1 * rng.normal(size=d)}
    else:
        targets = np.sin(inputs @ rng.normal(size=d) / np.sqrt(d)) + noise
        params = {
            "w1": rng.normal(size=(d, 256)) / np.sqrt(d),
            "b1": 0.1 * rng.normal(size=256),
            "w2": rng.normal(size=256) / 16.0,
            "b2": 0.1 * rng.normal(size=()),
        }
    single = {name: np.asarray(leaf, np.float32) for name, leaf in params.items()}
    return Work(inputs.astype(np.float32), targets.astype(np.float32), single)


def save(work: Work, path: str) -> None:
    """One file for all processes."""
    arrays: dict[str, Any] = dict(work.params)
    np.savez(path, inputs=work.inputs, targets=work.targets, **arrays)


def load(path: str) -> Work:
    """What `save` wrote."""
    with np.load(path) as file:
        arrays = dict(file)
    return Work(arrays.pop("inputs"), arrays.pop("targets"), arrays)


def hyper(case: Case) -> np.ndarray:
    """The point: one rate, or the same rate for each step."""
    rate = _RATES[case.problem, case.optimizer]
    shape = (case.steps,) if case.learned == "per_step" else ()
    return np.full(shape, rate, np.float32)

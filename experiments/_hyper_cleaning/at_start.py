"""Each engine's hypergradient at equal weights, beside the hand-written one."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

import metalr
from experiments._command.experiment import Record
from experiments._hyper_cleaning import by_hand
from experiments._hyper_cleaning.learning import engine
from experiments._hyper_cleaning.problem import cross_entropy, unrolled
from experiments._hyper_cleaning.training import Training
from experiments._settings.beside import beside


def at_start(
    training: Training, engines: Sequence[str], *, rounds: int
) -> Iterator[Record]:
    """A row for each engine: values, gradients, seconds, statements, memory."""
    objective = training.objective()
    problem = training.problem
    weights = jnp.full(len(problem.given), 0.5, problem.inputs.dtype)
    theirs: Any = jax.jit(training.by_hand()).lower(weights).compile()
    for name in engines:
        chosen = engine(name, training.steps)
        call = functools.partial(hypergradient, objective, chosen)
        ours: Any = jax.jit(call).lower(weights).compile()
        yield {
            "table": "hypergradients at equal weights, beside hand-written JAX",
            **training.names,
            "engine": name,
            **beside(
                ours,
                theirs,
                weights,
                written=[unrolled, hypergradient],
                by_hand=[by_hand.hypergradient, cross_entropy],
                rounds=rounds,
            ),
            "MB": ours.memory_analysis().temp_size_in_bytes / 1e6,
            "MB_by_hand": theirs.memory_analysis().temp_size_in_bytes / 1e6,
        }


def hypergradient(objective: metalr.Unrolled, engine: Any, weights: Any) -> Any:
    """What a user writes."""
    result = metalr.hypergradient(objective, weights, engine)
    return result.value, result.grad

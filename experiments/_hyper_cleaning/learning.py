"""The weights: learned by an engine around T inner steps, or by a single loop."""

import functools
from types import ModuleType
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metalr
from experiments._command.experiment import ExperimentConfig
from experiments._hyper_cleaning.problem import (
    Problem,
    capped,
    validation_loss,
    weighted_loss,
)
from experiments._settings import outer_loop
from metalr import bilevel

Protocol: TypeAlias = Literal["projected", "sigmoid"]
EngineName: TypeAlias = Literal[
    "reverse", "mixed", "reversible", "truncated", "implicit", "soba"
]

_EVERY = 10
"""Outer steps between checkpoints."""


class Learned(NamedTuple):
    """The weights, and the validation loss on the way."""

    weights: jax.Array
    curve: list[float]


def engine(name: str, steps: int) -> Any:
    """Of T steps: checkpoints after √T, a tenth of them, 20 conjugate gradients."""
    slots = max(1, round(steps**0.5))
    return {
        "reverse": metalr.Reverse(checkpoints=slots),
        "mixed": metalr.Mixed(checkpoints=slots),
        "reversible": metalr.Reversible(),
        "truncated": metalr.Truncated(max(1, steps // 10)),
        "implicit": metalr.Implicit("cg", iterations=20),
    }[name]


def by_learning(
    objective: metalr.Unrolled,
    protocol: Protocol,
    engine: Any,
    *,
    n: int,
    limit: float,
    rate: float,
    steps: int,
    module: ModuleType,
    config: ExperimentConfig,
    name: str,
) -> Learned:
    """The outer loop around T inner steps; it goes on where it was stopped."""
    learn = functools.partial(
        outer_loop.learn, module, config, name, steps=steps, every=_EVERY, engine=engine
    )
    if protocol == "projected":
        learned = learn(
            objective,
            jnp.full(n, limit, config.dtype),
            outer_optimizer=optax.sgd(rate * n),
            project=capped(limit * n),
        )
        weights = learned.hyper
    else:
        learned = learn(
            metalr.reparametrized(objective, jax.nn.sigmoid),
            jnp.zeros(n, config.dtype),
            outer_optimizer=optax.adam(rate),
        )
        weights = jax.nn.sigmoid(learned.hyper)
    values = np.asarray(learned.history.value)
    return Learned(weights, values[np.isfinite(values)].tolist())


def by_solver(
    problem: Problem,
    params: list,
    protocol: Protocol,
    *,
    batch: int | None,
    inner_rate: float,
    outer_rate: float,
    limit: float,
    updates: int,
    points: int,
    seed: int,
) -> Learned:
    """A single loop: parameters, adjoint and weights move together (SOBA)."""
    n = len(problem.given)
    sigmoid = protocol == "sigmoid"
    to_weights = jax.nn.sigmoid if sigmoid else lambda weights: weights
    loss = functools.partial(weighted_loss, problem.inputs, problem.given)
    inner = bilevel.oracle(lambda params, z, rows: loss(params, to_weights(z), rows))
    if batch is not None:
        rows = jnp.arange(n - n % batch)
        inner = bilevel.oracle(inner.loss, rows, size=batch)
    outer = bilevel.oracle(
        lambda params, z, _: validation_loss(*problem.validation, params, z)
    )
    solver = bilevel.SOBA(
        inner,
        outer,
        inner_optimizer=optax.sgd(inner_rate),
        outer_optimizer=optax.adam(outer_rate) if sigmoid else optax.sgd(outer_rate),
        project=None if sigmoid else capped(limit * n),
    )
    start = jnp.full(n, 0.0 if sigmoid else limit, problem.inputs.dtype)

    def point(state: Any, _: None) -> tuple[Any, jax.Array]:
        again = lambda _, state: solver.update(state)
        state = jax.lax.fori_loop(0, updates // points, again, state)
        return state, validation_loss(*problem.validation, state.params, None)

    whole = jax.jit(lambda state: jax.lax.scan(point, state, length=points))
    state, values = whole(solver.init(params, start, seed))
    return Learned(to_weights(state.hyper), values.tolist())

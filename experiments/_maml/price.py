"""What metalr costs over hand-written JAX on the same tasks: seconds and statements."""

from collections.abc import Callable
from typing import Any

import jax
import optax

import metalr
from experiments._command.experiment import Record
from experiments._maml import by_hand
from experiments._maml.methods import METHODS, Inner, mean
from experiments._maml.sinusoids import Family
from experiments._settings.beside import difference, in_turns, statements
from metalr.tasks import Mean


def beside_hand_written(
    name: str,
    problem: tuple[Any, Callable[[Any], Mean], Any],
    key: jax.Array,
    *,
    family: Family,
    tasks: int,
    inner_steps: int,
    inner: Inner,
    steps: int,
    rate: float,
) -> Record:
    """The first meta-gradient, some outer steps and their seconds, both ways.

    Args:
        name: of the method.
        problem: where learning starts, the objective of each draw, and the engine.
        key: of the draws.
        family: of the tasks, and so on, as for `by_hand.learn`.
        tasks: in an outer step.
        inner_steps: in a task.
        inner: the numbers of the inner loop.
        steps: outer steps that are timed.
        rate: of Adam.
    """
    start, make, engine = problem
    gradient = by_hand.GRADIENTS[name]

    def ours(theta: Any) -> Any:
        first = make(jax.random.fold_in(key, 0))
        return metalr.hypergradient(first, theta, engine).grad

    def theirs(theta: Any) -> Any:
        keys = jax.random.split(jax.random.fold_in(key, 0), tasks)
        one = lambda task: gradient(theta, task, inner_steps, inner)[1]
        each = jax.vmap(one)(jax.vmap(family.draw)(keys))
        return jax.tree.map(lambda x: x.mean(0), each)

    with_metalr = lambda theta: by_metalr(
        make, theta, key, engine=engine, steps=steps, rate=rate
    )
    by_itself = jax.jit(
        lambda theta: by_hand.learn(
            gradient,
            theta,
            key,
            family=family,
            tasks=tasks,
            inner_steps=inner_steps,
            inner=inner,
            steps=steps,
            rate=rate,
        )
    )
    turns = in_turns(with_metalr, by_itself, start, rounds=3)
    return {
        "gradient_difference": difference(jax.jit(ours)(start), jax.jit(theirs)(start)),
        "learned_difference": difference(turns.ours, turns.theirs),
        "milliseconds": 1e3 * turns.seconds / steps,
        "milliseconds_by_hand": 1e3 * turns.seconds_by_hand / steps,
        "cost_ratio": turns.seconds / turns.seconds_by_hand,
        "statements": statements(METHODS[name].objective, mean, by_metalr),
        "statements_by_hand": statements(gradient, by_hand.learn),
    }


def by_metalr(
    make: Callable[[Any], Mean],
    theta: Any,
    key: jax.Array,
    *,
    engine: Any,
    steps: int,
    rate: float,
) -> Any:
    """The outer loop that is timed; `by_hand.learn` is the other."""
    adam = optax.adam(rate)
    learned = metalr.learn(
        make,
        theta,
        key=key,
        outer_optimizer=adam,
        steps=steps,
        engine=engine,
        history="scalars",
    )
    return learned.hyper

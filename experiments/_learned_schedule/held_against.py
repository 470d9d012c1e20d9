"""Constant rates and cosines, tuned; how a schedule is judged; plain optax."""

import functools
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metalr
from experiments._learned_schedule.recipe import (
    Method,
    Problem,
    Sizes,
    entropy,
    logits,
    unrolled,
    validation,
)

Shape: TypeAlias = Literal["constant", "cosine"]

REPEATS = 16
"""Runs of each rate and momentum that is tried."""

_MOMENTA = (0.8, 0.9, 0.95)
_RATES = {"adam": (1e-3, 1e-1), "sgd": (1e-2, 1.0)}


class Case(NamedTuple):
    """What is trained, and by what."""

    problem: Problem
    method: Method
    sizes: Sizes


class Judged(NamedTuple):
    """Of fresh runs, one entry for each."""

    validation: jax.Array
    test: jax.Array
    accuracy: jax.Array


def shaped(shape: Shape, rate: Any, momentum: Any, done: Any) -> dict[str, Any]:
    """A constant rate, or one that decays to 0 by a cosine; a constant momentum.

    Args:
        shape: which.
        rate: where it begins.
        momentum: of all steps.
        done: the parts of the run at which the schedule is asked for.
    """
    falling = 0.5 * (1.0 + jnp.cos(jnp.pi * done))
    rates = rate * (falling if shape == "cosine" else jnp.ones_like(done))
    return {"rate": rates, "momentum": momentum * jnp.ones_like(done)}


def of_steps(steps: int, shape: Shape, rate: Any, momentum: Any) -> dict[str, Any]:
    """The same for steps 0 to T − 1; optax's cosine ends likewise."""
    return shaped(shape, rate, momentum, jnp.arange(steps, dtype=rate.dtype) / steps)


def tuned(
    case: Case, shape: Shape, runs: int, keys: jax.Array
) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """The best (rate, momentum) of as large a grid as so many runs allow.

    Args:
        case: what is trained.
        shape: of the rates.
        runs: `len(keys)` for each point; every point has the same draws.
        keys: of these draws.

    Returns:
        The best of the grid, and the best of every other rate of it: half the runs.
    """
    problem, method, sizes = case
    count = max(2, runs // (len(_MOMENTA) * len(keys)))
    low, high = np.log10(_RATES[method])
    dtype = problem.inputs.dtype
    rates = jnp.logspace(low, high, count, dtype=dtype)
    momenta = jnp.array(_MOMENTA, dtype)
    make = functools.partial(unrolled, problem, method, sizes)
    mean = metalr.tasks.Mean.of(make, keys)
    at = lambda point: mean(of_steps(sizes.steps, shape, *point))
    grid = jnp.meshgrid(rates, momenta, indexing="ij")
    points = tuple(axis.ravel() for axis in grid)
    found = jax.jit(lambda points: jax.lax.map(at, points))(points)
    values = np.where(np.isfinite(found), found, np.inf).reshape(count, -1)

    def best(every: int) -> tuple[Any, Any]:
        some = values[::every]
        row, column = np.unravel_index(np.argmin(some), some.shape)
        return rates[::every][row], momenta[column]

    return best(1), best(2)


def judged(
    case: Case, hyper: Any, keys: jax.Array, inputs: jax.Array, labels: jax.Array
) -> Judged:
    """Runs with a schedule; also on test images, which nothing is chosen by."""
    problem = case.problem

    def one(key: jax.Array) -> Judged:
        params = unrolled(*case, key).final_params(hyper)
        scores = logits(params, inputs)
        found = jnp.mean(jnp.argmax(scores, axis=1) == labels)
        return Judged(
            validation(problem, params, hyper), entropy(scores, labels), found
        )

    return jax.jit(jax.vmap(one))(keys)


def gradient_norm(case: Case, hyper: Any, key: jax.Array, *, guarded: bool) -> float:
    """The norm of a run's hypergradient; without the guard, that of plain optax."""
    run = unrolled(*case, key, guarded=guarded)
    return float(optax.tree.norm(metalr.hypergradient(run, hyper).grad))

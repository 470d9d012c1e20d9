"""Where a method was, and what it had spent: solvers, and outer gradient descent."""

import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

import metalr
from experiments._bilevel.quadratics import Simulated, loss
from experiments._bilevel.solvers import SOLVERS, Name, Settings
from experiments._bilevel.warm import outer_loop
from metalr import bilevel

OuterName: TypeAlias = Literal[
    "unrolled, cold", "unrolled, warm", "implicit, cold", "implicit, warm"
]


class Trace(NamedTuple):
    """Hyperparameters at some points of a run, one after the other."""

    hypers: jax.Array  # (points, d)
    passes: np.ndarray  # (points,) derivatives, in passes over the rows
    seconds: float  # of the whole run, compiled before
    updates: int


def by_solver(
    name: Name,
    problem: Simulated,
    settings: Settings,
    *,
    batch: int | None,
    passes: int,
    points: int,
    scales: tuple[float, ...] = (1.0,),
    seed: int = 0,
) -> Trace:
    """A solver from 0; it goes on with all rates multiplied by each of the scales."""
    inner, outer = (bilevel.oracle(loss, rows, size=batch) for rows in problem[:2])
    d = len(problem.truth.outer.b)
    zeros = jnp.zeros(d, problem.truth.outer.b.dtype)
    make = SOLVERS[name]
    solver = make(inner, outer, settings)
    start = jax.jit(solver.init)(zeros, zeros, jax.random.key(seed))
    part = 1.0 / inner.minibatches
    each = int(jax.jit(solver.update)(start).calls - start.calls)
    updates = max(1, int(passes / len(scales) / (each * part) / points))

    def stage(state: Any, scale: Any) -> tuple[Any, tuple]:
        scaled = make(inner, outer, settings._replace(scale=scale))

        def point(state: Any, _: None) -> tuple[Any, tuple]:
            again = lambda _, state: scaled.update(state)
            state = jax.lax.fori_loop(0, updates, again, state)
            return state, (state.hyper, state.calls)

        return jax.lax.scan(point, state, length=points)

    whole = lambda state: jax.lax.scan(stage, state, jnp.array(scales))[1]
    (hypers, calls), seconds = _timed(whole, start)
    total = updates * points * len(scales)
    return Trace(hypers.reshape(-1, d), np.ravel(calls) * part, seconds, total)


def by_outer_loop(
    name: OuterName,
    problem: Simulated,
    *,
    inner_rate: float,
    outer_rate: float,
    steps: int,
    products: int,
    passes: int,
    points: int,
) -> Trace:
    """Outer gradient descent; the inner run is an `Unrolled`, with full batches."""
    zeros = jnp.zeros_like(problem.truth.outer.b)

    def make(params: Any) -> metalr.Unrolled:
        return metalr.Unrolled(
            lambda z, x, _: loss(z, x, problem.inner),
            lambda _: optax.sgd(inner_rate),
            params,
            steps=steps,
            outer_loss=lambda z, x: loss(z, x, problem.outer),
        )

    if name.startswith("implicit"):
        engine: Any = metalr.Implicit("cg", iterations=products, rtol=0.0)
        each = steps + products + 2  # gradients, Hessian products; cross, outer
    else:
        engine = metalr.Reverse()
        each = steps + 2 * steps + 1  # gradients, both products of each step; outer
    count = max(points, int(passes / each))

    def loop(start: Any) -> Any:
        return outer_loop(
            make,
            start,
            start,
            engine=engine,
            optimizer=optax.sgd(outer_rate),
            steps=count,
            warm=name.endswith("warm"),
        ).hyper

    hypers, seconds = _timed(loop, zeros)
    kept = np.unique(np.linspace(0, count - 1, points).astype(int))
    return Trace(hypers[kept], (kept + 1.0) * each, seconds, count)


def _timed(function: Callable[[Any], Any], argument: Any) -> tuple[Any, float]:
    """What it returns, and the seconds of a compiled run."""
    compiled = jax.jit(function).lower(argument).compile()
    begin = time.perf_counter()
    result = jax.block_until_ready(compiled(argument))
    return result, time.perf_counter() - begin

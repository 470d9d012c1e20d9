"""Persistent evolution strategies a window at a time: particles that are carried."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._checks import expand_prefix
from .._types import Hyper, Scalar
from ..runs.run import State, advance
from ._smoothing import (
    SmoothedHyperGradient,
    Smoothing,
    normal,
    shifted,
    standard_error,
    weighted,
)


class Ensemble(NamedTuple):
    """The particles of all pairs, and what each pair's states have seen."""

    states: State  # each leaf (pairs, 2, …)
    total: Hyper  # ξ, each leaf (pairs, …): the noise since the last start


def ensemble_of(run: Any, engine: Smoothing, hyper: Hyper) -> Ensemble:
    """Particles that have not moved yet."""
    start = run.init(run.prepare(hyper))
    spread = lambda leaf: jnp.broadcast_to(leaf, (engine.pairs, 2, *jnp.shape(leaf)))
    none = jax.tree.map(lambda h: jnp.zeros((engine.pairs, *h.shape), h.dtype), hyper)
    return Ensemble(jax.tree.map(spread, start), none)


def perturbed_window(
    window: Any, ensemble: Ensemble, hyper: Hyper, engine: Smoothing
) -> tuple[State, Ensemble, SmoothedHyperGradient]:
    """All particles through one window, each pair at a noise of its own.

    Args:
        window: the next steps of a run, from its `state`; a new run where `first` is 0.
        ensemble: the particles before it.
        hyper: η, around which they are perturbed.
        engine: its key is that of this window.

    Returns:
        The state of the run without noise, the particles after it, and the estimate.
    """
    sigma = expand_prefix(engine.sigma, hyper, "sigma")

    def through(state: State, hyper: Hyper) -> tuple[Scalar, State]:
        mine = dataclasses.replace(window, state=state)
        prepared = mine.prepare(hyper)
        end = advance(mine, prepared, mine.init(prepared), 0, mine.steps)[0]
        return mine.evaluate(prepared, end), end

    def pair(given: tuple[Array, Ensemble]) -> tuple[Hyper, Scalar, Ensemble]:
        key, (states, total) = given
        noise = normal(key, hyper)
        total = jax.tree.map(
            lambda t, e: jnp.where(window.first == 0, 0.0, t) + e, total, noise
        )
        one = lambda sign, state: through(state, shifted(hyper, sigma, noise, sign))
        values, states = jax.vmap(one)(jnp.array([1.0, -1.0]), states)
        grad = weighted(total, sigma, *values)
        return grad, jnp.mean(values), Ensemble(states, total)

    keys = jax.random.split(engine.key, engine.pairs)
    grads, values, moved = jax.lax.map(
        pair, (keys, ensemble), batch_size=engine.chunk or engine.pairs
    )
    value, state = through(window.state, hyper)
    mean = jax.tree.map(lambda g: jnp.mean(g, axis=0), grads)
    error = jax.tree.map(lambda g: standard_error(g, engine.pairs), grads)
    result = SmoothedHyperGradient(value, mean, error, jnp.mean(values))
    return state, moved, result

"""The explicit reverse sweep: a step pulled back at a time, no autodiff of loops.

Every run says how a cotangent goes back through one step of it (`pull_back`); nothing
that a step computes is kept beyond that step.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._types import Hyper, PyTree
from ..runs.run import (
    Bar,
    Run,
    State,
    at_rest,
    moving,
    pulled_back,
    refilled,
    stepped,
)
from ._engine import HyperGradient
from .binomial import schedule


def every_state(
    objective: Any, hyper: Hyper, *, records: bool = False
) -> tuple[HyperGradient, Run]:
    """Keep all T states in a first loop, pull back through them in a second."""
    prepared = objective.prepare(hyper)

    def advance(state: State, index: Array) -> tuple[State, tuple[State, PyTree]]:
        new, record = stepped(objective, prepared, state, index)
        return new, (state, record if records else None)

    def reverse(carry: PyTree, x: tuple[State, Array]) -> tuple[PyTree, None]:
        return _reverse(objective, prepared, *x, carry), None

    indices = jnp.arange(objective.steps)
    last, (states, kept) = jax.lax.scan(advance, objective.init(prepared), indices)
    value, cotangents = _outer_pullback(objective, prepared, last)
    cotangents, _ = jax.lax.scan(reverse, cotangents, (states, indices), reverse=True)
    result = _finish(objective, hyper, value, *cotangents)
    return result, Run(value, last, kept)


def binomial(
    objective: Any, hyper: Hyper, checkpoints: int
) -> tuple[HyperGradient, Run]:
    """Keep at most `checkpoints` states; run the steps between them again."""
    if objective.steps == 0:
        return every_state(objective, hyper)
    prepared = objective.prepare(hyper)
    plan = jax.tree.map(jnp.asarray, schedule(objective.steps, checkpoints))

    def start() -> State:
        return objective.init(prepared)

    def advance(state: State, index: Array, count: Array) -> State:
        def body(s: Array, state: State) -> State:
            return stepped(objective, prepared, state, s)[0]

        return jax.lax.fori_loop(index, index + count, body, state)

    def fetch(i: Array, slots: State) -> tuple[State, State]:
        """The state of the i-th step to be reversed; stores others on the way."""
        state = jax.lax.cond(
            plan.source[i] < 0,
            start,
            lambda: jax.tree.map(lambda slot: slot[plan.source[i]], slots),
        )

        def leg(j: Array, carry: tuple) -> tuple:
            index, state, slots = carry
            state = advance(state, index, plan.advance[j])
            slots = jax.tree.map(
                lambda slot, x: slot.at[plan.slot[j]].set(x), slots, state
            )
            return index + plan.advance[j], state, slots

        carry = (plan.position[i], state, slots)
        index, state, slots = jax.lax.fori_loop(
            plan.first[i], plan.first[i + 1], leg, carry
        )
        return advance(state, index, plan.rest[i]), slots

    def reverse(i: Array, carry: tuple) -> tuple:
        slots, cotangents = carry
        state, slots = fetch(i, slots)
        index = jnp.asarray(objective.steps - 1 - i, jnp.int32)
        return slots, _reverse(objective, prepared, state, index, cotangents)

    places = min(checkpoints, objective.steps)
    room = jax.vmap(lambda _: jax.tree.map(_empty, start()))
    slots = room(jnp.arange(places))
    first = jnp.zeros((), jnp.int32)
    before_last, slots = fetch(first, slots)
    end = jnp.asarray(objective.steps - 1, jnp.int32)
    last = stepped(objective, prepared, before_last, end)[0]
    value, cotangents = _outer_pullback(objective, prepared, last)
    cotangents = _reverse(objective, prepared, before_last, end, cotangents)
    _, cotangents = jax.lax.fori_loop(1, objective.steps, reverse, (slots, cotangents))
    result = _finish(objective, hyper, value, *cotangents)
    return result, Run(value, last, None)


def _reverse(
    objective: Any,
    hyper: Hyper,
    state: State,
    index: Array,
    cotangents: tuple[Bar, Hyper],
) -> tuple[Bar, Hyper]:
    """Cotangents of state and hyper before step `index`, given those after it."""
    bar, hyper_bar = cotangents
    bar, step_bar = pulled_back(objective, hyper, state, index, bar)
    return bar, jax.tree.map(jnp.add, hyper_bar, step_bar)


def _outer_pullback(
    objective: Any, hyper: Hyper, last: State
) -> tuple[Array, tuple[Bar, Hyper]]:
    """L_T, and its cotangents of the last state and of hyper."""
    bar = at_rest(objective, hyper)
    leaves, rebuild = moving(last, bar)
    value, (leaves_bar, hyper_bar) = jax.value_and_grad(
        lambda leaves, hyper: objective.evaluate(hyper, rebuild(leaves)), argnums=(0, 1)
    )(leaves, hyper)
    return value, (refilled(bar, leaves_bar), hyper_bar)


def _finish(
    objective: Any, hyper: Hyper, value: Array, bar: Bar, hyper_bar: Hyper
) -> HyperGradient:
    """Through the start of the run, and back to the dtypes of the user's hyper."""

    def start(hyper: Hyper) -> tuple[Hyper, list[Array]]:
        prepared = objective.prepare(hyper)
        return prepared, moving(objective.init(prepared), bar)[0]

    _, pull_back = jax.vjp(start, hyper)
    (grad,) = pull_back((hyper_bar, [x for x in bar if x is not None]))
    return HyperGradient(value, grad)


def _empty(leaf: Array) -> Array:
    """Room for a leaf of a state; a key has no zero."""
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return leaf if is_key else jnp.zeros_like(leaf)

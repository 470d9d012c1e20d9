r"""The explicit reverse sweep: a step pulled back at a time, no autodiff of loops.

The pullback of a step needs the Hessian of the inner loss times one vector. The Hessian
is symmetric, so that product is forward-over-reverse: nothing that the inner gradient
computes is kept beyond the step.
"""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._types import Hyper, Params
from ..runs.unrolled import State, Unrolled
from ._engine import HyperGradient
from .binomial import schedule

Floats: TypeAlias = list[Array]
"""The leaves of an optimizer's state that carry derivatives; counters do not."""


def every_state(objective: Unrolled, hyper: Hyper) -> HyperGradient:
    """Keep all T states in a first loop, pull back through them in a second."""
    hyper_run = objective.prepare(hyper)

    def advance(state: State, index: Array) -> tuple[State, State]:
        return objective.step(hyper_run, state, index)[0], state

    def reverse(carry: PyTree, x: tuple[State, Array]) -> tuple[PyTree, None]:
        state, index = x
        return _reverse(objective, hyper_run, state, index, carry), None

    indices = jnp.arange(objective.steps)
    last, states = jax.lax.scan(advance, objective.init(hyper_run), indices)
    value, cotangents = _outer_pullback(objective, hyper_run, last)
    cotangents, _ = jax.lax.scan(reverse, cotangents, (states, indices), reverse=True)
    return _finish(objective, hyper, value, *cotangents)


def binomial(objective: Unrolled, hyper: Hyper, checkpoints: int) -> HyperGradient:
    """Keep at most `checkpoints` states; run the steps between them again."""
    if objective.steps == 0:
        return every_state(objective, hyper)
    hyper_run = objective.prepare(hyper)
    plan = jax.tree.map(jnp.asarray, schedule(objective.steps, checkpoints))

    def start() -> State:
        return objective.init(hyper_run)

    def advance(state: State, index: Array, count: Array) -> State:
        def body(s: Array, state: State) -> State:
            return objective.step(hyper_run, state, s)[0]

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
        index = objective.steps - 1 - i
        return slots, _reverse(objective, hyper_run, state, index, cotangents)

    places = min(checkpoints, objective.steps)
    slots = jax.tree.map(
        lambda x: jnp.zeros((places, *x.shape), x.dtype), jax.eval_shape(start)
    )
    first = jnp.zeros((), jnp.int32)
    before_last, slots = fetch(first, slots)
    last = objective.step(hyper_run, before_last, objective.steps - 1)[0]
    value, cotangents = _outer_pullback(objective, hyper_run, last)
    cotangents = _reverse(
        objective, hyper_run, before_last, objective.steps - 1, cotangents
    )
    _, cotangents = jax.lax.fori_loop(1, objective.steps, reverse, (slots, cotangents))
    return _finish(objective, hyper, value, *cotangents)


def _reverse(
    objective: Unrolled,
    hyper: Hyper,
    state: State,
    index: int | Array,
    cotangents: tuple[Floats, Hyper],
) -> tuple[Floats, Hyper]:
    """Cotangents of state and hyper before step `index`, given those after it."""
    state_bar, hyper_bar = cotangents

    def gradient(params: Params) -> tuple[Array, Params, Hyper]:
        return objective.gradients(hyper, params, index)

    (value, grads, hyper_grads), along = jax.linearize(gradient, state.params)
    floats, rebuild = floats_of(state)

    def update(floats: Floats, value: Array, grads: Params, hyper: Hyper) -> Floats:
        new = objective.update(hyper, rebuild(floats), value, grads, index)
        return floats_of(new)[0]

    _, pull_back = jax.vjp(update, floats, value, grads, hyper)
    floats_bar, value_bar, grads_bar, update_bar = pull_back(state_bar)
    # H · ḡ, and the mixed derivative in hyper, in one forward-over-reverse product.
    _, params_bar, mixed_bar = along(grads_bar)
    through_value = lambda g: jnp.where(value_bar == 0.0, 0.0, value_bar * g)
    params_bar = jax.tree.map(lambda p, g: p + through_value(g), params_bar, grads)
    hyper_bar = jax.tree.map(
        lambda total, u, m, g: total + u + m + through_value(g),
        hyper_bar,
        update_bar,
        mixed_bar,
        hyper_grads,
    )
    count = len(jax.tree.leaves(params_bar))
    leading = [
        a + b
        for a, b in zip(floats_bar[:count], jax.tree.leaves(params_bar), strict=True)
    ]
    return [*leading, *floats_bar[count:]], hyper_bar


def _outer_pullback(
    objective: Unrolled, hyper: Hyper, last: State
) -> tuple[Array, tuple[Floats, Hyper]]:
    """L_T, and its cotangents of the last state and of hyper."""
    value, (params_bar, hyper_bar) = jax.value_and_grad(
        lambda params, hyper: objective.evaluate(hyper, params), argnums=(0, 1)
    )(last.params, hyper)
    floats, _ = floats_of(last)
    leaves = jax.tree.leaves(params_bar)
    rest = [jnp.zeros_like(x) for x in floats[len(leaves) :]]
    return value, ([*leaves, *rest], hyper_bar)


def _finish(
    objective: Unrolled, hyper: Hyper, value: Array, state_bar: Floats, hyper_bar: Hyper
) -> HyperGradient:
    """Through the start of the run, and back to the dtypes of the user's hyper."""
    start = lambda h: floats_of(objective.init(objective.prepare(h)))[0]
    _, pull_back = jax.vjp(start, hyper)
    (start_bar,) = pull_back(state_bar)
    grad = jax.tree.map(lambda a, b: a + b.astype(a.dtype), start_bar, hyper_bar)
    return HyperGradient(value, grad)


def floats_of(state: State) -> tuple[Floats, Any]:
    """The differentiable leaves (those of params first), and how to put them back."""
    leaves, structure = jax.tree.flatten(state)
    smooth = [jnp.issubdtype(x.dtype, jnp.inexact) for x in leaves]

    def rebuild(floats: Floats) -> State:
        given = iter(floats)
        full = [next(given) if s else x for s, x in zip(smooth, leaves, strict=True)]
        return jax.tree.unflatten(structure, full)

    return [x for s, x in zip(smooth, leaves, strict=True) if s], rebuild

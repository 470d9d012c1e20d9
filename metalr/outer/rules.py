"""Outer steps as pure functions, and those of an optax optimizer.

Every outer method is a `Rule`, so that one compiled loop serves them all.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from .._types import PyTree, Scalar
from ..optimizers.update import standard, update

_SHRINK, _GROW = 0.25, 2.0
"""How an optax step is scaled after a refused trial, and after an accepted one."""


class Point(NamedTuple):
    """A place in the outer variables, and what is known there."""

    z: PyTree
    value: Scalar
    grad: PyTree
    curvature: PyTree  # of a scalar z, for Newton; None otherwise
    lost: Scalar  # tasks whose value or gradient is not finite, left out of both
    draw: Array  # number of the draw that it was measured on: value and gradient


class Measures(NamedTuple):
    """The objective of each draw as a function of the outer variables z."""

    value: Callable[[PyTree, Array], Scalar]
    value_and_grad: Callable[[PyTree, Array], tuple[Scalar, PyTree, Scalar]]
    project: Callable[[PyTree], PyTree] | None
    held_out: Callable[[PyTree], tuple[Scalar, Scalar]] | None
    """Value and lost tasks on a draw of no step; None where all is of one draw."""

    @property
    def fresh(self) -> bool:
        """Whether each outer step has a draw of its own."""
        return self.held_out is not None


class Rule(NamedTuple):
    """An outer method; `draw` is the number of the draw that a trial is measured on."""

    evaluate: Callable[[PyTree, Array], Point]
    init: Callable[[Point], Any]
    step: Callable[[Point, Any, Array], tuple[Point, Any]]
    exhausted: Callable[[Point, Any], Array]  # no further step would find anything


class _Descent(NamedTuple):
    opt_state: optax.OptState
    scale: Scalar  # of the next step
    still: Array  # the optimizer proposed to stay, and will for ever
    known: Array  # the point is finite; a start may not be


def finite(point: Point) -> Array:
    """Whether the inner run and its derivatives came through."""
    return all_finite((point.value, point.grad, point.curvature))


def all_finite(tree: PyTree) -> Array:
    """Whether every entry of every leaf is finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


def gradient(optimizer: Any, measures: Measures) -> Rule:
    """Steps of an optax optimizer, a quarter as long after each that was refused.

    A trial is refused if it is not finite. On one and the same draw it is refused as
    well if its value is 1/eps times that of the point (of what the gradient there says,
    nothing holds at the scale of the point) or if it lost more tasks; values of
    different draws are never compared.
    """
    optimizer = standard(optimizer)
    project = measures.project or (lambda z: z)

    def evaluate(z: PyTree, draw: Array) -> Point:
        value, grad, lost = measures.value_and_grad(z, draw)
        return Point(z, value, grad, None, lost, draw)

    def init(point: Point) -> _Descent:
        one = jnp.ones_like(point.value)
        return _Descent(optimizer.init(point.z), one, jnp.array(False), finite(point))

    def step(point: Point, state: _Descent, draw: Array) -> tuple[Point, _Descent]:
        updates, opt_state = update(
            optimizer,
            point.grad,
            state.opt_state,
            point.z,
            value=point.value,
            value_fn=lambda z: measures.value(z, point.draw),
            grad_fn=lambda z: measures.value_and_grad(z, point.draw)[1],
        )
        scaled = jax.tree.map(lambda u: state.scale.astype(u.dtype) * u, updates)
        moved = project(optax.apply_updates(point.z, scaled))
        # A start that is not finite on its draw says nothing: it is tried on the next.
        known = state.known
        trial = evaluate(select(known, moved, point.z), draw)
        good = finite(trial)
        if not measures.fresh:
            good &= ~_out_of_scale(trial, point) & (trial.lost <= point.lost)
            still = _all_zero(updates) & _same(opt_state, state.opt_state)
        else:
            still = state.still  # the next draw may move it
        grown = jnp.minimum(1.0, _GROW * state.scale)
        moments = select(known, opt_state, state.opt_state)
        accepted = _Descent(moments, grown, still, good)
        return select(
            good,
            (trial, accepted),
            (point, state._replace(scale=_SHRINK * state.scale)),
        )

    def exhausted(point: Point, state: _Descent) -> Array:
        del point
        return state.still & (not measures.fresh)

    return Rule(evaluate, init, step, exhausted)


def select(condition: Array, yes: Any, no: Any) -> Any:
    """One of two trees of the same structure."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def _out_of_scale(trial: Point, point: Point) -> Array:
    eps = jnp.finfo(point.value.dtype).eps
    lost = eps * jnp.abs(trial.value) > jnp.abs(point.value)
    return lost & (point.value != 0.0)


def _all_zero(tree: PyTree) -> Array:
    return jnp.all(jnp.stack([jnp.all(x == 0) for x in jax.tree.leaves(tree)]))


def _same(one: PyTree, other: PyTree) -> Array:
    """Whether two states are equal, bit for bit."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return jnp.all(jnp.stack([jnp.array(True), *(_equal(a, b) for a, b in pairs)]))


def _equal(one: Array, other: Array) -> Array:
    if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
        one, other = jax.random.key_data(one), jax.random.key_data(other)
    return jnp.all(one == other)

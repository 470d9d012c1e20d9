"""The compiled outer loop, and what it returns."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from .._programs.compiled import compiled
from .._types import Hyper, PyTree, Scalar
from .measures import Problem, exponential, logarithm, measures
from .newton import Newton, newton
from .rules import Measures, Point, Rule, finite, gradient, select


class History(NamedTuple):
    """One row for the start and for each outer step; nan after the loop stopped."""

    hyper: Hyper  # each leaf with a leading axis of length steps + 1; None if "scalars"
    value: Float[Array, "*batch rows"]
    grad_norm: Float[Array, "*batch rows"]  # in the outer variables; projected
    lost: Float[Array, "*batch rows"]  # tasks left out: not finite


class Best(NamedTuple):
    """The point of the fewest lost tasks so far, and of the smallest value then."""

    hyper: Hyper
    value: Scalar  # with a draw for each step: on a further one
    lost: Scalar


class LearnState(NamedTuple):
    """Where the outer loop stands: pass it to `learn` to continue from there."""

    point: Point
    rule: PyTree  # the outer optimizer's own state
    step: Int[Array, "*batch"]  # outer steps made since the loop began
    best: Best | None  # with keep="best"


class Learned(NamedTuple):
    """What the outer loop found."""

    hyper: Hyper
    value: Scalar
    history: History
    converged: Bool[Array, "*batch"]  # the tolerance was met
    steps: Int[Array, "*batch"]  # outer steps made in this call
    state: LearnState


class Limits(NamedTuple):
    """When to stop."""

    rtol: Any
    atol: Any
    steps: Any


class Method(NamedTuple):
    """What is compiled for."""

    outer_optimizer: Any
    logs: tuple[bool, ...]  # one for each leaf of hyper
    history: str
    keep: str


@compiled
def begin(problem: Problem, hyper: Hyper, *, method: Method) -> LearnState:
    """Where the loop starts; a program of its own, so that the loop is one as well."""
    measured = measures(problem, method.logs)
    rule, z = _rule(method, measured), logarithm(method.logs)(hyper)
    zero = jnp.zeros((), jnp.int32)
    point = rule.evaluate(z, zero)
    best = _judged(measured, point, hyper) if method.keep == "best" else None
    state = LearnState(point, rule.init(point), zero, best)
    # Not weakly typed: what a file gives back is not, and it is the same program then.
    return jax.tree.map(_strongly_typed, state)


@compiled
def loop(
    problem: Problem,
    hyper: Hyper,
    state: LearnState,
    limits: Limits,
    *,
    method: Method,
    steps: int,
) -> Learned:
    """At most `limits.steps` outer steps, in a history for `steps` of them."""
    measured = measures(problem, method.logs)
    rule, to_hyper = _rule(method, measured), exponential(method.logs)

    def norm(point: Point) -> Scalar:
        if measured.project is None:
            return optax.tree.norm(point.grad)
        ahead = jax.tree.map(jnp.subtract, point.z, point.grad)
        nearest = measured.project(ahead)
        return optax.tree.norm(jax.tree.map(jnp.subtract, point.z, nearest))

    def done(state: LearnState) -> Array:
        if measured.fresh:  # one draw says nothing of the others
            return jnp.array(False)
        point = state.point
        small = norm(point) <= limits.atol + limits.rtol * jnp.abs(point.value)
        return (small | rule.exhausted(point, state.rule)) & finite(point)

    def row(point: Point) -> History:
        every = to_hyper(point.z) if method.history == "all" else None
        return History(every, point.value, norm(point), point.lost)

    def going(carry: tuple) -> Array:
        count, state, _ = carry
        stopped = done(state)
        if not measured.fresh:
            stopped |= ~finite(state.point)
        return (count < limits.steps) & ~stopped

    def outer_step(carry: tuple) -> tuple:
        count, state, rows = carry
        number = state.step + 1
        point, inner = rule.step(state.point, state.rule, number)
        rows = jax.tree.map(lambda rows, x: rows.at[count + 1].set(x), rows, row(point))
        best = state.best
        if best is not None:
            best = _better(best, _judged(measured, point, to_hyper(point.z)))
        return count + 1, LearnState(point, inner, number, best), rows

    rows = jax.tree.map(
        lambda x: jnp.full((steps + 1, *x.shape), jnp.nan, x.dtype).at[0].set(x),
        row(state.point),
    )
    first = (jnp.zeros((), jnp.int32), state, rows)
    count, state, rows = jax.lax.while_loop(going, outer_step, first)
    if state.best is not None:
        final, value, _ = state.best
    else:  # the start is returned as given, not through exp(log(·))
        final = jax.tree.map(
            lambda h, z: jnp.where(count == 0, h, z), hyper, to_hyper(state.point.z)
        )
        value = state.point.value
    return Learned(final, value, rows, done(state), count, state)


def _judged(measured: Measures, point: Point, hyper: Hyper) -> Best:
    if measured.held_out is None:
        return Best(hyper, point.value, point.lost)
    return Best(hyper, *measured.held_out(point.z))


def _better(old: Best, new: Best) -> Best:
    lower = (new.lost < old.lost) | (new.lost == old.lost) & (new.value < old.value)
    lower = jnp.isfinite(new.value) & (lower | ~jnp.isfinite(old.value))
    return select(lower, new, old)


def _rule(method: Method, measured: Measures) -> Rule:
    if isinstance(method.outer_optimizer, Newton):
        return newton(method.outer_optimizer, measured)
    return gradient(method.outer_optimizer, measured)


def _strongly_typed(leaf: Any) -> Array:
    leaf = jnp.asarray(leaf)
    return leaf.astype(leaf.dtype)

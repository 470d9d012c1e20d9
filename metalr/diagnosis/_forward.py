"""One pass along the unroll: what each step shows, nothing stored but scalars."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._types import Hyper, Scalar
from ..runs.run import State, floats_of
from ..runs.unrolled import Unrolled
from ._edge import At, Buffer, equivalent_rates, weights_of
from ._flat import all_finite, divided, flat, norm, wide_dtype
from ._lanczos import largest

_NOISE = 1e-3
"""Added to the warm start: without it Lanczos would stay in an invariant subspace."""


class Steps(NamedTuple):
    """Seen before each of the T updates."""

    loss: Float[Array, " steps"]
    slope: Float[Array, " steps"]  # dL_s/dη along the direction
    gradient: Float[Array, " steps"]  # ‖∇ℓ(w_s)‖
    sharpness: Float[Array, " steps"]
    residual: Float[Array, " steps"]
    edge: Float[Array, " steps"]
    growth: Float[Array, " steps"]  # log of what step s does to a random tangent
    tangent: Float[Array, " steps"]  # ‖dw_{s+1}/dη‖
    finite_params: Bool[Array, " steps"]  # of w_{s+1} and the optimizer's state
    finite_tangent: Bool[Array, " steps"]


class Ends(NamedTuple):
    """At the end of the run."""

    loss: Scalar  # inner
    slope: Scalar
    value: Scalar  # L_T
    total: Scalar  # its derivative along the direction
    scale: Scalar  # the same if nothing canceled: ‖∂F/∂state‖ · ‖dstate/dη‖


class Pass(NamedTuple):
    """What is the same in every step; `hyper` is prepared."""

    objective: Any
    hyper: Hyper
    direction: Hyper
    buffer: Buffer
    uniform: bool
    iterations: int
    fresh: list[Array]  # a tangent of norm 1 that moves the weights alone
    noise: Array  # the same as a vector
    leading: int  # so many leaves of the state are weights; they lead


class Carry(NamedTuple):
    """What one step hands to the next."""

    state: State
    own: list[Array]  # dw/dη and that of the memory, along the direction
    random: list[Array]  # a tangent of norm 1
    ritz: Array  # an approximate eigenvector of the Hessian


class Curvature(NamedTuple):
    """Of the inner loss at one step; nan where a run has no inner loss."""

    gradient: Scalar
    sharpness: Scalar
    residual: Scalar
    edge: Scalar
    vector: Array


def forward(
    objective: Any,
    hyper: Hyper,
    direction: Hyper,
    key: Array,
    *,
    buffer: Buffer,
    uniform: bool,
    iterations: int,
) -> tuple[Steps, Ends]:
    """Carry state, dw/dη, a random tangent and a Ritz vector; `hyper` is prepared."""
    state = objective.init(hyper)
    start = lambda hyper: floats_of(objective.init(hyper))[0]
    floats, own = jax.jvp(start, (hyper,), (direction,))
    weights = getattr(state, "params", state)
    count = len(floats_of(weights)[0])
    # A perturbation of the start, not of the optimizer's memory.
    fresh = _random_like(key, floats, count)
    noise = flat(fresh[:count]).vector
    same = Pass(
        objective, hyper, direction, buffer, uniform, iterations, fresh, noise, count
    )
    carry = Carry(state, own, fresh, noise)
    indices = jnp.arange(objective.steps)
    last, steps = jax.lax.scan(lambda c, i: _step(same, c, i), carry, indices)
    return steps, _ends(same, last)


def _step(same: Pass, carry: Carry, index: Array) -> tuple[Carry, Steps]:
    new, value, along = _linearized(same, carry.state, index)
    own, slope = along(carry.own, same.direction)
    still = jax.tree.map(jnp.zeros_like, same.hyper)
    random, _ = along(carry.random, still)
    size = norm(random)
    seen = _curvature(same, carry, value, index)
    steps = Steps(
        loss=value,
        slope=slope,
        gradient=seen.gradient,
        sharpness=seen.sharpness,
        residual=seen.residual,
        edge=seen.edge,
        growth=jnp.log(size),
        tangent=norm(own[: same.leading]),
        finite_params=all_finite(floats_of(new)[0]),
        finite_tangent=all_finite(own),
    )
    random = _normalized(random, size, same.fresh)
    return Carry(new, own, random, seen.vector), steps


def _linearized(
    same: Pass, state: State, index: Array
) -> tuple[State, Scalar, Callable[..., Any]]:
    """The next state, the loss before the step, and both along tangents."""
    floats, rebuild = floats_of(state)

    def step(floats: list[Array], hyper: Hyper) -> tuple[Any, State]:
        state = rebuild(floats)
        new, record = same.objective.step(hyper, state, index)
        if isinstance(same.objective, Unrolled):
            value = record.loss
        else:
            value = same.objective.evaluate(hyper, state)
        return (floats_of(new)[0], value), new

    (_, value), along, new = jax.linearize(step, floats, same.hyper, has_aux=True)
    return new, value, along


def _curvature(same: Pass, carry: Carry, value: Scalar, index: Array) -> Curvature:
    objective, hyper, state = same.objective, same.hyper, carry.state
    if not isinstance(objective, Unrolled):
        nan = jnp.full((), jnp.nan, value.dtype)
        return Curvature(nan, nan, nan, nan, carry.ritz)
    inner = jax.grad(objective.inner_loss(hyper, index, state))
    weights = flat(weights_of(objective, hyper, state))

    def gradient(w: Array) -> Array:
        return flat(inner(weights.put(w))).vector

    grads, hessian = jax.linearize(gradient, weights.vector)
    at = At(state, value, flat(weights.put(weights.vector)).put(grads), index)
    scale, edge = _scale(same, at)
    product = lambda v: scale * hessian(scale * v)
    shaken = carry.ritz + _NOISE * same.noise
    ritz = largest(product, shaken.astype(weights.vector.dtype), same.iterations)
    vector = ritz.vector.astype(carry.ritz.dtype)
    vector = jnp.where(jnp.all(jnp.isfinite(vector)), vector, carry.ritz)
    return Curvature(norm([grads]), ritz.value, ritz.residual, edge, vector)


def _scale(same: Pass, at: At) -> tuple[Array, Scalar]:
    """Weights of the Hessian's two sides, and the edge of the result."""
    ones = jnp.ones_like(flat(at.grads).vector)
    nan = jnp.full((), jnp.nan, ones.dtype)
    if same.buffer.kind == "unknown":
        return ones, nan
    rates, known = equivalent_rates(same.objective, same.hyper, same.buffer, at)
    rates = rates.astype(ones.dtype)
    if same.uniform:
        equal = jnp.max(rates) - jnp.min(rates) <= 1e-4 * jnp.max(rates)
        return ones, jnp.where(known & equal, 2.0 / rates[0], nan)
    safe = jnp.sqrt(jnp.where(jnp.isfinite(rates) & (rates > 0.0), rates, 0.0))
    return safe, jnp.where(known, 2.0, nan)


def _ends(same: Pass, last: Carry) -> Ends:
    objective = same.objective
    floats, rebuild = floats_of(last.state)

    def outer(floats: list[Array], hyper: Hyper) -> Scalar:
        return objective.evaluate(hyper, rebuild(floats))

    def inner(floats: list[Array], hyper: Hyper) -> Scalar:
        state = rebuild(floats)
        loss = objective.inner_loss(hyper, objective.steps - 1, state)
        return loss(weights_of(objective, hyper, state))

    point, tangent = (floats, same.hyper), (last.own, same.direction)
    value, total = jax.jvp(outer, point, tangent)
    scale = norm(jax.grad(outer)(*point)) * norm(last.own)
    if not isinstance(objective, Unrolled):
        return Ends(value, total, value, total, scale)
    loss, slope = jax.jvp(inner, point, tangent)
    return Ends(loss, slope, value, total, scale)


def _normalized(leaves: list[Array], size: Scalar, fresh: list[Array]) -> list[Array]:
    """Of norm 1; a fresh start where all is 0."""
    dead = size == 0.0
    unit = divided(leaves, jnp.where(dead, jnp.ones_like(size), size))
    return [jnp.where(dead, f, x) for f, x in zip(fresh, unit, strict=True)]


def _random_like(key: Array, leaves: list[Array], count: int) -> list[Array]:
    """Random in the first `count` leaves, 0 in the others; of norm 1."""
    drawn = [
        jax.random.normal(jax.random.fold_in(key, i), x.shape, x.dtype)
        if i < count
        else jnp.zeros_like(x)
        for i, x in enumerate(leaves)
    ]
    return divided(drawn, norm(drawn).astype(wide_dtype(leaves)))

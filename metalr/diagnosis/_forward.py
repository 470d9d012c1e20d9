"""One pass along the unroll: what each step shows, nothing stored but scalars."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from .._types import Hyper, Params, Scalar
from ..runs.run import floats_of
from ..runs.unrolled import State, Unrolled
from ._edge import At, Buffer, equivalent_rates
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
    direct: Scalar  # the part that does not come through w_T
    moves: Bool[Array, ""]  # the start depends on hyper


def forward(
    objective: Unrolled,
    hyper: Hyper,
    direction: Hyper,
    key: Array,
    *,
    buffer: Buffer,
    uniform: bool,
    iterations: int,
) -> tuple[Steps, Ends]:
    """Carry state, dw/dη, a random tangent and a Ritz vector; `hyper` is prepared."""
    zero = jax.tree.map(jnp.zeros_like, hyper)

    def start(hyper: Hyper) -> list[Array]:
        return floats_of(objective.init(hyper))[0]

    def body(carry: tuple, index: Array) -> tuple[tuple, Steps]:
        state, own, random, vector = carry
        floats, rebuild = floats_of(state)

        def step(floats: list[Array], hyper: Hyper) -> tuple:
            new, value = objective.step(hyper, rebuild(floats), index)
            return (floats_of(new)[0], value), new

        (_, value), along, new = jax.linearize(step, floats, hyper, has_aux=True)
        own, slope = along(own, direction)
        random, _ = along(random, zero)
        size = _norm(random)
        random = _normalized(random, fresh)

        def gradient(params: Params) -> Params:
            return objective.gradients(hyper, params, index)[1]

        grads, hessian = jax.linearize(gradient, state.params)
        scale, edge = _scale(
            objective, hyper, buffer, uniform, At(state, value, grads, index)
        )
        unravel = ravel_pytree(state.params)[1]

        def product(v: Array) -> Array:
            return scale * ravel_pytree(hessian(unravel(scale * v)))[0]

        shaken = vector + _NOISE * noise
        ritz = largest(product, shaken, iterations)
        vector = jnp.where(jnp.all(jnp.isfinite(ritz.vector)), ritz.vector, vector)
        count = len(jax.tree.leaves(new.params))
        seen = Steps(
            value,
            slope,
            _norm(jax.tree.leaves(grads)),
            ritz.value,
            ritz.residual,
            edge,
            jnp.log(size),
            _norm(own[:count]),
            _finite(floats_of(new)[0]),
            _finite(own),
        )
        return (new, own, random, vector), seen

    state = objective.init(hyper)
    floats, own = jax.jvp(start, (hyper,), (direction,))
    count = len(jax.tree.leaves(state.params))
    # A perturbation of the start, not of the optimizer's memory.
    fresh = _random_like(key, floats, count)
    noise = ravel_pytree(fresh[:count])[0]
    moves = jnp.stack([jnp.any(x != 0.0) for x in own]).any()
    carry = (state, own, fresh, noise)
    indices = jnp.arange(objective.steps)
    (last, own, *_), steps = jax.lax.scan(body, carry, indices)
    ends = _ends(objective, hyper, direction, last.params, own[:count])
    return steps, ends._replace(moves=moves)


def _ends(
    objective: Unrolled,
    hyper: Hyper,
    direction: Hyper,
    params: Params,
    own: list[Array],
) -> Ends:
    tangent = jax.tree.unflatten(jax.tree.structure(params), own)
    still = jax.tree.map(jnp.zeros_like, params)

    def inner(params: Params, hyper: Hyper) -> Scalar:
        return objective.inner_loss(hyper, objective.steps - 1)(params)

    def outer(params: Params, hyper: Hyper) -> Scalar:
        return objective.outer(hyper, State(params, None))

    point = (params, hyper)
    loss, slope = jax.jvp(inner, point, (tangent, direction))
    value, total = jax.jvp(outer, point, (tangent, direction))
    _, direct = jax.jvp(outer, point, (still, direction))
    return Ends(loss, slope, value, total, direct, jnp.array(False))


def _scale(
    objective: Unrolled, hyper: Hyper, buffer: Buffer, uniform: bool, at: At
) -> tuple[Array, Scalar]:
    """Weights of the Hessian's two sides, and the edge of the result."""
    ones = jnp.ones_like(ravel_pytree(at.state.params)[0])
    nan = jnp.full((), jnp.nan, ones.dtype)
    if buffer.kind == "unknown":
        return ones, nan
    rates, known = equivalent_rates(objective, hyper, buffer, at)
    if uniform:
        same = jnp.max(rates) - jnp.min(rates) <= 1e-4 * jnp.max(rates)
        return ones, jnp.where(known & same, 2.0 / rates[0], nan)
    safe = jnp.sqrt(jnp.where(jnp.isfinite(rates) & (rates > 0.0), rates, 0.0))
    return safe, jnp.where(known, 2.0, nan)


def _norm(leaves: list[Array]) -> Scalar:
    largest_entry = jnp.stack([jnp.max(jnp.abs(x)) for x in leaves]).max()
    safe = jnp.where(largest_entry > 0.0, largest_entry, 1.0)
    # Scaled: the squares of a growing tangent would overflow long before it does.
    return safe * jnp.sqrt(sum(jnp.sum((x / safe) ** 2) for x in leaves))


def _normalized(leaves: list[Array], fresh: list[Array]) -> list[Array]:
    """Of norm 1; a fresh start where all is 0."""
    size = _norm(leaves)
    dead = size == 0.0
    safe = jnp.where(dead, 1.0, size)
    return [jnp.where(dead, f, x / safe) for f, x in zip(fresh, leaves, strict=True)]


def _random_like(key: Array, leaves: list[Array], count: int) -> list[Array]:
    """Random in the first `count` leaves, 0 in the others; of norm 1."""
    drawn = [
        jax.random.normal(jax.random.fold_in(key, i), x.shape, x.dtype)
        if i < count
        else jnp.zeros_like(x)
        for i, x in enumerate(leaves)
    ]
    size = _norm(drawn)
    return [x / size for x in drawn]


def _finite(leaves: list[Array]) -> Array:
    return jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves]).all()

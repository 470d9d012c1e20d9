r"""The schedule with the least expected loss of a noisy quadratic, by search.

The loss is not convex in the schedule and has many local minima: in which order the
long and the short steps come. Newton's method goes down from several starts, and from
each minimum once single rates were moved to better places in the order.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metalr.theory import NoisyQuadratic

_ITERATIONS = 500
"""Newton steps from one start at most; in practice some tens."""

_SCATTERED = 12
"""Starts scattered around the greedy schedule."""

_ROUNDS = 4
"""Times that each minimum is reordered and solved for again."""

_SWEEPS = 20
"""Rounds of one rate at a time, for the starts far from greedy."""

_HALVINGS = 12
"""Lengths of Newton's step that are tried."""


def best_schedule(
    model: NoisyQuadratic, steps: int, *, tolerance: float = 1e-10
) -> Float[Array, " steps"]:
    r"""The schedule with the least expected loss after T steps that the search finds.

    In one dimension the closed form. In several, Newton's method on the logarithms of
    the rates (with the absolute Hessian, never uphill); solved when its model promises
    a decrease, $\tfrac12 g^\top|H|^{-1}g$, of at most `tolerance` times the loss (or
    eps times that of the start): then the loss is that of a minimum to this relative
    accuracy. This is the best of those found from `starts`, and from each after moving
    single rates to better places in the order. The same each time, but not proved to be
    the global minimum.

    Memory T² (the Hessian); T³ + d T² operations for each of some tens of steps from
    each of 18 starts, and d T³ for each move. Differentiable in the model's arrays,
    once, in both modes, by the implicit function theorem (where the Hessian is
    regular).

    Args:
        model: curvatures, noise and start.
        steps: number of rates T ≥ 1.
        tolerance: of the loss, relative.

    Returns:
        The rates; nan where the tolerance was not reached.

    Raises:
        ValueError: if `steps` is not an int ≥ 1 or `tolerance` is not positive.
    """
    if not tolerance > 0.0:
        msg = f"tolerance = {tolerance} must be positive; 1e-10 is reached easily"
        raise ValueError(msg)
    if model.curvatures.size == 1:
        return model.optimal_schedule(steps)
    greedy = model.greedy_schedule(steps)  # zeros where the start is the optimum
    found = jax.lax.custom_root(
        jax.grad(model.loss),
        jax.lax.stop_gradient(greedy),
        lambda *_: _best(jax.lax.stop_gradient(model), steps, tolerance),
        lambda g, y: jnp.linalg.solve(jax.jacfwd(g)(jnp.zeros_like(y)), y),
    )
    return jnp.where(jnp.any(model.start > 0.0), found, greedy)


def starts(model: NoisyQuadratic, steps: int) -> Float[Array, "starts steps"]:
    """Where the search begins.

    The greedy schedule, a decreasing one, 12 scattered around the greedy one; what
    moving one rate at a time to the vertex of its parabola makes of the first two; and
    those from the longest step to the shortest.
    """
    greedy = model.greedy_schedule(steps)
    counts = jnp.arange(1.0, steps + 1.0, dtype=greedy.dtype)
    decreasing = 1.0 / (jnp.min(model.curvatures) * counts)
    noise = (
        jax.random.normal(jax.random.key(0), (_SCATTERED, steps), greedy.dtype)
        * jnp.geomspace(0.01, 1.0, _SCATTERED, dtype=greedy.dtype)[:, None]
    )
    near = jnp.stack([greedy, decreasing, *(greedy * jnp.exp(noise))])
    swept = functools.partial(_swept, model)
    far = jax.lax.map(swept, jnp.stack([greedy, decreasing]))
    return jnp.concatenate([near, far, jnp.sort(far, axis=1, descending=True)])


@functools.partial(jax.jit, static_argnames="rounds")
def search(
    model: NoisyQuadratic,
    begin: Float[Array, "starts steps"],
    tolerance: float,
    *,
    rounds: int = _ROUNDS,
) -> Float[Array, "found steps"]:
    """The minima found from each start, one for each round of reordering."""

    def again(schedule: Array, count: Array) -> tuple[Array, Array]:
        start = jnp.where(count == 0, schedule, reordered(model, schedule))
        found = descend(model, start, tolerance)
        return found, found

    found = jax.lax.map(
        lambda start: jax.lax.scan(again, start, jnp.arange(rounds))[1], begin
    )
    return found.reshape(-1, begin.shape[1])


@functools.partial(jax.jit, static_argnames="steps")
def _best(model: NoisyQuadratic, steps: int, tolerance: float) -> Array:
    found = search(model, starts(model, steps), tolerance)
    values = jax.lax.map(model.loss, found)
    return found[jnp.argmin(jnp.where(jnp.isnan(values), jnp.inf, values))]


def reordered(model: NoisyQuadratic, schedule: Array) -> Array:
    """Single rates moved to other places in the order, while that helps."""
    places = jnp.arange(schedule.size)

    def moved(move: Array) -> Array:  # indices
        source, target = move // schedule.size, move % schedule.size
        rest = jnp.where(places < target, places, places - 1)
        order = jnp.where(rest >= source, rest + 1, rest)
        return jnp.where(places == target, source, order)

    def improve(state: tuple[Array, Array]) -> tuple[Array, Array]:
        schedule, _ = state
        moves = jnp.arange(schedule.size**2)
        value = lambda move: model.loss(schedule[moved(move)])
        values = jax.lax.map(value, moves, batch_size=256)
        best = jnp.argmin(jnp.where(jnp.isnan(values), jnp.inf, values))
        better = values[best] < (1.0 - 1e-9) * model.loss(schedule)
        return jnp.where(better, schedule[moved(best)], schedule), better

    state = schedule, jnp.array(True)
    return jax.lax.while_loop(lambda state: state[1], improve, state)[0]


def _swept(model: NoisyQuadratic, schedule: Array) -> Array:
    return jax.lax.fori_loop(0, _SWEEPS, lambda _, s: sweep(model, s), schedule)


def descend(model: NoisyQuadratic, schedule: Array, tolerance: float) -> Array:
    """Newton steps downhill until Newton's model promises no improvement."""
    initial = 0.5 * jnp.sum(model.curvatures * model.start)
    negligible = jnp.finfo(schedule.dtype).eps * initial

    def improve(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        schedule, _, count = state
        value = model.loss(schedule)
        step, promise = _newton(model, schedule)
        # The full step in the logarithms, or a part of it: never uphill.
        parts = 0.5 ** jnp.arange(_HALVINGS, dtype=step.dtype)
        trials = schedule * jnp.exp(jnp.clip(parts[:, None] * step, -1.0, 1.0))
        values = jax.lax.map(model.loss, trials)
        best = jnp.argmin(jnp.where(jnp.isnan(values), jnp.inf, values))
        new = jnp.where(values[best] < value, trials[best], schedule)
        return new, promise <= tolerance * value + negligible, count + 1

    def going(state: tuple[Array, Array, Array]) -> Array:
        return ~state[1] & (state[2] < _ITERATIONS)

    state = schedule, jnp.array(False), jnp.zeros((), jnp.int32)
    schedule, reached, _ = jax.lax.while_loop(going, improve, state)
    return jnp.where(reached, schedule, jnp.nan)


def _newton(model: NoisyQuadratic, schedule: Array) -> tuple[Array, Array]:
    """Newton's step in the log rates, and the decrease it promises.

    With the absolute Hessian, so that it goes downhill.
    """
    loss = lambda z: model.loss(jnp.exp(z))
    z = jnp.log(schedule)
    slopes, hessian = jax.grad(loss)(z), jax.hessian(loss)(z)
    # Rates differ by orders of magnitude in what they matter: unit diagonal.
    curvature = jnp.abs(jnp.diag(hessian))
    scale = jax.lax.rsqrt(jnp.where(curvature > 0.0, curvature, 1.0))
    values, vectors = jnp.linalg.eigh(scale[:, None] * hessian * scale)
    along = vectors.T @ (scale * slopes)
    least = schedule.size * jnp.finfo(schedule.dtype).eps
    values = jnp.maximum(jnp.abs(values), least)
    return -scale * (vectors @ (along / values)), 0.5 * jnp.sum(along**2 / values)


def sweep(model: NoisyQuadratic, schedule: Array) -> Array:
    """Each rate in turn at the vertex of its parabola, the last one first."""
    h = model.curvatures
    before = jax.lax.scan(
        lambda m, rate: (model.step(m, rate), m), model.start, schedule
    )[1]

    def back(b: Array, m: Array) -> tuple[Array, Array]:
        best = jnp.sum(b * h * m) / jnp.sum(b * h**2 * (m + model.noise))
        return b * (1.0 - best * h) ** 2, best

    # b = ∂L/∂m after the step; the moments before it do not depend on later rates.
    return jax.lax.scan(back, h, before, reverse=True)[1]

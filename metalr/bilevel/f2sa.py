"""F2SA: first-order derivatives alone, by a penalty on the inner problem."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from .._checks import int_at_least
from .._types import Hyper, Params, Scalar
from .oracle import Oracle, gradient, outer_gradients
from .solver import Solver, State, begin, descended, draw, moves, outer_step


def F2SA(
    inner: Oracle | Any,
    outer: Oracle | Any,
    *,
    inner_optimizer: optax.GradientTransformation | Any,
    outer_optimizer: optax.GradientTransformation | Any,
    penalty: float | Callable[[Array], Any],
    penalized_optimizer: optax.GradientTransformation | Any | None = None,
    inner_steps: int = 10,
    project: Any = None,
) -> Solver:
    r"""The fully first-order stochastic approximation: no second derivative anywhere.

    The inner problem becomes a penalty $\lambda$ on what it is above its minimum:

    $$h_\lambda(x) = \min_y\; f(y, x) + \lambda\bigl(g(y, x) - \min_z g(z, x)\bigr)$$

    $$D_x = \nabla_x f_j(y) + \lambda\bigl(\nabla_x g_i(y) - \nabla_x g_i(z)\bigr)$$

    K steps of z against $\nabla_z g$ and K of y against $\nabla_y g + \nabla_y f /
    \lambda$ in each update. With λ fixed it converges to a stationary point of
    $h_\lambda$, whose gradient is off by $O(1/\lambda)$; a schedule `penalty(update)`
    that grows takes the bias away, and multiplies the noise of $D_x$ by λ, so that the
    outer rate is to fall with it.

    Args:
        inner: g, strongly convex in its params.
        outer: f.
        inner_optimizer: of z (`state.params`), and of y (`state.adjoint`), which has a
            state of its own.
        outer_optimizer: of hyper.
        penalty: λ > 0, or a schedule of the number of updates made (as in optax).
        penalized_optimizer: of y, where it is another one: it sees the curvature of g
            and 1/λ of that of f.
        inner_steps: K.
        project: None, or the projection of hyper onto a feasible set.

    Returns:
        `Solver(init, update)`: see `SOBA`; y starts where z does. An update costs 2K +
        2 gradients of g and K + 1 of f.

    Raises:
        ValueError: as `SOBA`, and for a number of steps below 1, or a penalty that is
            not positive.

    References:
        Kwon, Kwon, Wright, Nowak (2023), A fully first-order method for stochastic
        bilevel optimization.
    """
    options = inner_optimizer, outer_optimizer, penalized_optimizer, project
    by = moves(inner, outer, *options)
    inner_steps = int_at_least(inner_steps, "inner_steps", 1)
    if not callable(penalty) and not penalty > 0.0:
        msg = f"penalty = {penalty!r} must be positive, or a schedule update -> number"
        raise ValueError(msg)
    calls = 3 * (inner_steps + 1)

    def init(params: Params, hyper: Hyper, key: Any = 0) -> State:
        state = begin(by, params, hyper, key)
        return state._replace(adjoint=state.params)

    def update(state: State) -> State:
        key, *keys = jax.random.split(state.key, 5)
        x, many = state.hyper, (inner_steps,)
        weight = penalty(state.updates) if callable(penalty) else penalty
        for_params, for_penalized, for_hyper = state.optimizers
        z, for_params = descended(
            by.params,
            lambda z, i: gradient(inner, z, x, i),
            for_params,
            state.params,
            draw(inner, keys[0], many),
        )

        def penalized(y: Params, drawn: tuple[Array, Array]) -> Params:
            i, j = drawn
            further = gradient(outer, y, x, j)
            return _add(gradient(inner, y, x, i), 1.0 / weight, further)

        draws = draw(inner, keys[1], many), draw(outer, keys[2], many)
        y, for_penalized = descended(
            by.adjoint, penalized, for_penalized, state.adjoint, draws
        )
        for_i, for_j = jax.random.split(keys[3])
        batch = inner.batches(draw(inner, for_i))
        above = lambda x: inner.loss(y, x, batch) - inner.loss(z, x, batch)
        outside = outer_gradients(outer, y, x, draw(outer, for_j))
        direction = _add(outside.by_hyper, weight, jax.grad(above)(x))
        hyper, for_hyper = outer_step(by, direction, for_hyper, x)
        return state._replace(
            params=z,
            hyper=hyper,
            adjoint=y,
            optimizers=(for_params, for_penalized, for_hyper),
            key=key,
            updates=state.updates + 1,
            calls=state.calls + calls,
        )

    return Solver(init, update)


def _add(tree: Any, scale: Scalar | float, other: Any) -> Any:
    """`tree + scale * other`, in the dtypes of `tree`."""
    scaled = lambda a, b: a + jnp.asarray(scale, a.dtype) * b
    return jax.tree.map(scaled, tree, other)

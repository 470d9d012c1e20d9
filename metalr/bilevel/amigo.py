"""AmIGO: a few steps on the inner problem and on the adjoint, both warm-started."""

from typing import Any

import jax
import optax

from .._checks import int_at_least
from .._types import Hyper, Params
from .oracle import Oracle, cross_product, gradient, hessian_product, outer_gradients
from .solver import Solver, State, begin, descended, draw, moves, outer_step


def AmIGO(
    inner: Oracle | Any,
    outer: Oracle | Any,
    *,
    inner_optimizer: optax.GradientTransformation | Any,
    outer_optimizer: optax.GradientTransformation | Any,
    linear_optimizer: optax.GradientTransformation | Any | None = None,
    inner_steps: int = 10,
    linear_steps: int = 10,
    project: Any = None,
) -> Solver:
    r"""Amortized implicit gradients: K inner steps, then M steps for the adjoint.

    Params go on from where they were, and so does the adjoint, by stochastic gradient
    steps on the quadratic that it minimizes,

    $$D_v = \nabla^2_{zz} g_i\,v - \nabla_z f_j, \qquad
      D_x = \nabla_x f_j - \nabla^2_{xz} g_i\,v$$

    with one minibatch j of the outer function for all M steps. With full batches and
    constant rates it converges linearly on strongly convex problems (no bias is left,
    unlike `StocBiO`); with minibatches to the noise level of the rates.

    Args:
        inner: g, strongly convex in its params.
        outer: f.
        inner_optimizer: of params, and of the adjoint (with a state of its own).
        outer_optimizer: of hyper.
        linear_optimizer: of the adjoint, where it is another one.
        inner_steps: K.
        linear_steps: M.
        project: None, or the projection of hyper onto a feasible set.

    Returns:
        `Solver(init, update)`: see `SOBA`. An update costs K inner gradients, M Hessian
        products, one cross product and one outer gradient.

    Raises:
        ValueError: as `SOBA`, and for counts below 1.

    References:
        Arbel, Mairal (2022), Amortized implicit differentiation for stochastic bilevel
        optimization.
    """
    options = inner_optimizer, outer_optimizer, linear_optimizer, project
    by = moves(inner, outer, *options)
    inner_steps = int_at_least(inner_steps, "inner_steps", 1)
    linear_steps = int_at_least(linear_steps, "linear_steps", 1)
    calls = inner_steps + linear_steps + 2

    def init(params: Params, hyper: Hyper, key: Any = 0) -> State:
        return begin(by, params, hyper, key)

    def update(state: State) -> State:
        key, *keys = jax.random.split(state.key, 5)
        x = state.hyper
        for_params, for_adjoint, for_hyper = state.optimizers
        z, for_params = descended(
            by.params,
            lambda z, i: gradient(inner, z, x, i),
            for_params,
            state.params,
            draw(inner, keys[0], (inner_steps,)),
        )
        outside = outer_gradients(outer, z, x, draw(outer, keys[1]))
        v, for_adjoint = descended(
            by.adjoint,
            lambda v, i: optax.tree.sub(
                hessian_product(inner, z, x, v, i), outside.by_params
            ),
            for_adjoint,
            state.adjoint,
            draw(inner, keys[2], (linear_steps,)),
        )
        cross = cross_product(inner, z, x, v, draw(inner, keys[3]))
        direction = optax.tree.sub(outside.by_hyper, cross)
        hyper, for_hyper = outer_step(by, direction, for_hyper, x)
        return state._replace(
            params=z,
            hyper=hyper,
            adjoint=v,
            optimizers=(for_params, for_adjoint, for_hyper),
            key=key,
            updates=state.updates + 1,
            calls=state.calls + calls,
        )

    return Solver(init, update)

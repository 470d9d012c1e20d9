"""StocBiO: a few inner steps, then a stochastic Neumann series for the adjoint."""

from typing import Any

import jax
import optax
from jaxtyping import Array

from .._checks import int_at_least
from .._types import Hyper, Params
from .oracle import Oracle, cross_product, gradient, hessian_product, outer_gradients
from .solver import Solver, State, begin, descended, draw, moves, outer_step


def StocBiO(
    inner: Oracle | Any,
    outer: Oracle | Any,
    *,
    inner_optimizer: optax.GradientTransformation | Any,
    outer_optimizer: optax.GradientTransformation | Any,
    neumann_rate: float,
    inner_steps: int = 10,
    terms: int = 10,
    project: Any = None,
) -> Solver:
    r"""The stochastic bilevel optimizer: K inner steps, Q terms of a Neumann series.

    Params go on from where they were. The adjoint is made anew in each update, with a
    fresh minibatch $i_q$ in each factor:

    $$v = \alpha\sum_{q<Q}\; \prod_{p \le q}(I - \alpha\nabla^2_{zz} g_{i_p})\,
      \nabla_z f_j, \qquad D_x = \nabla_x f_j - \nabla^2_{xz} g_i\,v$$

    Biased by what the series leaves out: $(1 - \alpha\mu)^Q$ of the adjoint along an
    eigenvector of curvature μ. With full batches it stalls at that bias, with
    minibatches and constant rates at the noise as well.

    Args:
        inner: g, strongly convex in its params.
        outer: f.
        inner_optimizer: of params.
        outer_optimizer: of hyper.
        neumann_rate: α < 2 / (the largest curvature of a minibatch).
        inner_steps: K.
        terms: Q.
        project: None, or the projection of hyper onto a feasible set.

    Returns:
        `Solver(init, update)`: see `SOBA`. An update costs K inner gradients, Q - 1
        Hessian products, one cross product and one outer gradient.

    Raises:
        ValueError: as `SOBA`, and for counts below 1 or an α that is not positive.

    References:
        Ji, Yang, Liang (2021), Bilevel optimization: convergence analysis and enhanced
        design.
    """
    by = moves(inner, outer, inner_optimizer, outer_optimizer, project=project)
    inner_steps = int_at_least(inner_steps, "inner_steps", 1)
    terms = int_at_least(terms, "terms", 1)
    if not neumann_rate > 0.0:
        msg = f"neumann_rate = {neumann_rate!r} must be positive"
        raise ValueError(msg)
    calls = inner_steps + (terms - 1) + 2

    def init(params: Params, hyper: Hyper, key: Any = 0) -> State:
        return begin(by, params, hyper, key)

    def update(state: State) -> State:
        key, *keys = jax.random.split(state.key, 5)
        x = state.hyper
        for_params, unused, for_hyper = state.optimizers
        z, for_params = descended(
            by.params,
            lambda z, i: gradient(inner, z, x, i),
            for_params,
            state.params,
            draw(inner, keys[0], (inner_steps,)),
        )
        outside = outer_gradients(outer, z, x, draw(outer, keys[1]))

        def term(carry: tuple, index: Array) -> tuple[tuple, None]:
            total, power = carry
            product = hessian_product(inner, z, x, power, index)
            power = optax.tree.add_scale(power, -neumann_rate, product)
            return (optax.tree.add(total, power), power), None

        start = (outside.by_params, outside.by_params)
        series = jax.lax.scan(term, start, draw(inner, keys[2], (terms - 1,)))[0][0]
        v = optax.tree.scale(neumann_rate, series)
        cross = cross_product(inner, z, x, v, draw(inner, keys[3]))
        direction = optax.tree.sub(outside.by_hyper, cross)
        hyper, for_hyper = outer_step(by, direction, for_hyper, x)
        return state._replace(
            params=z,
            hyper=hyper,
            adjoint=v,
            optimizers=(for_params, unused, for_hyper),
            key=key,
            updates=state.updates + 1,
            calls=state.calls + calls,
        )

    return Solver(init, update)

"""SOBA: parameters, adjoint and hyperparameters each take one stochastic step."""

from typing import Any

import jax
import optax

from .._types import Hyper, Params
from .oracle import InnerProducts, Oracle, OuterGradients, outer_gradients, products
from .solver import Moves, Solver, State, begin, draw, moved, moves, outer_step

CALLS = 4
"""Inner gradient, Hessian product, cross product; outer gradient."""


def SOBA(
    inner: Oracle | Any,
    outer: Oracle | Any,
    *,
    inner_optimizer: optax.GradientTransformation | Any,
    outer_optimizer: optax.GradientTransformation | Any,
    linear_optimizer: optax.GradientTransformation | Any | None = None,
    project: Any = None,
) -> Solver:
    r"""The stochastic bilevel algorithm: one step of each variable in each update.

    With minibatches i of the inner function g and j of the outer function f,

    $$D_z = \nabla_z g_i, \qquad D_v = \nabla^2_{zz} g_i\,v - \nabla_z f_j, \qquad
      D_x = \nabla_x f_j - \nabla^2_{xz} g_i\,v$$

    all at the same (z, v, x), each an unbiased estimate; z and v move against theirs by
    `inner_optimizer`, x by `outer_optimizer`. Where all three are 0, z is the inner
    minimum, v the adjoint, and $D_x = \nabla h(x)$. With full batches and constant
    rates it converges linearly on strongly convex problems; with minibatches to a noise
    level in proportion to the rates, and with rates that fall as $t^{-1/2}$
    (`optax.sgd(schedule)`) to the optimum. The outer rate is to be small beside the
    inner one: if z and v cannot follow x, it diverges.

    MA-SOBA, which averages the outer direction, is
    `outer_optimizer=optax.chain(optax.ema(0.9, debias=False), optax.sgd(rate))`.

    Args:
        inner: g, strongly convex in its params.
        outer: f.
        inner_optimizer: of params, and of the adjoint (with a state of its own).
        outer_optimizer: of hyper.
        linear_optimizer: of the adjoint, where it is another one.
        project: None, or the projection of hyper onto a feasible set.

    Returns:
        `Solver(init, update)`. `init(params, hyper, key=0)` makes a `State`;
        `update(state)` draws its minibatches by the key in it, and returns the next;
        `state.calls` counts the minibatch gradients and products (4 an update). Both
        are pure: `jit`, `scan` and `vmap` them. Memory: two sets of parameters, their
        optimizers' states, and one minibatch's derivatives.

    Raises:
        ValueError: for what is no `Oracle` or no optimizer; from `init` for params or
            hyper that are not floats.

    Example: $g = (z - x)^2 / 2$, $f = (z - 1)^2 / 2$: the optimum is x = 1.

        >>> import jax, optax
        >>> from metalr import bilevel
        >>> inner = bilevel.oracle(lambda z, x, batch: 0.5 * (z - x) ** 2)
        >>> outer = bilevel.oracle(lambda z, x, batch: 0.5 * (z - 1.0) ** 2)
        >>> solver = bilevel.SOBA(
        ...     inner,
        ...     outer,
        ...     inner_optimizer=optax.sgd(0.5),
        ...     outer_optimizer=optax.sgd(0.1),
        ... )
        >>> state = solver.init(0.0, 0.0)
        >>> update = lambda state, _: (solver.update(state), None)
        >>> state, _ = jax.lax.scan(update, state, length=200)
        >>> print(f"{state.hyper:.4f} {state.params:.4f} {state.calls}")
        1.0000 1.0000 800

    References:
        Dagréou, Ablin, Vaiter, Moreau (2022), A framework for bilevel optimization that
        enables stochastic and global variance reduction algorithms. Chen, Xiao,
        Balasubramanian (2024), Optimal algorithms for stochastic bilevel optimization
        under relaxed smoothness conditions (MA-SOBA).
    """
    options = inner_optimizer, outer_optimizer, linear_optimizer, project
    by = moves(inner, outer, *options)

    def init(params: Params, hyper: Hyper, key: Any = 0) -> State:
        return begin(by, params, hyper, key)

    def update(state: State) -> State:
        key, for_inner, for_outer = jax.random.split(state.key, 3)
        z, x, v = state.params, state.hyper, state.adjoint
        found = products(inner, z, x, v, draw(inner, for_inner))
        outside = outer_gradients(outer, z, x, draw(outer, for_outer))
        return together(by, state, found, outside)._replace(key=key)

    return Solver(init, update)


def together(
    by: Moves, state: State, found: InnerProducts, outside: OuterGradients
) -> State:
    """All three variables after a step along their directions at the same point."""
    for_params, for_adjoint, for_hyper = state.optimizers
    adjoint_direction = optax.tree.sub(found.hessian, outside.by_params)
    hyper_direction = optax.tree.sub(outside.by_hyper, found.cross)
    params, for_params = moved(by.params, found.gradient, for_params, state.params)
    adjoint, for_adjoint = moved(
        by.adjoint, adjoint_direction, for_adjoint, state.adjoint
    )
    hyper, for_hyper = outer_step(by, hyper_direction, for_hyper, state.hyper)
    return state._replace(
        params=params,
        hyper=hyper,
        adjoint=adjoint,
        optimizers=(for_params, for_adjoint, for_hyper),
        updates=state.updates + 1,
        calls=state.calls + CALLS,
    )

"""Dynamical systems in the place of an inner optimizer: unrolls that train nothing."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from .._types import Batch, Hyper, Loss, Optimizer, Params, Scalar


def dynamics(step: Callable[[Params, Hyper], Params]) -> Optimizer:
    r"""An "optimizer" whose update is one step of a dynamical system.

    $$s_{t+1} = f(s_t, \theta)$$

    For `Unrolled`, whose loss is then that of the state, and whose `params` the start:
    every engine that takes any optimizer runs on it unchanged. The update handed to
    optax is $f(s,\theta) - s$, so that the next state is $f(s, \theta)$ to rounding.
    Gradients of the loss are ignored, and cost nothing once compiled. In
    `metalr.per_step` it takes one θ for each step.

    Args:
        step: $f$: `step(state, hyper) -> state`, of the same structure and dtypes.

    Example:
        >>> import metalr
        >>> from metalr.problems import dynamics
        >>> loss = lambda state, hyper, batch: state**2
        >>> decay = dynamics(lambda state, hyper: hyper * state)
        >>> L = metalr.Unrolled(loss, decay, 1.0, steps=3)
        >>> value, grad = metalr.hypergradient(L, 0.5)  # θ⁶ and 6 θ⁵
        >>> print(value, grad)
        0.015625 0.1875
    """

    def optimizer(hyper: Hyper) -> optax.GradientTransformation:
        def init(params: optax.Params) -> optax.OptState:
            del params
            return optax.EmptyState()

        def update(
            updates: optax.Updates, state: Any, params: optax.Params | None = None
        ) -> tuple[optax.Updates, Any]:
            del updates
            return jax.tree.map(jnp.subtract, step(params, hyper), params), state

        return optax.GradientTransformation(init, update)

    return optimizer


class Problem(NamedTuple):
    """What `Unrolled` takes: `metalr.Unrolled(*problem, steps=T)`."""

    loss: Loss
    optimizer: Optimizer
    params: Params


def influence_balancing(n: int = 23, positive: int = 10) -> Problem:
    r"""A parameter that acts one way at first, and the other way in the long run.

    $$s_{t+1} = A s_t + \theta\,c, \qquad A = \tfrac12(I + \text{superdiagonal}),
      \quad c = (1, \dots, 1, -1, \dots, -1), \qquad \ell = \tfrac12(s[0] - 1)^2$$

    with `positive` entries + 1 and the rest − 1, from $s_0 = 1$. The state at 0 feels θ
    through ever more entries: the negative ones win, but late. Truncated
    derivatives have the wrong sign (published: up to 40 steps; at θ = ½ and 1000 steps
    the loss is 8, the derivative 24, and −4 through the last step alone).

    Args:
        n: number of states.
        positive: entries of c that are + 1.

    Returns:
        `Problem(loss, optimizer, params)`, in the default dtype of JAX; hyper is θ.

    Raises:
        ValueError: if a count is out of range.

    Example:
        >>> import metalr
        >>> L = metalr.Unrolled(*metalr.problems.influence_balancing(), steps=1000)
        >>> print(f"{metalr.hypergradient(L, 0.5).grad:.3f}")
        24.000
        >>> print(metalr.hypergradient(L, 0.5, metalr.Truncated(last=1)).grad)
        -4.0

    References:
        Tallec & Ollivier (2018), Unbiased online recurrent optimization. Vicol, Metz,
        Sohl-Dickstein (2021), Unbiased gradient estimation in unrolled computation
        graphs with persistent evolution strategies.
    """
    if n < 1 or not 0 <= positive <= n:
        msg = f"n = {n} and positive = {positive} must satisfy 0 ≤ positive ≤ n, n ≥ 1"
        raise ValueError(msg)
    A = 0.5 * (jnp.eye(n) + jnp.eye(n, k=1))
    signs = jnp.where(jnp.arange(n) < positive, 1.0, -1.0)

    def step(state: Float[Array, " n"], theta: Scalar) -> Float[Array, " n"]:
        return A @ state + theta * signs

    def loss(state: Float[Array, " n"], hyper: Hyper, batch: Batch) -> Scalar:
        del hyper, batch
        return 0.5 * (state[0] - 1.0) ** 2

    return Problem(loss, dynamics(step), jnp.ones(n))

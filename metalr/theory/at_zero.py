r"""Derivatives of $L_T(\eta)$ at η = 0, for any smooth loss and any T.

At η = 0 the run stays where it starts, and all gradients are those of the start: the
derivatives of the whole unroll come down to a gradient and a Hessian-vector product
there. Nothing is unrolled.

In every function `loss(params, hyper, batch)` is the inner loss, `outer_loss(params,
hyper)` the outer one, the inner one by default, as in `Unrolled`. Neither may depend on
`hyper`, and there are no batches: they are called with `None`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._types import Loss, OuterLoss, Params, Scalar, ScalarLike
from ._checks import check_steps


class Derivatives(NamedTuple):
    """First and second derivative of the loss after T steps in η, at η = 0."""

    slope: Scalar
    curvature: Scalar


def gradient_descent(
    loss: Loss, params: Params, steps: int, *, outer_loss: OuterLoss | None = None
) -> Derivatives:
    r"""Slope and curvature of T steps of gradient descent at η = 0.

    $$L_T' = -T\,\bar g^\top g, \qquad
      L_T'' = T^2 g^\top\bar H g + T(T-1)\,\bar g^\top H g$$

    with $g, H$ of the inner loss and $\bar g, \bar H$ of the outer one; where they are
    the same, $-T\|g\|^2$ and $T(2T-1)\,g^\top Hg$. The case α = 0 of `heavy_ball`;
    arguments, errors and derivatives as there.

    Example:
        >>> from metalr.theory import at_zero
        >>> half_square = lambda params, hyper, batch: 0.5 * params**2
        >>> slope, curvature = at_zero.gradient_descent(half_square, 1.0, 3)
        >>> print(slope, curvature)
        -3.0 15.0
    """
    return heavy_ball(loss, params, 0.0, steps, outer_loss=outer_loss)


def heavy_ball(
    loss: Loss,
    params: Params,
    momentum: ScalarLike,
    steps: int,
    *,
    outer_loss: OuterLoss | None = None,
) -> Derivatives:
    r"""Slope and curvature of T steps with momentum from rest at η = 0.

    $$L_T' = -κ_T\,\bar g^\top g, \qquad κ_T = \sum_{s=1}^T\frac{1-\alpha^s}{1-\alpha},
      \qquad L_T'' = κ_T^2\,g^\top\bar Hg + 2N_T\,\bar g^\top Hg$$

    with $N_T = \sum_{s\le T} ν_s$, $ν_s = \alpha ν_{s-1} + κ_{s-1}$: momentum
    lengthens the first step by $κ_T/T$, about $1/(1-\alpha)$. The run of
    `optax.sgd(eta, momentum)`. Costs one gradient and one Hessian-vector product of
    each loss, and T scalar operations. Differentiable in `params` and `momentum`.

    Args:
        loss: the inner loss.
        params: where the run starts: any pytree.
        momentum: α, also 1.
        steps: number of updates T ≥ 0.
        outer_loss: the outer loss; the inner one by default.

    Raises:
        ValueError: if `steps` is not an int ≥ 0.

    Example:
        >>> from metalr.theory import at_zero
        >>> half_square = lambda params, hyper, batch: 0.5 * params**2
        >>> print(at_zero.heavy_ball(half_square, 1.0, 0.5, 2).slope)
        -2.5
    """
    check_steps(steps, least=0)
    g, Hg, g_out, gHg_out = _at_start(loss, outer_loss, params)
    reach, lag = _reach(momentum, steps)
    slope = -reach * _dot(g_out, g)
    return Derivatives(slope, reach**2 * gHg_out + 2.0 * lag * _dot(g_out, Hg))


def adam_slope(
    loss: Loss,
    params: Params,
    steps: int,
    *,
    eps: ScalarLike = 0.0,
    outer_loss: OuterLoss | None = None,
) -> Scalar:
    r"""Slope of T steps of Adam at η = 0: $-T\sum_i \bar g_i g_i/(|g_i| + ε)$.

    $-T\|g\|_1$ at ε = 0 where the losses are the same. Bias correction makes both
    moments those of the constant gradient, whatever the decay rates: every update is a
    sign. A coordinate whose gradient is 0 does not move and counts nothing.
    Differentiable in `params` and `eps` where no gradient is 0.

    Args:
        loss: the inner loss.
        params: where the run starts: any pytree.
        steps: number of updates T ≥ 0.
        eps: ε as in `optax.adam` (1e-8 there).
        outer_loss: the outer loss; the inner one by default.

    Raises:
        ValueError: if `steps` is not an int ≥ 0.

    Example:
        >>> from metalr.theory import at_zero
        >>> half_square = lambda params, hyper, batch: 0.5 * params**2
        >>> print(at_zero.adam_slope(half_square, 3.0, 5))
        -15.0
    """
    check_steps(steps, least=0)
    g, g_out = _gradients(loss, outer_loss, params)
    return -steps * _dot(g_out, _normalized(g, lambda g: jnp.abs(g) + eps))


def adagrad_slope(
    loss: Loss,
    params: Params,
    steps: int,
    *,
    initial_accumulator_value: ScalarLike = 0.0,
    eps: ScalarLike = 0.0,
    outer_loss: OuterLoss | None = None,
) -> Scalar:
    r"""Slope of T steps of AdaGrad at η = 0.

    $$L_T' = -\sum_{s=1}^T\sum_i\frac{\bar g_i g_i}{\sqrt{A_0 + s\,g_i^2 + ε}},$$

    $-\|g\|_1\sum_s s^{-1/2}$ where the losses are the same and $A_0 = ε = 0$. Costs T
    passes over the gradient in constant memory. Differentiable in `params` where no
    gradient is 0, and in the two options.

    Args:
        loss: the inner loss.
        params: where the run starts: any pytree.
        steps: number of updates T ≥ 0.
        initial_accumulator_value: $A_0$ as in `optax.adagrad` (0.1 there).
        eps: ε as in `optax.adagrad` (1e-7 there), under the root.
        outer_loss: the outer loss; the inner one by default.

    Raises:
        ValueError: if `steps` is not an int ≥ 0.

    Example:
        >>> from metalr.theory import at_zero
        >>> half_square = lambda params, hyper, batch: 0.5 * params**2
        >>> print(f"{at_zero.adagrad_slope(half_square, 3.0, 2):.4f}")
        -5.1213
    """
    check_steps(steps, least=0)
    g, g_out = _gradients(loss, outer_loss, params)

    def one(total: Scalar, s: Array) -> tuple[Scalar, None]:
        def size(g: Array) -> Array:
            squared = initial_accumulator_value + s * g**2 + eps
            positive = squared > 0.0
            return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)

        return total + _dot(g_out, _normalized(g, size)), None

    start = jnp.zeros_like(_dot(g_out, g))
    counts = jnp.arange(1, steps + 1, dtype=start.dtype)
    return -jax.lax.scan(one, start, counts)[0]


def _reach(momentum: ScalarLike, steps: int) -> tuple[Scalar, Scalar]:
    """κ_T and N_T of `heavy_ball`, by their recursions."""
    alpha = jnp.asarray(momentum, float)

    def step(state: tuple[Array, ...], _: None) -> tuple[tuple[Array, ...], None]:
        velocity, reach, lag, total = state
        lag = alpha * lag + reach
        velocity = alpha * velocity + 1.0
        return (velocity, reach + velocity, lag, total + lag), None

    zero = jnp.zeros_like(alpha)
    _, reach, _, total = jax.lax.scan(step, (zero,) * 4, length=steps)[0]
    return reach, total


def _gradients(
    loss: Loss, outer_loss: OuterLoss | None, params: Params
) -> tuple[Params, Params]:
    g = jax.grad(lambda w: loss(w, None, None))(params)
    return g, g if outer_loss is None else jax.grad(lambda w: outer_loss(w, None))(
        params
    )


def _at_start(
    loss: Loss, outer_loss: OuterLoss | None, params: Params
) -> tuple[Params, Params, Params, Scalar]:
    """`g, Hg, ḡ, gᵀH̄g`."""
    inner = jax.grad(lambda w: loss(w, None, None))
    g = inner(params)
    Hg = jax.jvp(inner, (params,), (g,))[1]
    if outer_loss is None:
        return g, Hg, g, _dot(g, Hg)
    outer = jax.grad(lambda w: outer_loss(w, None))
    g_out, Hg_out = jax.jvp(outer, (params,), (g,))
    return g, Hg, g_out, _dot(g, Hg_out)


def _normalized(g: Params, size: Callable[[Array], Array]) -> Params:
    """`g / size(g)`, 0 where g is 0."""

    def one(g: Array) -> Array:
        zero = g == 0.0
        return jnp.where(zero, 0.0, g / jnp.where(zero, 1.0, size(g)))

    return jax.tree.map(one, g)


def _dot(a: Params, b: Params) -> Scalar:
    products = jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)
    return sum(jax.tree.leaves(products), jnp.zeros(()))

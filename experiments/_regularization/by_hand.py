"""The three hypergradients and the outer loop in plain JAX."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from experiments._regularization.problem import Problem, logistic, strengths


class Numbers(NamedTuple):
    """Of the inner run, and of the linear solve."""

    steps: int
    rate: float
    momentum: float
    products: int  # of conjugate gradients
    terms: int  # of the Neumann series
    neumann_rate: float


Gradient: TypeAlias = Callable[[Problem, Numbers, Any, Any], tuple[Any, Any]]
"""(problem, numbers, start, η) -> the hypergradient, and where the run ended."""


def inner(problem: Problem, w: Any, eta: Any) -> Any:
    """The inner loss."""
    return logistic(*problem.train, w, eta) + 0.5 * jnp.sum(strengths(eta) * w**2)


def descended(problem: Problem, numbers: Numbers, w: Any, eta: Any) -> Any:
    """Steps with momentum."""

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        w, trace = carry
        slope = jax.grad(inner, argnums=1)(problem, w, eta)
        trace = slope + numbers.momentum * trace
        return (w - numbers.rate * trace, trace), None

    return jax.lax.scan(step, (w, jnp.zeros_like(w)), length=numbers.steps)[0][0]


def unrolled(problem: Problem, numbers: Numbers, w: Any, eta: Any) -> Any:
    """Through the steps."""

    def after(eta: Any) -> Any:
        end = descended(problem, numbers, w, eta)
        return logistic(*problem.validation, end, eta), end

    return jax.grad(after, has_aux=True)(eta)


def implicit(problem: Problem, w: Any, eta: Any, solve: Callable[..., Any]) -> Any:
    """−∂²g/∂η∂w q, with q = H⁻¹ ∇F by `solve`."""
    slope = lambda w, eta: jax.grad(inner, argnums=1)(problem, w, eta)
    times = lambda v: jax.jvp(lambda w: slope(w, eta), (w,), (v,))[1]
    q = solve(times, jax.grad(logistic, argnums=2)(*problem.validation, w, eta))
    return -jax.vjp(lambda eta: slope(w, eta), eta)[1](q)[0]


def cg(problem: Problem, numbers: Numbers, w: Any, eta: Any) -> Any:
    """By the theorem where the steps end, with conjugate gradients."""
    w = descended(problem, numbers, w, eta)
    solve = lambda times, right: jax.scipy.sparse.linalg.cg(
        times, right, tol=0.0, maxiter=numbers.products
    )[0]
    return implicit(problem, w, eta, solve), w


def neumann(problem: Problem, numbers: Numbers, w: Any, eta: Any) -> Any:
    """By the theorem where the steps end, with a Neumann series."""
    w = descended(problem, numbers, w, eta)

    def solve(times: Any, right: Any) -> Any:
        def term(_: Any, carry: tuple) -> tuple:
            total, power = carry
            power = power - numbers.neumann_rate * times(power)
            return total + power, power

        total, _ = jax.lax.fori_loop(1, numbers.terms, term, (right, right))
        return numbers.neumann_rate * total

    return implicit(problem, w, eta, solve), w


GRADIENTS: dict[str, Gradient] = {"cg": cg, "neumann": neumann, "unrolled": unrolled}


def learn(
    gradient: Gradient,
    problem: Problem,
    numbers: Numbers,
    eta: Any,
    *,
    rate: float,
    steps: int,
    warm: bool,
) -> Any:
    """Adam from η; each inner run from where the last one ended, or from 0.

    Returns:
        η before each of the steps.
    """
    adam = optax.adam(rate)
    zeros = jnp.zeros_like(eta)

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        w, eta, state = carry
        grad, end = gradient(problem, numbers, w, eta)
        updates, state = adam.update(grad, state, eta)
        after = end if warm else w
        return (after, optax.apply_updates(eta, updates), state), eta

    start = zeros, eta, adam.init(eta)
    return jax.lax.scan(step, start, length=steps)[1]

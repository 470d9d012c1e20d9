"""The closed forms of bilevel quadratics against autodiff through the linear solve."""

import jax
import jax.numpy as jnp
import numpy as np

from metalr.theory.bilevel import BilevelQuadratic, Quadratic
from tests.helpers import assert_close


def problem():
    rng = np.random.default_rng(0)

    def part():
        half = rng.normal(size=(3, 3))
        other = rng.normal(size=(2, 2))
        A, B = half @ half.T + np.eye(3), other @ other.T + 4.0 * np.eye(2)
        rest = (rng.normal(size=shape) for shape in ((2, 3), 3, 2))
        return Quadratic(*map(jnp.array, (A, B, *rest)))

    return BilevelQuadratic(part(), part())


X = jnp.array([0.3, -1.2])


def test_the_solution_is_where_the_inner_gradient_vanishes():
    truth = problem()
    assert jnp.linalg.norm(jax.grad(truth.inner)(truth.solution(X), X)) < 1e-13


def test_gradient_and_hessian_are_those_of_the_value():
    truth = problem()
    assert_close(truth.gradient(X), jax.grad(truth.value)(X), rtol=1e-12)
    assert_close(truth.hessian(), jax.hessian(truth.value)(X), rtol=1e-11)
    assert jnp.linalg.norm(truth.gradient(truth.minimizer())) < 1e-12


def test_the_penalized_gradient_is_that_of_the_penalized_value():
    truth, penalty = problem(), 3.0
    g, f = truth.inner, truth.outer

    def value(x):
        total = lambda y: f(y, x) + penalty * (g(y, x) - g(truth.solution(x), x))
        zero = jnp.zeros(3)
        y = -jnp.linalg.solve(jax.hessian(total)(zero), jax.grad(total)(zero))
        return total(y)

    assert_close(truth.penalized_gradient(X, penalty), jax.grad(value)(X), rtol=1e-11)
    far = truth.penalized_gradient(X, 1e6) - truth.gradient(X)
    assert jnp.linalg.norm(far) < 1e-4

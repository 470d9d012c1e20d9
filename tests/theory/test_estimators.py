"""What estimators estimate: closed forms against unrolls, quadrature and series."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalr
from metalr.theory import Quadratic, estimators
from tests import helpers

X, T_ = (jnp.array(x) for x in helpers.normal_regression())
Q = Quadratic.from_regression(X, T_)


def unrolled(steps):
    loss = metalr.problems.least_squares(X, T_)
    start = jnp.zeros(X.shape[1])
    return metalr.Unrolled(loss, metalr.per_step(optax.sgd), start, steps=steps)


def test_truncation_keeps_k_of_t_parts_of_the_hypergradient():
    steps, eta = 6, 0.13
    L = unrolled(steps)
    for last in range(steps + 1):
        live = jnp.arange(steps) >= steps - last
        cut = lambda e, live=live: L(jnp.where(live, e, jax.lax.stop_gradient(e)))
        found = estimators.truncated_slope(Q, eta, steps, last)
        np.testing.assert_allclose(found, jax.grad(cut)(eta), rtol=1e-11, atol=1e-15)


def test_truncation_to_one_step_is_hypergradient_descent():
    loss = metalr.problems.least_squares(X, T_)
    gradient = jax.grad(lambda w: loss(w, None, None))
    w = unrolled(4).final_params(jnp.full(4, 0.2))
    product = -gradient(w - 0.2 * gradient(w)) @ gradient(w)
    found = estimators.truncated_slope(Q, 0.2, 5, 1)
    np.testing.assert_allclose(found, product, rtol=1e-11)


@pytest.mark.parametrize("eta", [-0.1, 0.0, 0.3, 2.0])
@pytest.mark.parametrize("steps", [0, 1, 4, 9])
def test_smoothing_is_gauss_hermite_quadrature_of_gradient_descent(eta, steps):
    nodes, weights = np.polynomial.hermite.hermgauss(steps + 1)  # exact to degree 2T
    rates = eta + 0.2 * np.sqrt(2) * nodes
    losses = [helpers.descend(np.array(X), np.array(T_), [r] * steps) for r in rates]
    expected = weights @ losses / np.sqrt(np.pi)
    np.testing.assert_allclose(
        estimators.smoothed_loss(Q, eta, 0.2, steps), expected, rtol=1e-11
    )


def test_smoothing_each_step_is_the_mean_over_all_two_valued_perturbations():
    # ±σ and N(0, σ²) share the two moments that enter: 2^T schedules, all of them.
    steps, eta, sigma = 4, 0.2, 0.15
    paths = eta + sigma * (2.0 * np.array(list(np.ndindex(*(2,) * steps))) - 1.0)
    losses = [helpers.descend(np.array(X), np.array(T_), path) for path in paths]
    found = estimators.per_step_smoothed_loss(Q, eta, sigma, steps)
    np.testing.assert_allclose(found, np.mean(losses), rtol=1e-12)


def test_without_noise_both_are_the_loss_with_its_derivatives():
    for form in (estimators.smoothed_loss, estimators.per_step_smoothed_loss):
        for derivative in (lambda f: f, jax.grad, jax.hessian):
            smoothed = derivative(lambda eta, form=form: form(Q, eta, 0.0, 7))(0.3)
            exact = derivative(lambda eta: Q.loss(eta, 7))(0.3)
            np.testing.assert_allclose(smoothed, exact, rtol=1e-11)


def test_smoothing_obeys_the_heat_equation():
    # ∂/∂(σ²) E L(η + σε) = ½ ∂²/∂η²: another way to the same function.
    form = lambda eta, variance: estimators.smoothed_loss(Q, eta, jnp.sqrt(variance), 5)
    by_variance = jax.grad(form, 1)(0.2, 0.03)
    by_eta = jax.grad(jax.grad(form))(0.2, 0.03)
    np.testing.assert_allclose(by_variance, 0.5 * by_eta, rtol=1e-11)


def test_a_million_steps_smoothed_step_by_step_are_stable():
    q = Quadratic(eigenvalues=jnp.array([1e-6]), weights=jnp.array([1.0]))
    found = estimators.per_step_smoothed_loss(q, 1.0, 1000.0, 10**6)
    expected = np.exp(1e6 * np.log1p(-2e-6 + 1e-12 + 1e-6))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("terms", [0, 1, 2, 13, 10**6])
def test_neumann_sum_is_the_geometric_sum(terms):
    A = np.random.default_rng(1).normal(size=(4, 4))
    H, v = A @ A.T / 4, np.arange(4.0)
    H[:, 0] = H[0, :] = 0.0  # singular: along there the terms add up without end
    found = estimators.neumann_sum(jnp.array(H), jnp.array(v + 1), 0.2, terms)
    values, vectors = np.linalg.eigh(H[1:, 1:])
    small = np.maximum(values, 1e-300)
    factor = -np.expm1(terms * np.log1p(-0.2 * values)) / small
    rest = vectors @ (factor * (vectors.T @ (v + 1)[1:]))
    np.testing.assert_allclose(found, [0.2 * terms, *rest], rtol=1e-8)


@pytest.mark.slow
def test_unrolling_from_the_optimum_gives_the_neumann_series():
    # Ridge regression, outer variable the penalty; started at its optimum.
    n, d = X.shape
    Z, z = (jnp.array(x) for x in helpers.normal_regression(5))
    ridge = lambda w, h, _: jnp.mean((X @ w - T_) ** 2) + h * jnp.sum(w**2)
    outer = lambda w, _: jnp.mean((Z @ w - z) ** 2)
    penalty, eta = 0.3, 0.1
    best = jnp.linalg.solve(X.T @ X / n + penalty * jnp.eye(d), X.T @ T_ / n)
    H = jax.hessian(ridge)(best, penalty, None)
    mixed = jax.jacfwd(jax.grad(ridge), argnums=1)(best, penalty, None)
    adjoint = jax.grad(outer)(best, None)
    for terms in (1, 5, 12):
        L = metalr.Unrolled(
            ridge, lambda h: optax.sgd(eta), best, steps=terms, outer_loss=outer
        )
        closed = -adjoint @ estimators.neumann_sum(H, mixed, eta, terms)
        np.testing.assert_allclose(jax.grad(L)(penalty), closed, rtol=1e-10)
    implicit = -adjoint @ jnp.linalg.solve(H, mixed)
    limit = -adjoint @ estimators.neumann_sum(H, mixed, eta, 10**6)
    np.testing.assert_allclose(limit, implicit, rtol=1e-11)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="last = 3 exceeds steps = 2"):
        estimators.truncated_slope(Q, 0.1, 2, 3)
    with pytest.raises(ValueError, match="steps = -1"):
        estimators.smoothed_loss(Q, 0.1, 0.1, -1)

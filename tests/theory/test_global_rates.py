"""The best rate of many runs at once, and with momentum: grids, counts, polynomials."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.polynomial import Polynomial

from metalr.theory import Quadratic, momentum as theory, runs
from tests.helpers import assert_close, regression


@pytest.mark.parametrize("shape", [(9, 4), (4, 9)], ids=["tall", "wide"])
def test_the_stacked_closed_form_is_that_of_each_regression(shape):
    X, _ = regression(*shape)
    X = X.at[:, 0].set(0.0)  # a direction out of range
    rng = np.random.default_rng(1)
    starts, targets = rng.normal(size=(3, shape[1])), rng.normal(size=(3, shape[0]))
    starts[2], targets[2] = 0.0, 0.0  # optimal from the start
    stacked = runs.on(X)(targets, starts)
    found = stacked.optimal_rates(7)
    closed = jax.jit(lambda one: (one.optimal_rate(7), one.loss(0.3, 7)))
    losses = stacked.at("sgd", np.full(3, 0.3), np.zeros(3), 7).loss
    for index in range(2):
        exact = Quadratic.from_regression(X, jnp.array(targets[index]), starts[index])
        rate, loss = closed(exact)
        assert_close(found.rate[index], rate, rtol=1e-12)
        assert_close(losses[index], loss, rtol=1e-12)
        assert_close(
            stacked.spectrum.minimum[index], exact.minimum, rtol=1e-12, atol=1e-30
        )
    assert np.isnan(found.rate[2])
    momentum = np.full(3, 0.5)
    with_momentum = stacked.momentum_optima("heavy_ball", momentum, 7)
    assert np.isnan(with_momentum.rate[2])


@functools.partial(jax.jit, static_argnames=("optimizer", "steps"))
def on_a_grid(quadratic, rates, momentum, optimizer, steps):
    loss = getattr(quadratic, f"{optimizer}_loss")
    return jax.vmap(lambda rate: loss(rate, momentum, steps))(rates)


@pytest.mark.parametrize("momentum", [0.3, 0.9])
@pytest.mark.parametrize("optimizer", ["heavy_ball", "nesterov"])
def test_no_rate_on_a_dense_grid_beats_the_global_minimum(optimizer, momentum):
    steps, rng = 8, np.random.default_rng(3)
    X = rng.normal(size=(12, 5)) * np.geomspace(0.1, 1.0, 5)
    starts = rng.normal(size=(4, 5))
    stacked = runs.on(X)(np.zeros((4, 12)), starts)
    found = stacked.momentum_optima(optimizer, np.full(4, momentum), steps)
    eigenvalues = stacked.spectrum.eigenvalues
    low, high = 1e-3 / eigenvalues[-1], 10.0 / eigenvalues[0]
    rates = jnp.geomspace(low, high, 20_000)
    exact = [Quadratic.from_regression(X, jnp.zeros(12), start) for start in starts]
    losses = [on_a_grid(one, rates, momentum, optimizer, steps) for one in exact]
    losses = np.nan_to_num(np.array(losses), nan=np.inf)
    best = stacked.at(optimizer, found.rate, np.full(4, momentum), steps)
    assert np.all(best.loss <= losses.min(axis=1) * (1.0 + 1e-12))
    assert_close(found.rate, rates[losses.argmin(axis=1)], rtol=1e-3)  # the spacing
    valleys = (losses[:, 1:-1] < losses[:, :-2]) & (losses[:, 1:-1] <= losses[:, 2:])
    np.testing.assert_array_equal(found.minima, valleys.sum(axis=1))


@pytest.mark.parametrize("momentum", [0.2, 0.9])
def test_one_eigenvalue_has_as_many_minima_as_steps(momentum):
    one = Quadratic.from_regression(np.array([[1.0]]), np.array([3.0]))
    found = one.momentum_optimum(momentum, 9)
    exact = np.asarray(theory.heavy_ball_minimizers(2.0, momentum, 9))
    assert found.minima == 9
    assert np.min(np.abs(found.rate / exact - 1.0)) < 1e-7  # the loss is 0, squared


@pytest.mark.parametrize("optimizer", ["heavy_ball", "nesterov"])
@pytest.mark.parametrize("momentum", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("steps", [1, 2, 5, 8])
def test_all_zeros_of_a_run_are_real_and_within_the_range_searched(
    optimizer, momentum, steps
):
    # The polynomial in u from the recursion of the docstrings, lowest power first.
    u, error = Polynomial([0.0, 1.0]), Polynomial([1.0])
    change = Polynomial([0.0])
    for step in range(steps):
        beta = momentum * (1.0 - u) if optimizer == "nesterov" else momentum
        first = -(1.0 + momentum) * u
        starts = step == 0 and optimizer == "nesterov"
        change = first if starts else beta * change - u * error
        error = error + change
    zeros = error.roots()
    # Nesterov's zero at u = 1 is up to T/2-fold: roots() finds it to eps^(2/T).
    slack = 1e-2 if optimizer == "nesterov" else 1e-6
    top = (1.0 + momentum**0.5) ** 2 if optimizer == "heavy_ball" else 1.0
    assert len(zeros) == steps
    assert np.all(np.abs(zeros.imag) < slack)
    assert np.all(zeros.real <= top + slack)
    reach = -float(error.deriv()(0.0))
    counts = np.arange(1, steps + 1) + (optimizer == "nesterov")
    assert_close(reach, np.sum((1 - momentum**counts) / (1 - momentum)), rtol=1e-12)
    assert np.all(zeros.real >= (1.0 - 1e-9) / reach)


def test_without_momentum_heavy_ball_is_gradient_descent():
    rng = np.random.default_rng(0)
    stacked = runs.on(rng.normal(size=(8, 4)))(
        np.zeros((3, 8)), rng.normal(size=(3, 4))
    )
    plain = stacked.optimal_rates(9)
    found = stacked.momentum_optima("heavy_ball", np.zeros(3), 9)
    np.testing.assert_array_equal(found.minima, 1)
    assert_close(found.rate, plain.rate, rtol=1e-12)


def test_zero_weights_change_no_answer():
    few = Quadratic(eigenvalues=jnp.array([0.5, 2.0]), weights=jnp.array([1.0, 0.3]))
    more = Quadratic(
        eigenvalues=jnp.array([0.01, 0.5, 2.0, 9.0]),
        weights=jnp.array([0.0, 1.0, 0.3, 0.0]),
    )
    asked = {
        "optimal_rate(1)": lambda q: q.optimal_rate(1),
        "optimal_rate(5)": lambda q: q.optimal_rate(5),
        "asymptotic_rate": lambda q: q.asymptotic_rate(),
        "optimal_schedule": lambda q: q.optimal_schedule(2),
        "chebyshev_schedule": lambda q: q.chebyshev_schedule(3),
        "loss": lambda q: q.loss(0.4, 3),
        "momentum": lambda q: q.momentum_optimum(0.5, 4).rate,
    }
    for name, ask in asked.items():
        np.testing.assert_allclose(ask(more), ask(few), rtol=1e-12, err_msg=name)
    slopes = jax.grad(lambda q: q.optimal_rate(5))(more)
    expected = jax.grad(lambda q: q.optimal_rate(5))(few)
    assert_close(slopes.eigenvalues[1:3], expected.eigenvalues, rtol=1e-12)
    assert_close(slopes.weights[1:3], expected.weights, rtol=1e-12)
    assert np.all(np.isfinite(slopes.weights))
    with pytest.raises(ValueError, match="exceeds the 2 active"):
        more.optimal_schedule(3)


def test_no_active_direction_is_an_error_outside_of_jit_and_nan_inside():
    flat = Quadratic(eigenvalues=jnp.ones(2), weights=jnp.zeros(2))
    for ask in (flat.optimal_rate, flat.optimal_schedule, flat.chebyshev_schedule):
        with pytest.raises(ValueError, match="no active eigenvalue"):
            ask(2)
    with pytest.raises(ValueError, match="no active eigenvalue"):
        flat.momentum_optimum(0.5, 2)
    assert np.isnan(jax.jit(lambda q: q.optimal_rate(2))(flat))
    assert np.isnan(jax.jit(lambda q: q.optimal_rate(1))(flat))


def test_bad_input_is_named():
    q = Quadratic(eigenvalues=jnp.ones(1), weights=jnp.ones(1))
    with pytest.raises(ValueError, match=r"momentum = .* must be in"):
        q.momentum_optimum(1.0, 2)
    with pytest.raises(ValueError, match="steps = 0"):
        q.momentum_optimum(0.5, 0)

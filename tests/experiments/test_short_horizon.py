"""The search for a schedule against conjugate gradients and other searches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalr
from experiments._short_horizon import search
from metalr.theory import NoisyQuadratic, Quadratic

MODEL = NoisyQuadratic(
    jnp.array([1.0, 0.1]), jnp.array([1.0, 0.5]), jnp.array([1.0, 3.0])
)


@pytest.mark.slow
def test_the_optimum_is_stationary_a_minimum_and_no_search_beats_it():
    steps = 5
    optimum = search.best_schedule(MODEL, steps)
    best = MODEL.loss(optimum)
    slopes = jax.grad(MODEL.loss)(optimum)
    np.testing.assert_allclose(optimum * slopes / best, 0.0, atol=1e-5)
    assert np.linalg.eigvalsh(jax.hessian(MODEL.loss)(optimum))[0] > 0
    scattered = jnp.exp(jax.random.normal(jax.random.key(3), (8, steps)))
    learn = lambda start: metalr.learn(
        MODEL.loss, start, outer_optimizer=optax.lbfgs(), steps=300, log=True
    )
    found = jax.vmap(learn)(scattered)
    np.testing.assert_allclose(jnp.min(found.value), best, rtol=1e-9)
    assert MODEL.short_horizon_bias(steps, optimum) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("steps", [2, 3])
def test_without_noise_the_optimum_is_the_ritz_schedule(steps):
    q = Quadratic(
        eigenvalues=jnp.array([0.1, 1.0, 3.0, 7.0]),
        weights=jnp.array([1.0, 2.0, 0.3, 0.4]),
    )
    model = NoisyQuadratic(q.eigenvalues, jnp.zeros(4), 2 * q.weights / q.eigenvalues)
    found = np.sort(search.best_schedule(model, steps))
    ritz = q.optimal_schedule(steps)
    np.testing.assert_allclose(found, np.sort(ritz), rtol=1e-6)
    np.testing.assert_allclose(
        model.loss(jnp.array(found)), q.schedule_loss(ritz), rtol=1e-10
    )


@pytest.mark.slow
def test_the_optimum_is_differentiable_in_the_model():
    def rates(noise):
        model = NoisyQuadratic(MODEL.curvatures, noise * MODEL.noise, MODEL.start)
        return search.best_schedule(model, 3, tolerance=1e-14)

    slopes = jax.jacfwd(rates)(jnp.array(1.0))
    np.testing.assert_allclose(jax.jacrev(rates)(jnp.array(1.0)), slopes, rtol=1e-8)
    h = 1e-3
    difference = (rates(jnp.array(1.0 + h)) - rates(jnp.array(1.0 - h))) / (2 * h)
    np.testing.assert_allclose(slopes, difference, rtol=1e-4, atol=1e-7)


def least(model, schedules):
    return float(jnp.nanmin(jax.lax.map(model.loss, schedules)))


@pytest.mark.slow
def test_where_the_descent_from_greed_ends_in_a_worse_minimum_another_start_does_not():
    model = NoisyQuadratic(
        jnp.array([1.0, 0.021]), jnp.array([0.14, 0.1]), jnp.array([42.0, 1.8])
    )
    found = float(model.loss(search.best_schedule(model, 3)))
    greedy = model.greedy_schedule(3)[None]
    assert least(model, search.search(model, greedy, 1e-10)) > 1.1 * found
    scattered = jnp.exp(2.0 * jax.random.normal(jax.random.key(3), (40, 3)))
    refine = lambda start: metalr.learn(
        model.loss, start, outer_optimizer=optax.lbfgs(), steps=300, log=True
    )
    np.testing.assert_allclose(found, jnp.min(jax.vmap(refine)(scattered).value), 1e-8)


@pytest.mark.slow
def test_rates_in_a_worse_order_are_moved_and_solved_for_again():
    model = NoisyQuadratic(
        jnp.array([1.0, 0.021, 0.181]),
        jnp.array([0.14, 1.5, 0.92]),
        jnp.array([2.0, 40.0, 7.9]),
    )
    found = float(model.loss(search.best_schedule(model, 7)))
    once = search.search(model, search.starts(model, 7), 1e-10, rounds=1)
    assert least(model, once) > 1.01 * found


def test_a_sweep_puts_each_rate_at_the_vertex_of_its_parabola():
    rates = jnp.array([0.3, 1.5, 0.7])
    swept = search.sweep(MODEL, rates)
    for s in range(3):  # the last one first: those before are still the old ones
        here = jnp.concatenate([rates[:s], swept[s:]])
        slopes = jax.grad(MODEL.loss)(here)
        np.testing.assert_allclose(slopes[s], 0.0, atol=1e-14)
    assert MODEL.loss(swept) < MODEL.loss(rates)


def test_a_tolerance_must_be_positive():
    with pytest.raises(ValueError, match="tolerance = 0"):
        search.best_schedule(MODEL, 2, tolerance=0.0)


def test_a_start_at_the_optimum_stays_there():
    there = NoisyQuadratic(MODEL.curvatures, MODEL.noise, jnp.zeros(2))
    found = search.best_schedule(there, 3)
    np.testing.assert_array_equal(found, 0.0)
    np.testing.assert_array_equal(there.short_horizon_bias(3, found), 0.0)

"""The noisy quadratic model against path simulation, conjugate gradients, search."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import metalr
from metalr.theory import NoisyQuadratic, Quadratic

MODEL = NoisyQuadratic(
    jnp.array([1.0, 0.1]), jnp.array([1.0, 0.5]), jnp.array([1.0, 3.0])
)


def test_loss_is_the_exact_mean_over_all_paths_of_two_valued_noise():
    # ±σ has the mean and variance that the model asks for: 2^(2T) paths, all of them.
    rates = np.array([0.4, 1.1, 0.2])
    h, noise, start = (np.array(x) for x in jax.tree.leaves(MODEL))
    total = 0.0
    for signs in np.ndindex(*(2,) * 6):
        centers = np.sqrt(noise) * (2 * np.array(signs).reshape(3, 2) - 1)
        theta = np.sqrt(start)
        for rate, center in zip(rates, centers, strict=True):
            theta = theta - rate * h * (theta - center)
        total += 0.5 * np.sum(h * theta**2) / 64
    np.testing.assert_allclose(MODEL.loss(jnp.array(rates)), total, rtol=1e-13)


def test_greedy_is_the_best_next_step():
    rate = MODEL.greedy_rate()
    slope = jax.grad(MODEL.loss)(rate[None])
    np.testing.assert_allclose(slope, 0.0, atol=1e-15)
    greedy = MODEL.greedy_schedule(5)
    for steps in range(1, 6):  # each of its rates is best for the loss right after it
        slopes = jax.grad(MODEL.loss)(greedy[:steps])
        np.testing.assert_allclose(slopes[-1], 0.0, atol=1e-14)


def test_in_one_dimension_the_optimum_is_hyperbolic_and_greedy():
    h, noise, start = 0.7, 2.0, 3.0
    model = NoisyQuadratic(*(jnp.array([x]) for x in (h, noise, start)))
    closed = 1.0 / (h * (np.arange(6) + 1 + noise / start))
    np.testing.assert_allclose(model.optimal_schedule(6), closed, rtol=1e-14)
    np.testing.assert_allclose(model.greedy_schedule(6), closed, rtol=1e-12)
    slopes = jax.grad(model.loss)(jnp.array(closed))
    np.testing.assert_allclose(slopes, 0.0, atol=1e-15)
    np.testing.assert_allclose(model.short_horizon_bias(6), 0.0, atol=1e-14)


@pytest.mark.slow
def test_the_optimum_is_stationary_a_minimum_and_no_search_beats_it():
    steps = 5
    optimum = MODEL.optimal_schedule(steps)
    best = MODEL.loss(optimum)
    slopes = jax.grad(MODEL.loss)(optimum)
    np.testing.assert_allclose(optimum * slopes / best, 0.0, atol=1e-5)
    assert np.linalg.eigvalsh(jax.hessian(MODEL.loss)(optimum))[0] > 0
    scattered = jnp.exp(jax.random.normal(jax.random.key(3), (8, steps)))
    search = lambda start: metalr.learn(
        MODEL.loss, start, outer_optimizer=optax.lbfgs(), steps=300, log=True
    )
    found = jax.vmap(search)(scattered)
    np.testing.assert_allclose(jnp.min(found.value), best, rtol=1e-9)
    assert MODEL.short_horizon_bias(steps) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("steps", [2, 3])
def test_without_noise_the_optimum_is_the_ritz_schedule(steps):
    q = Quadratic(
        eigenvalues=jnp.array([0.1, 1.0, 3.0, 7.0]),
        weights=jnp.array([1.0, 2.0, 0.3, 0.4]),
    )
    model = NoisyQuadratic(q.eigenvalues, jnp.zeros(4), 2 * q.weights / q.eigenvalues)
    found = np.sort(model.optimal_schedule(steps))
    ritz = q.optimal_schedule(steps)
    np.testing.assert_allclose(found, np.sort(ritz), rtol=1e-6)
    np.testing.assert_allclose(
        model.loss(jnp.array(found)), q.schedule_loss(ritz), rtol=1e-10
    )


@pytest.mark.slow
def test_the_optimum_is_differentiable_in_the_model():
    def rates(noise):
        model = NoisyQuadratic(MODEL.curvatures, noise * MODEL.noise, MODEL.start)
        return model.optimal_schedule(3, tolerance=1e-14)

    slopes = jax.jacfwd(rates)(jnp.array(1.0))
    np.testing.assert_allclose(jax.jacrev(rates)(jnp.array(1.0)), slopes, rtol=1e-8)
    h = 1e-3
    difference = (rates(jnp.array(1.0 + h)) - rates(jnp.array(1.0 - h))) / (2 * h)
    np.testing.assert_allclose(slopes, difference, rtol=1e-4, atol=1e-7)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="one length"):
        NoisyQuadratic(jnp.ones(0), jnp.ones(0), jnp.ones(0))
    with pytest.raises(ValueError, match="steps = 0"):
        MODEL.greedy_schedule(0)
    with pytest.raises(ValueError, match="tolerance = 0"):
        MODEL.optimal_schedule(2, tolerance=0.0)

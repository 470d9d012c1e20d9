"""The noisy quadratic model against all paths of its noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metalr.theory import NoisyQuadratic

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


def test_the_hyperbolic_optimum_is_differentiable_and_needs_no_noise():
    def rates(noise):
        model = NoisyQuadratic(jnp.ones(1), noise[None], jnp.ones(1))
        return model.optimal_schedule(3)

    slopes = jax.jacfwd(rates)(jnp.array(2.0))
    np.testing.assert_allclose(slopes, -1.0 / np.array([3.0, 4.0, 5.0]) ** 2, 1e-14)
    np.testing.assert_allclose(rates(jnp.array(0.0)), 1.0 / np.array([1.0, 2.0, 3.0]))


@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("start", [0.0, 1.0])
def test_where_nothing_is_left_greed_costs_nothing_and_no_rate_is_nan(noise, start):
    model = NoisyQuadratic(*(jnp.array([x]) for x in (2.0, noise, start)))
    greedy = model.greedy_schedule(4)
    if start == 0.0 or noise == 0.0:
        np.testing.assert_array_equal(greedy[1:], 0.0)  # the first one arrived
        np.testing.assert_array_equal(model.loss(greedy), 0.0)
    assert np.all(np.isfinite(model.optimal_schedule(4)))
    np.testing.assert_allclose(model.short_horizon_bias(4), 0.0, atol=1e-15)
    slopes = jax.grad(lambda m: jnp.sum(m.greedy_schedule(2)))(model)
    assert np.all(np.isfinite(jax.tree.leaves(slopes)))


def test_a_gradient_in_the_model_is_a_tree_of_any_sign():
    quiet = NoisyQuadratic(MODEL.curvatures, jnp.zeros(2), MODEL.start)
    slopes = jax.grad(lambda model: model.loss(jnp.array([0.7])))(quiet)
    assert isinstance(slopes, NoisyQuadratic)
    assert np.min(slopes.curvatures) < 0.0
    names = [str(path[0]) for path, _ in jax.tree_util.tree_leaves_with_path(slopes)]
    assert names == [".curvatures", ".noise", ".start"]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="one length"):
        NoisyQuadratic(jnp.ones(0), jnp.ones(0), jnp.ones(0))
    with pytest.raises(ValueError, match="steps = 0"):
        MODEL.greedy_schedule(0)
    with pytest.raises(ValueError, match="2 dimensions have no optimal schedule"):
        MODEL.optimal_schedule(2)
    one = jnp.ones(1)
    for name, arrays in {
        "curvatures": (-one, one, one),
        "curvatures ": (0.0 * one, one, one),
        "noise": (one, -one, one),
        "start": (one, one, jnp.array([jnp.nan])),
    }.items():
        with pytest.raises(ValueError, match=rf"{name.strip()} = .* must be"):
            NoisyQuadratic(*arrays)
